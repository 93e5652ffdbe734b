"""The families of transformers that carry registers, and what differs between them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One family; its classes are named alike: ``RadioModel``, ``RadioConfig``, ``RadioPreTrainedModel``.

    Args:
        model_type: As in transformers' configurations.
        package: The folder under ``transformers/models``.
        prefix: The beginning of its classes' names.
        norm: The name of the final norm in the model, applied to every token; None for a family without one.
        registers: The configuration's name for the number of registers.
        parameter: Where the model keeps them, ``[..., R, D]``; the class tokens come first in it if ``class_tokens``
            is not None.
        class_tokens: The configuration's name for the number of class tokens before the registers; None if there is
            always one.
    """

    model_type: str
    package: str
    prefix: str
    norm: str | None
    registers: str = "num_register_tokens"
    parameter: str = "embeddings.register_tokens"
    class_tokens: str | None = None

    def model_class(self, role: str) -> str:
        """``"module:Class"`` of its ``Model``, ``PreTrainedModel`` or ``Backbone``."""
        return f"transformers.models.{self.package}.modeling_{self.package}:{self.prefix}{role}"

    @property
    def config_class(self) -> str:
        """``"module:Class"`` of its configuration."""
        return f"transformers.models.{self.package}.configuration_{self.package}:{self.prefix}Config"


FAMILIES = (
    Family("dinov2_with_registers", "dinov2_with_registers", "Dinov2WithRegisters", norm="layernorm"),
    Family("dinov3_vit", "dinov3_vit", "DINOv3ViT", norm="norm"),
    Family(
        "radio",
        "radio",
        "Radio",
        norm=None,
        registers="num_registers",
        parameter="embeddings.cls_register_token",
        class_tokens="num_cls_tokens",
    ),
    Family("sapiens2", "sapiens2", "Sapiens2", norm="norm"),
    Family("tipsv2_vision_model", "tipsv2", "Tipsv2Vision", norm="layernorm"),
)

# all of TIPSv2, with its text tower: its vision tower is read
TIPSV2_MODEL = "transformers.models.tipsv2.modeling_tipsv2:Tipsv2PreTrainedModel"
TIPSV2_CONFIG = "transformers.models.tipsv2.configuration_tipsv2:Tipsv2Config"

# the bases of all of a family's models, also those with heads and Backbone classes, so that a model that cannot be read
# is refused by name
CLASSES = (
    *(name for family in FAMILIES for name in (family.model_class("PreTrainedModel"), family.config_class)),
    TIPSV2_MODEL,
    TIPSV2_CONFIG,
)

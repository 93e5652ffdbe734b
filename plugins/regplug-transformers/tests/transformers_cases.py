"""What transformers' own code says of every family, written down apart from the plugin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn


@dataclass
class Case:
    """A family, and what of its default configuration a test must change."""

    model_type: str
    prefix: str
    num_registers: int
    hidden_dim: int
    start: int
    norm: str | None
    parameter: str = "embeddings.register_tokens"
    options: dict[str, Any] = field(default_factory=dict)
    model: Any = None

    def config(self, **options: Any) -> Any:
        return getattr(transformers, f"{self.prefix}Config")(**{**self.options, **options})

    def build(self, **options: Any) -> Any:
        return getattr(transformers, f"{self.prefix}Model")(self.config(**options))

    def images(self, batch: int = 2, seed: int = 0) -> Tensor:
        """Two by three patches, another size than the configuration's: positions are interpolated."""
        patch = self.model.config.patch_size
        return torch.randn(batch, 3, 2 * patch, 3 * patch, generator=torch.Generator().manual_seed(seed))

    def raw(self, model: nn.Module, images: Tensor) -> Tensor:
        """The last layer's output, by transformers' own means: no hook or copy of the plugin's."""
        tokens: Tensor = model(images, output_hidden_states=True).hidden_states[-1]
        return tokens


# DINOv3's default has no registers, its published checkpoints four; RADIO's table of positions is large
CASES = {
    case.model_type: case
    for case in (
        Case("dinov2_with_registers", "Dinov2WithRegisters", 4, 768, 1, "layernorm"),
        Case("dinov3_vit", "DINOv3ViT", 4, 384, 1, "norm", options={"num_register_tokens": 4}),
        Case("radio", "Radio", 7, 1280, 3, None, "embeddings.cls_register_token", {"max_img_size": 64}),
        Case("sapiens2", "Sapiens2", 8, 1024, 1, "norm"),
        Case("tipsv2_vision_model", "Tipsv2Vision", 1, 768, 1, "layernorm"),
    )
}

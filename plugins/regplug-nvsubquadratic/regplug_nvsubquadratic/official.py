"""The register positions of Mamba-Reg and the official ViT-5, by rule, without their packages, which need CUDA.

Sources: wangf3014/Mamba-Reg, models_mamba.py and utils.py (``get_cls_idx``); wangf3014/ViT-5, models_vit5.py.
Instances of their classes are not recognised: these are in top-level modules, and Vim (hustvl/Vim), the base of
Mamba-Reg's code, has a ``models_mamba:VisionMamba`` too, with another layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regplug import NameLookupError, SpecError, TokenGroup, TokenLayout
from regplug.nn import check_sizes, closest


@dataclass(frozen=True)
class OfficialModel:
    """The sizes of a published network.

    Args:
        family: ``"mamba-reg"`` or ``"vit5"``.
        num_patches: Patch tokens per image, N.
        num_registers: R.
        hidden_dim: Token width, D.
    """

    family: str
    num_patches: int
    num_registers: int
    hidden_dim: int


# model -> R, D; all of 224 x 224 images in patches of 16: N = 196
MAMBA_REG = {"tiny": (12, 192), "small": (12, 384), "base": (12, 768), "large": (16, 1024)}
VIT5 = {"small": (4, 384), "base": (4, 768), "large": (4, 1024), "xlarge": (4, 1152)}
NUM_PATCHES = (224 // 16) ** 2


def mamba_reg_layout(num_patches: int, num_registers: int, hidden_dim: int) -> TokenLayout:
    """Mamba-Reg's rule: a register after every ``N // (R + 1)`` patches; the remaining patches are last.

    The network normalises all tokens (``norm_f``) before it reads the registers. Its name for R is ``num_cls_tokens``.

    Args:
        num_patches: Patch tokens per image, N >= 1.
        num_registers: Registers per image, R >= 1.
        hidden_dim: Token width, D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> mamba_reg_layout(196, 12, 768).indices[:4]
        (15, 31, 47, 63)
    """
    return TokenLayout.interleaved(
        num_patches=num_patches, num_registers=num_registers, hidden_dim=hidden_dim, normalized=True
    )


def vit5_layout(num_patches: int, num_registers: int, hidden_dim: int) -> TokenLayout:
    """The official ViT-5's rule, ``[CLS, patches, REG]``, after the norm that ends the network.

    T is fixed: tokens after the registers, such as padding, would be taken for registers.

    Args:
        num_patches: Patch tokens per image, N >= 1.
        num_registers: Registers per image, R >= 1.
        hidden_dim: Token width, D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> vit5_layout(196, 4, 384).positions(201)
        (197, 198, 199, 200)
    """
    check_sizes("vit5_layout", num_patches=num_patches, num_registers=num_registers)
    return TokenLayout(
        num_registers=num_registers,
        hidden_dim=hidden_dim,
        start=-num_registers,
        num_tokens=1 + num_patches + num_registers,
        normalized=True,
        groups=(TokenGroup("cls", 0, 1), TokenGroup("patches", 1, -num_registers)),
    )


def mamba_reg(model: str = "base", **options: object) -> OfficialModel:
    """The sizes of Mamba-Reg tiny, small, base or large.

    Raises:
        NameLookupError: There is no such model.
        SpecError: Options were given.
    """
    refuse_options("mamba-reg", options)
    return _published("mamba-reg", MAMBA_REG, model)


def vit5(model: str = "small", **options: object) -> OfficialModel:
    """The sizes of the official ViT-5 small, base, large or xlarge.

    Raises:
        NameLookupError: There is no such model.
        SpecError: Options were given.
    """
    refuse_options("vit5", options)
    return _published("vit5", VIT5, model)


def layout_of(model: OfficialModel) -> TokenLayout:
    """Where the registers of a published network sit."""
    rule = mamba_reg_layout if model.family == "mamba-reg" else vit5_layout
    return rule(model.num_patches, model.num_registers, model.hidden_dim)


def refuse_options(backbone: str, options: Mapping[str, object]) -> None:
    """Refuse options for a backbone that is known by its models' names alone."""
    if options:
        raise SpecError(f"backbone {backbone!r}: expected a model's name without options, got {', '.join(options)}.")


def _published(family: str, sizes: dict[str, tuple[int, int]], model: str) -> OfficialModel:
    if model not in sizes:
        raise NameLookupError(
            f"backbone {family!r}: expected one of its models, got {model!r}{closest(model, [*sizes])}."
        )
    return OfficialModel(family, NUM_PATCHES, *sizes[model])

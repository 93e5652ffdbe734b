"""nvSubquadratic's ViT-5 networks, Mamba-Reg and the official ViT-5 for regplug; importing this imports no torch."""

from regplug_nvsubquadratic.official import mamba_reg_layout, vit5_layout

__all__ = ["mamba_reg_layout", "vit5_layout"]

"""The networks of nvSubquadratic's shipped ImageNet configurations, by the names of their files.

From NVIDIA-BioNeMo/nvSubquadratic, examples/vit5_imagenet, at 5129112. Tokens, blocks and their kinds, widths, readouts
and FiLM generators are as configured there, from its own classes. Settings that affect neither registers nor FiLM are
the same for all here: biases, initial values, masks, response norms, the kernel's frequencies, drop path. So a
checkpoint of the whole network may not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from regplug import NameLookupError, SpecError
from regplug.nn import closest, one_line
from regplug_nvsubquadratic.official import refuse_options


@dataclass(frozen=True)
class Configuration:
    """The part of a configuration about registers and FiLM.

    Args:
        num_registers: R.
        readout: How the network itself classifies: ``"cls"``, ``"gap"`` or ``"register_concat"``.
        layers: One letter per block: ``H`` for Hyena, ``A`` for attention.
        num_film_layers: FiLM pairs in each Hyena block; None for no FiLM.
        compressed_dim: Width that each register keeps on its way to the FiLM generators; None for their average.
        hidden_dim: Token width, D.
        image_size: Side of an image, in pixels.
    """

    num_registers: int
    readout: str
    layers: str = "H" * 12
    num_film_layers: int | None = None
    compressed_dim: int | None = None
    hidden_dim: int = 384
    image_size: int = 224


PATCH_SIZE = 16
HEADS = 6
KERNEL_WIDTH = 32
KERNEL_LAYERS = 3
FILM_HIDDEN_DIM = 64
MAX_SIZE = 65536
NECK_RATIO = 4  # of the readout register_concat

# + asks for prepend_registers, which 0.2.0 no longer has: its registers are here where 0.2.0 puts all.
# * builds and does not run in 0.2.0: its attention has positions for a square number of registers only.
CONFIGURATIONS = {
    # v5
    "attention_pretrain": Configuration(4, "cls", "A" * 12),
    "hyena_gap_pretrain": Configuration(0, "gap"),
    # vit5_hybrid; * where R = 8
    "hybrid_ha": Configuration(4, "cls", "HA" * 6),
    "hybrid_ha_learnable_omega_blockdiag_film": Configuration(8, "cls", "HA" * 6, 3),
    "hybrid_hhha_learnable_omega_blockdiag_film": Configuration(8, "cls", "HHHA" * 3, 3),
    # v3; + (CLS and 13 registers fill a row of 14)
    "vit5_small_pretrain_hyena_cls_row_gated_film_ema": Configuration(13, "cls", num_film_layers=2),
    # v3/gap_film_regs
    "r4_f2_A": Configuration(4, "gap", num_film_layers=2),
    "r4_f3after_A": Configuration(4, "gap", num_film_layers=3),
    "r14_f2_A": Configuration(14, "gap", num_film_layers=2),
    "r14_f3after_A": Configuration(14, "gap", num_film_layers=3),
    # v4; +
    "r4_cc4_f3after_v2": Configuration(4, "register_concat", num_film_layers=3, compressed_dim=96),
}
DEFAULT = "r14_f3after_A"


def build(
    model: str = DEFAULT,
    num_registers: int | None = None,
    hidden_dim: int | None = None,
    compressed_dim: int | None = None,
    **options: object,
) -> Any:
    """The network of a shipped configuration, with random weights, wherever ``torch.device`` says.

    Args:
        model: The configuration's name.
        num_registers: R; the configuration's own when None, as for the other sizes. ``regplug audit`` changes them.
        hidden_dim: D.
        compressed_dim: c, for a configuration that compresses.
        **options: None are known; any is refused.

    Raises:
        NameLookupError: No such configuration is known here.
        SpecError: nvsubquadratic is not installed, or lacks one of its own dependencies; or there are options.
    """
    refuse_options("nvsubquadratic", options)
    if model not in CONFIGURATIONS:
        raise NameLookupError(
            f"backbone 'nvsubquadratic': expected the name of a shipped configuration, got {model!r}"
            f"{closest(model, [*CONFIGURATIONS])}."
        )
    configuration = _resized(CONFIGURATIONS[model], num_registers, hidden_dim, compressed_dim)
    try:
        from nvsubquadratic.lazy_config import instantiate

        return instantiate(network_config(configuration))
    except ModuleNotFoundError as error:
        raise SpecError(
            f"backbone 'nvsubquadratic': expected its package, got {one_line(error)}; use "
            "pip install 'regplug-nvsubquadratic[nvsubquadratic]' (the README says how to keep the torch you have)."
        ) from error


def _resized(
    configuration: Configuration, num_registers: int | None, hidden_dim: int | None, compressed_dim: int | None
) -> Configuration:
    if compressed_dim is not None and configuration.compressed_dim is None:
        raise SpecError(
            f"backbone 'nvsubquadratic': compressed_dim: expected none, as this configuration compresses nothing, "
            f"got {compressed_dim}."
        )
    sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim, "compressed_dim": compressed_dim}
    for word, size in sizes.items():
        if size is not None and not (type(size) is int and 1 <= size <= MAX_SIZE):
            raise SpecError(f"backbone 'nvsubquadratic': {word}: expected 1 to {MAX_SIZE}, got {size!r}.")
    return replace(configuration, **{word: size for word, size in sizes.items() if size is not None})


def network_config(configuration: Configuration) -> Any:
    """The LazyConfig of a network, with its blocks in ``layer_types``, by letter."""
    from nvsubquadratic.lazy_config import LazyConfig
    from nvsubquadratic.networks.vit5_classification import ViT5ClassificationNet

    width = configuration.hidden_dim
    concat = configuration.readout == "register_concat"
    # in layer_types, not as one block_cfg: only there Hyena blocks get the padding that their grid needs
    block = {"H": _hyena_block, "A": _attention_block}
    return LazyConfig(ViT5ClassificationNet)(
        in_channels=3,
        num_classes=1000,
        hidden_dim=width,
        num_blocks=len(configuration.layers),
        patch_size=PATCH_SIZE,
        image_size=configuration.image_size,
        num_registers=configuration.num_registers,
        readout=configuration.readout,
        neck_compression_ratio=NECK_RATIO if concat else None,
        norm_cfg=_norm(configuration.num_registers * (width // NECK_RATIO) if concat else width),
        layer_pattern=configuration.layers,
        layer_types={letter: block[letter](configuration) for letter in sorted(set(configuration.layers))},
    )


def _norm(width: int) -> Any:
    from nvsubquadratic.lazy_config import LazyConfig
    from nvsubquadratic.modules.rms_norm import RMSNorm

    return LazyConfig(RMSNorm)(dim=width, eps=1e-6)


def _block(configuration: Configuration, mixer: Any, **register_pooling: Any) -> Any:
    import torch
    from nvsubquadratic.lazy_config import LazyConfig
    from nvsubquadratic.modules.mlp import MLP
    from nvsubquadratic.modules.vit5_residual_block import ViT5ResidualBlock

    width = configuration.hidden_dim
    return LazyConfig(ViT5ResidualBlock)(
        sequence_mixer_cfg=mixer,
        sequence_mixer_norm_cfg=_norm(width),
        mlp_cfg=LazyConfig(MLP)(
            dim=width, activation="gelu", expansion_factor=4.0, dropout_cfg=LazyConfig(torch.nn.Dropout)(p=0.0)
        ),
        mlp_norm_cfg=_norm(width),
        hidden_dim=width,
        **register_pooling,
    )


def _attention_block(configuration: Configuration) -> Any:
    from nvsubquadratic.lazy_config import LazyConfig
    from nvsubquadratic.modules.vit5_attention import ViT5Attention

    width, grid = configuration.hidden_dim, configuration.image_size // PATCH_SIZE
    mixer = LazyConfig(ViT5Attention)(
        hidden_dim=width,
        num_heads=HEADS,
        num_patches_h=grid,
        num_patches_w=grid,
        num_registers=configuration.num_registers,
        has_cls=configuration.readout == "cls",
        qk_norm=_norm(width // HEADS),
    )
    return _block(configuration, mixer)


def _hyena_block(configuration: Configuration) -> Any:
    import torch
    from nvsubquadratic.lazy_config import LazyConfig
    from nvsubquadratic.modules.ckconv_nd import CKConvND
    from nvsubquadratic.modules.film import RegisterCompressConcat, RegisterPooling
    from nvsubquadratic.modules.hyena_nd import Hyena
    from nvsubquadratic.modules.kernels_nd import SIRENKernelND
    from nvsubquadratic.modules.sequence_mixer import QKVSequenceMixer
    from nvsubquadratic.modules.vit5_hyena_adapter import ViT5HyenaAdapter
    from nvsubquadratic.utils.qk_norm import L2Norm

    width, grid = configuration.hidden_dim, configuration.image_size // PATCH_SIZE
    readout, film, cond_dim = None, {}, width
    registers = configuration.num_registers
    if configuration.num_film_layers is not None:
        readout = LazyConfig(RegisterPooling)(num_registers=registers)
        if configuration.compressed_dim is not None:
            cond_dim = registers * configuration.compressed_dim
            readout = LazyConfig(RegisterCompressConcat)(
                num_registers=registers, hidden_dim=width, compressed_dim=configuration.compressed_dim
            )
        film = _film(cond_dim, configuration.num_film_layers)
    kernel = LazyConfig(SIRENKernelND)(
        data_dim=2,
        out_dim=width,
        mlp_hidden_dim=KERNEL_WIDTH,
        num_layers=KERNEL_LAYERS,
        embedding_dim=KERNEL_WIDTH,
        omega_0=10.0,
        L_cache=grid + 1,  # registers make one row more
        use_bias=True,
        **film,
    )
    convolution = LazyConfig(CKConvND)(
        data_dim=2,
        hidden_dim=width,
        kernel_cfg=kernel,
        mask_cfg=LazyConfig(torch.nn.Identity)(),
        grid_type="double",
        fft_padding="zero",
    )
    hyena = LazyConfig(Hyena)(
        global_conv_cfg=convolution,
        short_conv_cfg=LazyConfig(torch.nn.Conv2d)(
            in_channels=3 * width, out_channels=3 * width, kernel_size=3, groups=3 * width, padding=1, bias=False
        ),
        gate_nonlinear_cfg=LazyConfig(torch.nn.SiLU)(),
        gate_nonlinear_2_cfg=LazyConfig(torch.nn.Sigmoid)(),
        pixelhyena_norm_cfg=_norm(width),
        qk_norm_cfg=LazyConfig(L2Norm)(),
        output_norm_cfg=_norm(width),
    )
    mixer = LazyConfig(ViT5HyenaAdapter)(
        inner_mixer_cfg=LazyConfig(QKVSequenceMixer)(hidden_dim=width, mixer_cfg=hyena), grid_w=grid
    )
    return _block(configuration, mixer, register_pooling_cfg=readout, num_registers=registers)


def _film(cond_dim: int, num_film_layers: int) -> dict[str, Any]:
    from nvsubquadratic.lazy_config import LazyConfig
    from nvsubquadratic.modules.film import KernelFiLMGenerator

    return {
        "film_cfg": LazyConfig(KernelFiLMGenerator)(
            cond_dim=cond_dim,
            kernel_hidden_dim=KERNEL_WIDTH,
            num_film_layers=num_film_layers,
            film_hidden_dim=FILM_HIDDEN_DIM,
        ),
        # one pair more than the kernel has hidden layers: the first is for its embedding of positions
        "film_after_pos_embed": num_film_layers == KERNEL_LAYERS,
    }

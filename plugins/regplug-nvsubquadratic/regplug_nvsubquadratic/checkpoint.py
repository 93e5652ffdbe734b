"""Finds readouts in a checkpoint of a whole network by the names and shapes in it alone.

Names come without wrappers (``network.``, ``._orig_mod.``). Contradicting shapes are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from regplug import CheckpointSite, SpecError, TokenLayout
from regplug_nvsubquadratic.official import mamba_reg_layout

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
# as PyTorch numbers modules; not \d, which matches digits of any script, and int() refuses thousands of them
NUMBER = "(0|[1-9][0-9]{0,5})"
READOUT = re.compile(rf"blocks\.{NUMBER}\.register_pooling\.(logits|compress\.weight)")
KERNEL = "blocks.{}.sequence_mixer.inner_mixer.mixer.global_conv.kernel."
FILM_KEYS = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")
FILM = re.compile(re.escape(KERNEL).replace(r"\{\}", NUMBER) + r"film_generator\.mlp\.[02]\.(weight|bias)")
NECK = ("neck.weight", "norm_neck.weight")


def find_readouts(shapes: Shapes) -> list[CheckpointSite]:
    """The readout of each block of a ``ViT5ClassificationNet``, with the FiLM generator behind it.

    A block's readout reads tokens as the block's ``input_norm`` gives them. The layout is that of nvsubquadratic 0.2.0,
    ``[patches, CLS?, REG]``; a network trained with ``prepend_registers``, which 0.2.0 no longer has, has the same
    names and shapes.

    Args:
        shapes: The shape of each tensor, by name.

    Raises:
        SpecError: Two tensors contradict each other, or one that others require is missing; both are named. Or the
            readout or its generator has a tensor that is not part of it, and would be lost.
    """
    inside = {name: name.split(".") for name in shapes if name.startswith("blocks.")}
    if not any("register_pooling" in parts for parts in inside.values()):
        return []
    for name, parts in inside.items():
        if "register_pooling" in parts and not READOUT.fullmatch(name):
            raise _wrong(shapes, name, "a readout of blocks.I.register_pooling.logits or .compress.weight alone")
        if "film_generator" in parts and not FILM.fullmatch(name):
            known = f"{KERNEL.format('I')}film_generator.{', .'.join(FILM_KEYS)}"
            raise _wrong(shapes, name, f"a FiLM generator of {known} alone")
    keys: dict[int, str] = {}
    for block, key in sorted((int(match[1]), match[2]) for match in map(READOUT.fullmatch, shapes) if match):
        if block in keys:
            prefix = f"blocks.{block}.register_pooling."
            raise _wrong(shapes, f"{prefix}{key}", "none", f"{prefix}{keys[block]}")
        keys[block] = key
    return [_site(shapes, block, key) for block, key in keys.items()]


def find_mamba_reg(shapes: Shapes) -> list[CheckpointSite]:
    """The readout of a Mamba-Reg network, ``neck`` and ``norm_neck``; none without a neck (``cls_reduce=1``).

    Args:
        shapes: The shape of each tensor, by name.

    Raises:
        SpecError: Two tensors contradict each other, or one that others require is missing; both are named. Or the
            readout has a tensor that is not part of it, and would be lost.
    """
    if not any(name == "neck.weight" or name.startswith("norm_neck.") for name in shapes):
        return []
    for name in shapes:
        if name.startswith(("neck.", "norm_neck.")) and name not in NECK:
            raise _wrong(shapes, name, f"a readout of {' and '.join(NECK)} alone")
    kept, hidden_dim = _take(shapes, "neck.weight", "[D / ratio, D]")
    (width,) = _take(shapes, "norm_neck.weight", "[R * D / ratio]")
    _, num_registers, _ = _take(shapes, "cls_token", "[1, R, D]", {0: 1, 2: hidden_dim}, "neck.weight")
    if kept == 0 or hidden_dim % kept:
        raise _wrong(shapes, "neck.weight", "[D / ratio, D] (ratio a whole number)", "cls_token")
    if width != num_registers * kept:
        raise _wrong(
            shapes, "norm_neck.weight", f"[{num_registers * kept}] (R * D / ratio)", "cls_token", "neck.weight"
        )
    layout = None
    if "pos_embed" in shapes:
        _, num_patches, _ = _take(shapes, "pos_embed", "[1, N, D]", {0: 1, 2: hidden_dim}, "neck.weight")
        layout = mamba_reg_layout(num_patches, num_registers, hidden_dim)
    return [
        CheckpointSite(
            where="",
            strategy="mamba-reg",
            num_registers=num_registers,
            hidden_dim=hidden_dim,
            options={"ratio": hidden_dim // kept},
            readout={name: name for name in NECK},
            layout=layout,
        )
    ]


def _take(
    shapes: Shapes, name: str, words: str, sizes: Mapping[int, int] | None = None, because: str | None = None
) -> Shape:
    """The shape of a tensor, checked against the dimensions in ``words`` and the ``sizes`` that ``because`` has."""
    shape = shapes.get(name)
    known = sizes or {}
    if shape is None or len(shape) != words.count(",") + 1 or any(shape[at] != size for at, size in known.items()):
        raise _wrong(shapes, name, words, *([because] if because else []))
    return tuple(shape)


def _wrong(shapes: Shapes, name: str, words: str, *because: str) -> SpecError:
    others = " and ".join(f"{one} {list(shapes[one])}" for one in because)
    got = list(shapes[name]) if name in shapes else "none"
    return SpecError(f"{name}: expected {words}{others and ' with '}{others}, got {got}.")


def _site(shapes: Shapes, block: int, key: str) -> CheckpointSite:
    name = f"blocks.{block}.register_pooling.{key}"
    _, num_registers, hidden_dim = _take(shapes, "reg_token", "[1, R, D]", {0: 1}, name)
    if key == "logits":
        _take(shapes, name, "[R]", {0: num_registers}, "reg_token")
        strategy, options, cond_dim = "pool", {}, hidden_dim
    else:
        kept, _ = _take(shapes, name, "[c, D]", {1: hidden_dim}, "reg_token")
        strategy, options, cond_dim = "compress-concat", {"compressed_dim": kept}, num_registers * kept
    film_options, film_weights = _film(shapes, block, name, cond_dim)
    return CheckpointSite(
        where=str(block),
        strategy=strategy,
        num_registers=num_registers,
        hidden_dim=hidden_dim,
        options=options,
        readout={key: name},
        layout=_layout(shapes, num_registers, hidden_dim),
        film="kernel-film" if film_weights else None,
        film_options=film_options,
        film_weights=film_weights,
    )


def _layout(shapes: Shapes, num_registers: int, hidden_dim: int) -> TokenLayout | None:
    if "pos_embed" not in shapes:
        return None
    _, num_patches, _ = _take(shapes, "pos_embed", "[1, N, D]", {0: 1, 2: hidden_dim}, "reg_token")
    start = num_patches
    if "cls_token" in shapes:
        _take(shapes, "cls_token", "[1, 1, D]", {0: 1, 1: 1, 2: hidden_dim}, "reg_token")
        start += 1
    return TokenLayout(num_registers=num_registers, hidden_dim=hidden_dim, start=start, normalized=False)


def _film(shapes: Shapes, block: int, readout: str, cond_dim: int) -> tuple[dict[str, int], dict[str, str]]:
    """The options and weights of the generator in a block's kernel; both empty if it has none."""
    kernel = KERNEL.format(block)
    names = {key: f"{kernel}film_generator.{key}" for key in FILM_KEYS}
    if not any(name in shapes for name in names.values()):
        return {}, {}
    first, first_bias, last, last_bias = names.values()
    film_hidden_dim, _ = _take(shapes, first, f"[h, {cond_dim}]", {1: cond_dim}, readout)
    _take(shapes, first_bias, "[h]", {0: film_hidden_dim}, first)
    out, _ = _take(shapes, last, "[2 * L * k, h]", {1: film_hidden_dim}, first)
    _take(shapes, last_bias, "[2 * L * k]", {0: out}, last)
    # the kernel's width k is the input width of its last layer; the generator's width is L * k, which does not tell k
    out_linear = f"{kernel}out_linear.weight"
    _, width = _take(shapes, out_linear, "[D, k]", None, last)
    hidden = re.compile(re.escape(kernel) + rf"hidden_linears\.{NUMBER}\.weight")
    layers = sum(bool(hidden.fullmatch(name)) for name in shapes)
    num_film_layers, rest = divmod(out, max(2 * width, 1))
    if rest or num_film_layers not in (layers, layers + 1):  # one more if the embedding of positions has a pair too
        raise _wrong(shapes, last, f"[2 * L * {width}, h] (L = {layers} or {layers + 1})", out_linear)
    options = {"kernel_hidden_dim": width, "num_film_layers": num_film_layers, "film_hidden_dim": film_hidden_dim}
    return options, names

"""Readouts are found in a checkpoint by names and shapes; what contradicts itself is refused, both tensors named."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from nvsubquadratic.lazy_config import instantiate

import regplug
from regplug_nvsubquadratic import mamba_reg_layout
from regplug_nvsubquadratic.checkpoint import find_mamba_reg, find_readouts
from regplug_nvsubquadratic.shipped import CONFIGURATIONS, Configuration, network_config

KERNEL = "sequence_mixer.inner_mixer.mixer.global_conv.kernel."
FILM = f"blocks.0.{KERNEL}film_generator.mlp."


def network(configuration: Configuration, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return instantiate(network_config(configuration))


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


POOL = Configuration(4, "cls", "HA", 2, hidden_dim=24, image_size=64)
CONCAT = Configuration(5, "register_concat", "HH", 3, 6, hidden_dim=24, image_size=64)


@pytest.mark.parametrize(
    ("configuration", "strategy", "options", "blocks"),
    [(POOL, "pool", {}, ["0"]), (CONCAT, "compress-concat", {"compressed_dim": 6}, ["0", "1"])],
    ids=["pool", "compress-concat"],
)
def test_every_readout_is_found_with_its_generator_and_fits(
    configuration: Configuration, strategy: str, options: dict[str, Any], blocks: list[str]
) -> None:
    source = network(configuration)
    state = source.state_dict()
    sites = find_readouts(shapes_of(source))
    assert [site.where for site in sites] == blocks
    for site in sites:
        assert (site.strategy, site.num_registers, site.hidden_dim) == (strategy, configuration.num_registers, 24)
        assert site.options == options
        assert site.layout == regplug.layout_of(source)
        assert site.film_options == {
            "kernel_hidden_dim": 32,
            "num_film_layers": configuration.num_film_layers,
            "film_hidden_dim": 64,
        }
        spec = regplug.resolve(strategy, num_registers=site.num_registers, hidden_dim=24, **site.options)
        readout = spec.build()
        readout.load_state_dict({key: state[name] for key, name in site.readout.items()}, strict=True)
        assert site.film is not None
        film = regplug.pair(spec, regplug.default_registry().film_entry(site.film).build, **site.film_options)
        assert isinstance(film, regplug.KernelFiLMGenerator)
        film.load_state_dict({key: state[name] for key, name in site.film_weights.items()}, strict=True)
        block = source.blocks[int(site.where)]
        registers = torch.randn(2, site.num_registers, 24)
        assert torch.equal(readout(registers), block.register_pooling(registers))
        assert torch.equal(film.mlp[0].weight, block.get_submodule(KERNEL + "film_generator").mlp[0].weight)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_a_shipped_configuration_has_is_found_in_its_shapes(name: str) -> None:
    configuration = replace(CONFIGURATIONS[name], layers=CONFIGURATIONS[name].layers[:2])
    sites = find_readouts(shapes_of(network(configuration, "meta")))
    hyena = [str(block) for block, layer in enumerate(configuration.layers) if layer == "H"]
    assert [site.where for site in sites] == (hyena if configuration.num_film_layers else [])
    assert {site.num_registers for site in sites} <= {configuration.num_registers}
    assert {site.film_options["num_film_layers"] for site in sites} <= {configuration.num_film_layers}


def test_a_readout_without_a_generator_and_tokens_without_positions_are_found_all_the_same() -> None:
    (site,) = find_readouts({"reg_token": (1, 4, 24), "blocks.11.register_pooling.logits": (4,)})
    assert (site.where, site.strategy, site.layout, site.film, site.film_weights) == ("11", "pool", None, None, {})
    assert find_readouts({"head.weight": (10, 24)}) == []


# what is changed (None: taken out) -> the tensor that is wrong, and the one that says so
POOL_READOUT, CONCAT_READOUT = "blocks.0.register_pooling.logits", "blocks.0.register_pooling.compress.weight"
OUT_LINEAR = f"blocks.0.{KERNEL}out_linear.weight"
WRONG = [
    (POOL, {POOL_READOUT: (5,)}, f"{POOL_READOUT}: expected [R] with reg_token [1, 4, 24], got [5]."),
    (POOL, {"reg_token": (1, 7, 24)}, f"{POOL_READOUT}: expected [R] with reg_token [1, 7, 24], got [4]."),
    (POOL, {"reg_token": None}, f"reg_token: expected [1, R, D] with {POOL_READOUT} [4], got none."),
    (POOL, {"pos_embed": (1, 16, 25)}, "pos_embed: expected [1, N, D] with reg_token [1, 4, 24], got [1, 16, 25]."),
    (POOL, {"cls_token": (1, 2, 24)}, "cls_token: expected [1, 1, D] with reg_token [1, 4, 24], got [1, 2, 24]."),
    (POOL, {f"{FILM}0.weight": (64, 30)}, f"{FILM}0.weight: expected [h, 24] with {POOL_READOUT} [4], got [64, 30]."),
    (CONCAT, {f"{FILM}0.weight": (64, 24)}, f"expected [h, 30] with {CONCAT_READOUT} [6, 24], got [64, 24]."),
    (CONCAT, {CONCAT_READOUT: (6, 23)}, f"{CONCAT_READOUT}: expected [c, D] with reg_token [1, 5, 24], got [6, 23]."),
    (
        CONCAT,
        {"reg_token": (1, 4, 24)},
        f"{FILM}0.weight: expected [h, 24] with {CONCAT_READOUT} [6, 24], got [64, 30].",
    ),
    (POOL, {f"{FILM}0.bias": (63,)}, f"{FILM}0.bias: expected [h] with {FILM}0.weight [64, 24], got [63]."),
    (
        POOL,
        {f"{FILM}2.weight": (130, 64), f"{FILM}2.bias": (130,)},
        f"{FILM}2.weight: expected [2 * L * 32, h] (L = 2 or 3) with {OUT_LINEAR} [24, 32], got [130, 64].",
    ),
    (POOL, {f"{FILM}2.weight": (512, 64), f"{FILM}2.bias": (512,)}, "(L = 2 or 3) with"),
    (POOL, {OUT_LINEAR: (24, 0)}, f"with {OUT_LINEAR} [24, 0], got [128, 64]."),
    (POOL, {OUT_LINEAR: None}, f"{OUT_LINEAR}: expected [D, k] with {FILM}2.weight [128, 64], got none."),
    (POOL, {f"{FILM}2.bias": None}, f"{FILM}2.bias: expected [2 * L * k] with {FILM}2.weight [128, 64], got none."),
]


@pytest.mark.parametrize(("configuration", "changes", "message"), WRONG)
def test_shapes_that_contradict_each_other_are_refused(
    configuration: Configuration, changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    shapes = shapes_of(network(configuration, "meta"))
    assert set(changes) <= set(shapes)
    changed = {name: shape for name, shape in {**shapes, **changes}.items() if shape is not None}
    with pytest.raises(regplug.SpecError, match=re.escape(message)):
        find_readouts(changed)
    find_readouts(shapes)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.register_pooling.proj.weight",  # of a readout by somebody else
        "blocks.0.register_pooling.compress.bias",
        "blocks.0.register_pooling.compress.parametrizations.weight.original0",
        "blocks.1.attention.register_pooling.logits",
        f"{FILM}4.weight",
        f"{FILM}4.bias",
        f"blocks.0.{KERNEL}film_generator.scale",
        "blocks.0.film_generator.mlp.0.weight",
        "blocks.01.register_pooling.logits",
        "blocks.\u0661.register_pooling.logits",
        f"blocks.{'1' * 5000}.register_pooling.logits",
        f"blocks.\u0661.{KERNEL}film_generator.mlp.0.weight",
    ],
    ids=lambda name: name[:60],
)
def test_a_tensor_of_the_readout_or_its_generator_is_never_left_behind(name: str) -> None:
    shapes = shapes_of(network(POOL, "meta"))
    assert name not in shapes
    begin = re.escape(name[:200])  # of a longer message the middle is cut out
    with pytest.raises(regplug.SpecError, match=rf"^{begin}.* alone, got \[3, 2\]\.$"):
        find_readouts({**shapes, name: (3, 2)})
    with pytest.raises(regplug.SpecError, match=f"^{begin}"):  # at any position among the names
        find_readouts({name: (3, 2), **shapes})
    find_readouts(shapes)


def test_a_block_with_two_readouts_is_refused() -> None:
    shapes = {**shapes_of(network(CONCAT, "meta")), POOL_READOUT: (5,)}
    message = f"{POOL_READOUT}: expected none with {CONCAT_READOUT} [6, 24], got [5]."
    with pytest.raises(regplug.SpecError, match="^" + re.escape(message)):
        find_readouts(shapes)


def test_generators_of_networks_without_a_readout_are_none_of_ours() -> None:
    assert find_readouts({"blocks.0.film_generator.mlp.4.weight": (3, 2), "network.register_pooling.x": (1,)}) == []


# ---- Mamba-Reg

# wangf3014/Mamba-Reg, models_mamba.py: R, D, cls_reduce
MAMBA_REG = {"small": (12, 384, 2), "base": (12, 768, 4), "large": (16, 1024, 8)}


def mamba_shapes(num_registers: int, hidden_dim: int, ratio: int) -> dict[str, tuple[int, ...]]:
    # the head's width as the source writes it, hence R // ratio
    return {
        "cls_token": (1, num_registers, hidden_dim),
        "pos_embed_cls": (1, num_registers, hidden_dim),
        "pos_embed": (1, 196, hidden_dim),
        "patch_embed.proj.weight": (hidden_dim, 3, 16, 16),
        "neck.weight": (hidden_dim // ratio, hidden_dim),
        "norm_neck.weight": (hidden_dim * num_registers // ratio,),
        "head.weight": (1000, hidden_dim * (num_registers // ratio)),
        "norm_f.weight": (hidden_dim,),
    }


@pytest.mark.parametrize("name", MAMBA_REG)
def test_the_readout_of_mamba_reg_is_found_and_fits(name: str) -> None:
    num_registers, hidden_dim, ratio = MAMBA_REG[name]
    shapes = mamba_shapes(num_registers, hidden_dim, ratio)
    (site,) = find_mamba_reg(shapes)
    assert (site.where, site.strategy, site.options, site.film) == ("", "mamba-reg", {"ratio": ratio}, None)
    assert site.layout == mamba_reg_layout(196, num_registers, hidden_dim)
    spec = regplug.resolve(site.strategy, num_registers=num_registers, hidden_dim=hidden_dim, **site.options)
    spec.build().load_state_dict({key: torch.zeros(shapes[name]) for key, name in site.readout.items()}, strict=True)
    assert (spec.cond_dim,) == shapes["norm_neck.weight"]
    assert spec.cond_dim == shapes["head.weight"][1]


def test_a_mamba_reg_without_a_neck_holds_no_readout() -> None:
    shapes = mamba_shapes(12, 192, 1)
    del shapes["neck.weight"], shapes["norm_neck.weight"]
    assert find_mamba_reg(shapes) == []
    assert find_mamba_reg({**shapes, "neck.0.weight": (192, 192, 1, 1)}) == []  # another network's neck


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cls_token": (1, 11, 384)},
            "norm_neck.weight: expected [2112] (R * D / ratio) with cls_token [1, 11, 384] ",
        ),
        ({"cls_token": (1, 12, 192)}, "cls_token: expected [1, R, D] with neck.weight [192, 384], got [1, 12, 192]."),
        ({"neck.weight": (190, 384)}, "neck.weight: expected [D / ratio, D] (ratio a whole number) with cls_token "),
        ({"neck.weight": (0, 384)}, "neck.weight: expected [D / ratio, D] (ratio a whole number) with cls_token "),
        ({"norm_neck.weight": None}, "norm_neck.weight: expected [R * D / ratio], got none."),
        ({"neck.weight": None}, "neck.weight: expected [D / ratio, D], got none."),
        *(
            ({name: (7,)}, f"{name}: expected a readout of neck.weight and norm_neck.weight alone, got [7].")
            for name in ("neck.bias", "neck.0.weight", "norm_neck.bias", "norm_neck.running_mean")
        ),
        (
            {"pos_embed": (1, 196, 192)},
            "pos_embed: expected [1, N, D] with neck.weight [192, 384], got [1, 196, 192].",
        ),
    ],
)
def test_a_mamba_reg_that_contradicts_itself_is_refused(
    changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    shapes = mamba_shapes(12, 384, 2)
    changed = {name: shape for name, shape in {**shapes, **changes}.items() if shape is not None}
    with pytest.raises(regplug.SpecError, match="^" + re.escape(message)):
        find_mamba_reg(changed)

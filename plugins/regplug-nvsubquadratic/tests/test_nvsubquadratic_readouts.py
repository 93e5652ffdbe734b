"""regplug's readouts inside nvSubquadratic's own networks, and nvSubquadratic's readouts as strategies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nvsubquadratic.lazy_config import LazyConfig, instantiate
from nvsubquadratic.modules import film as upstream
from support.readouts import moved
from torch import Tensor, nn

import regplug
from regplug.nn.readouts.averages import RegisterPooling
from regplug.nn.readouts.concatenations import RegisterCompressConcat
from regplug_nvsubquadratic.shipped import CONFIGURATIONS, Configuration, network_config

D, C = 24, 6
# what a readout is in a network of two Hyena blocks, with 4 registers and padding behind them
POOL = Configuration(4, "cls", "HH", 3, hidden_dim=D, image_size=64)
CONCAT = replace(POOL, readout="gap", compressed_dim=C)
CHOICES: dict[str, tuple[Configuration, dict[str, Any], type[nn.Module], type[nn.Module]]] = {
    "pool": (POOL, {}, RegisterPooling, upstream.RegisterPooling),
    "compress-concat": (CONCAT, {"compressed_dim": C}, RegisterCompressConcat, upstream.RegisterCompressConcat),
}
both = pytest.mark.parametrize("strategy", CHOICES)


def with_regplug(strategy: str) -> Any:
    """The configuration of a network with readouts from ``regplug.create`` in its blocks."""
    configuration, options, _, _ = CHOICES[strategy]
    config = network_config(configuration)
    config.layer_types.H.register_pooling_cfg = LazyConfig(regplug.create)(
        strategy=strategy, num_registers=4, hidden_dim=D, **options
    )
    return config


def trained(network: Any) -> Any:
    """The network as if trained: at first neither layer scale nor FiLM let the registers through."""
    torch.manual_seed(7)
    return moved(network, 0.3).eval()


def logits(network: Any) -> Tensor:
    given = torch.randn(3, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: Tensor = network({"input": given})["logits"]
    return found


@both
def test_a_block_takes_a_readout_from_lazy_config_and_keeps_its_keys(strategy: str) -> None:
    configuration, _, ours, theirs = CHOICES[strategy]
    block = instantiate(with_regplug(strategy).layer_types.H)
    source = instantiate(network_config(configuration).layer_types.H)
    assert type(block.register_pooling) is ours  # no wrapper
    assert type(source.register_pooling) is theirs
    assert list(block.state_dict()) == list(source.state_dict())
    shapes = [value.shape for value in block.state_dict().values()]
    assert shapes == [value.shape for value in source.state_dict().values()]
    block.load_state_dict(source.state_dict(), strict=True)
    source.load_state_dict(block.state_dict(), strict=True)


@both
def test_a_network_gives_the_logits_of_its_own_readouts_bit_for_bit(strategy: str) -> None:
    source = trained(instantiate(network_config(CHOICES[strategy][0])))
    network = instantiate(with_regplug(strategy)).eval()
    assert [type(block.register_pooling) for block in network.blocks] == [CHOICES[strategy][2]] * 2
    assert network.blocks[0].register_pooling is not network.blocks[1].register_pooling
    assert not torch.equal(logits(network), logits(source))
    network.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(logits(network), logits(source))
    with torch.no_grad():  # the readouts do count
        next(network.blocks[0].register_pooling.parameters())[0] += 0.5
    assert not torch.equal(logits(network), logits(source))
    source.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(logits(network), logits(source))


def test_logits_keep_their_weight_decay_tag_on_the_way_through_lazy_config() -> None:
    by_function = instantiate(with_regplug("pool").layer_types.H).register_pooling
    config = with_regplug("pool")
    config.layer_types.H.register_pooling_cfg = LazyConfig(RegisterPooling)(num_registers=4, hidden_dim=D)
    by_class = instantiate(config.layer_types.H).register_pooling
    # LazyConfig calls a function before the block is made, and copies what it gave; a class it calls inside the block
    for readout in (by_function, by_class):
        assert readout.logits._no_weight_decay is True
        (group,) = regplug.param_groups(readout, weight_decay=0.05)
        assert group["weight_decay"] == 0.0
        assert group["params"][0] is readout.logits
    # as the README says: the copy of theirs has no tag, the class called inside the block gives one
    config.layer_types.H.register_pooling_cfg = LazyConfig(regplug.create)(
        strategy="nvsubquadratic-pool", num_registers=4, hidden_dim=D
    )
    assert not hasattr(instantiate(config.layer_types.H).register_pooling.logits, "_no_weight_decay")
    config.layer_types.H.register_pooling_cfg = LazyConfig(upstream.RegisterPooling)(num_registers=4)
    assert instantiate(config.layer_types.H).register_pooling.logits._no_weight_decay is True


# ---- widths


@pytest.mark.parametrize("name", [name for name, one in CONFIGURATIONS.items() if one.num_film_layers])
def test_a_shipped_generator_is_as_wide_as_its_strategy_says(name: str) -> None:
    configuration = CONFIGURATIONS[name]
    with torch.device("meta"):
        network = instantiate(network_config(replace(configuration, layers=configuration.layers[:1])))
    layout = regplug.layout_of(network)
    strategy, options = "pool", {}
    if configuration.compressed_dim is not None:
        strategy, options = "compress-concat", {"compressed_dim": configuration.compressed_dim}
    for prefix in ("", "nvsubquadratic-"):
        spec = regplug.resolve(f"{prefix}{strategy}", num_registers=layout.num_registers, hidden_dim=384, **options)
        kernel = network.get_submodule("blocks.0.sequence_mixer.inner_mixer.mixer.global_conv.kernel")
        assert kernel.film_generator.mlp[0].in_features == spec.cond_dim
    assert layout.hidden_dim == 384
    assert isinstance(network.blocks[0].register_pooling, CHOICES[strategy][3])


@pytest.mark.parametrize(("num_registers", "width"), {4: 384, 8: 768, 13: 1248, 14: 1344}.items())
def test_widths_are_those_of_the_formula_in_the_shipped_configurations(num_registers: int, width: int) -> None:
    # examples/vit5_imagenet/v4/_base.py: HIDDEN_DIM // film_compression_ratio per register, HIDDEN_DIM for an average
    assert width == num_registers * (384 // 4)
    for prefix in ("", "nvsubquadratic-"):
        sizes: dict[str, Any] = {"num_registers": num_registers, "hidden_dim": 384}
        assert regplug.resolve(f"{prefix}compress-concat", **sizes, compressed_dim=384 // 4).cond_dim == width
        assert regplug.resolve(f"{prefix}pool", **sizes).cond_dim == 384
    assert {one.num_registers for one in CONFIGURATIONS.values()} == {0, 4, 8, 13, 14}


# ---- their readouts as strategies


@both
def test_their_readout_is_offered_unchanged_and_ships(strategy: str, tmp_path: Path) -> None:
    _, options, _, theirs = CHOICES[strategy]
    spec = regplug.resolve(f"nvsubquadratic-{strategy}", num_registers=4, hidden_dim=D, **options)
    readout = spec.build()
    assert type(readout) is theirs
    with torch.no_grad():
        next(readout.parameters()).normal_()
    regplug.export(spec, readout, tmp_path / "b", backends=["torchscript"])
    registers = torch.randn(3, 4, D)
    for again in (regplug.load(tmp_path / "b"), regplug.load(tmp_path / "b", program="torchscript")):
        torch.testing.assert_close(again(registers), readout(registers).detach(), rtol=1e-6, atol=1e-6)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(again(registers), readout(registers.flip(1)).detach(), rtol=1e-6, atol=1e-6)
    ours = regplug.create(strategy, num_registers=4, hidden_dim=D, **options)
    ours.load_state_dict(readout.state_dict(), strict=True)
    assert torch.equal(ours(registers), readout(registers))

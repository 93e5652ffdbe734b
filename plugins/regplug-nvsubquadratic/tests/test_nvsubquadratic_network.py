"""Layouts, FiLM sites and reading, on nvSubquadratic's own ViT5ClassificationNet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from nvsubquadratic.lazy_config import instantiate
from nvsubquadratic.modules.layer_scale import LayerScale
from nvsubquadratic.networks.vit5_classification import ViT5ClassificationNet
from support.readouts import moved
from torch import Tensor, nn

import regplug
from regplug_nvsubquadratic.network import film_sites, tokens
from regplug_nvsubquadratic.shipped import CONFIGURATIONS, Configuration, build, network_config

# 16 patches; if T is no multiple of the row of four, padding follows the registers
NETWORKS = {
    "Hyena, GAP": Configuration(4, "gap", "HH", 3, 6, hidden_dim=24, image_size=64),
    "Hyena, GAP, padded": Configuration(6, "gap", "HH", 2, hidden_dim=24, image_size=64),
    "Hyena, CLS, padded": Configuration(5, "cls", "HH", 3, hidden_dim=24, image_size=64),
    "Hyena, concat, padded": Configuration(3, "register_concat", "HH", 2, hidden_dim=24, image_size=64),
    "hybrid, CLS, padded": Configuration(4, "cls", "HA", 2, hidden_dim=24, image_size=64),
    "attention, CLS, padded": Configuration(4, "cls", "AA", hidden_dim=24, image_size=64),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def make(configuration: Configuration) -> Any:
    torch.manual_seed(0)
    # layer scale and FiLM start where the registers change nothing
    return moved(instantiate(network_config(configuration)).eval(), 0.1)


def images(configuration: Configuration, seed: int = 1, batch: int = 2) -> Tensor:
    side = configuration.image_size
    return torch.randn(batch, side, side, 3, generator=torch.Generator().manual_seed(seed))


def seen(module: nn.Module, run: Callable[[], object], *, before: bool = False) -> Tensor:
    """What goes into a module, or comes out of it, while ``run`` runs: the test's own way to the tokens."""
    kept: list[Tensor] = []
    if before:
        handle = module.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    else:
        handle = module.register_forward_hook(lambda _, given, found: kept.append(found))
    run()
    handle.remove()
    return kept[-1]


def check_marks(layout: regplug.TokenLayout, tokens: Tensor, marks: Tensor) -> None:
    """Each mark is where the layout says, and nowhere else."""
    positions = layout.positions(tokens.shape[1])
    for sample in tokens:
        found = [(sample == mark).all(dim=-1).nonzero().flatten().tolist() for mark in marks]
        assert found == [[position] for position in positions]


# ---- layouts


def marked(configuration: Configuration) -> tuple[Any, Tensor]:
    """A network with blocks that return their input unchanged, and with marked registers."""
    network = make(configuration)
    marks = torch.arange(1000.0, 1000.0 + configuration.num_registers)[:, None].expand(-1, configuration.hidden_dim)
    with torch.no_grad():
        network.reg_token.copy_(marks)
        for module in network.modules():
            if isinstance(module, LayerScale):
                for parameter in module.parameters():
                    parameter.zero_()
    return network, marks


@pytest.mark.parametrize(
    "configuration",
    [
        *NETWORKS.values(),
        *(replace(one, layers=one.layers[:1]) for one in CONFIGURATIONS.values() if one.num_registers),
    ],
    ids=[*NETWORKS, *(name for name, one in CONFIGURATIONS.items() if one.num_registers)],
)
@torch.inference_mode()
def test_marked_registers_are_where_the_layout_says(configuration: Configuration) -> None:
    network, marks = marked(configuration)
    layout = regplug.layout_of(network)
    first, given = network.blocks[0], images(configuration, batch=1)
    if first.num_registers:
        assert first.register_start_idx == layout.start  # where the block itself looks for them
    # with the padding, if the block gets it; the hybrids' attention, which does not run with 8 registers, is cut off
    check_marks(layout, seen(first, lambda: network({"input": given}), before=True), marks)
    check_marks(layout, tokens(network, False)(given), marks)
    torch.testing.assert_close(regplug.read_registers(network, given)[0], marks, rtol=0, atol=0)
    with pytest.raises(AssertionError):
        check_marks(
            replace(layout, start=layout.start - 1), seen(first, lambda: network({"input": given}), before=True), marks
        )


@every_network
def test_a_layout_is_the_same_on_the_meta_device_and_of_a_compiled_network(name: str) -> None:
    with torch.device("meta"):
        meta = instantiate(network_config(NETWORKS[name]))
    network = make(NETWORKS[name])
    assert regplug.layout_of(meta) == regplug.layout_of(network) == regplug.layout_of(torch.compile(network))


def test_a_network_without_registers_is_refused() -> None:
    with torch.device("meta"):
        network = build("hyena_gap_pretrain")
    for ask in (regplug.layout_of, lambda model: regplug.read_registers(model, None)):
        with pytest.raises(regplug.SpecError, match=r"^model ViT5ClassificationNet: carries no register tokens \("):
            ask(network)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), object(), {"reg_token": None}])
def test_what_is_none_of_its_networks_is_refused(model: object) -> None:
    name = type(model).__name__
    message = rf"^model {name}: expected a ViT5ClassificationNet of nvsubquadratic, got a \S+:{name}\.$"
    with pytest.raises(regplug.SpecError, match=message):
        regplug.layout_of(model, backbone="nvsubquadratic")
    with pytest.raises(regplug.SpecError, match=message):
        tokens(model, False)  # type: ignore[arg-type]


# ---- reading


class Tagged(ViT5ClassificationNet):
    """A user's network with the forward that reading builds on."""


class CountsTokens(ViT5ClassificationNet):
    """A user's network with another forward."""

    def forward(self, inputs: Any) -> Any:
        return {**super().forward(inputs), "count": self.num_patches}


class Derived(CountsTokens):
    pass


@torch.no_grad()
def test_a_subclass_is_read_unless_it_has_its_own_forward() -> None:
    network, given = make(NETWORKS["hybrid, CLS, padded"]), images(NETWORKS["hybrid, CLS, padded"])
    layout, expected = regplug.layout_of(network), regplug.read_registers(network, given)
    network.__class__ = Tagged
    assert torch.equal(regplug.read_registers(network, given), expected)
    for derived in (CountsTokens, Derived):
        network.__class__ = derived
        assert regplug.layout_of(network) == layout
        message = rf"^model {derived.__name__}: expected the forward of ViT5ClassificationNet, .* got its own;"
        for ask in (regplug.read_registers, lambda model, _: regplug.attach(model, "pool")):
            with pytest.raises(regplug.SpecError, match=message):
                ask(network, given)


@every_network
@torch.no_grad()
def test_tokens_are_what_the_last_block_gives(name: str) -> None:
    network, given = make(NETWORKS[name]), images(NETWORKS[name])
    before = network({"input": given})["logits"]
    layout = regplug.layout_of(network)
    after_blocks = seen(network.blocks[-1], lambda: network({"input": given}))
    registers = regplug.read_registers(network, given)
    assert registers.is_contiguous()
    expected = after_blocks[:, layout.start : layout.start + layout.num_registers]
    assert torch.equal(registers, expected)
    assert torch.equal(registers, regplug.read_registers(torch.compile(network), {"input": given, "condition": None}))
    assert not torch.equal(registers, regplug.read_registers(network, images(NETWORKS[name], seed=2)))
    if NETWORKS[name].readout == "register_concat":
        with pytest.raises(regplug.SpecError, match="where the norm is for all registers concatenated"):
            regplug.read_registers(network, given, normalized=True)
    else:
        assert torch.equal(regplug.read_registers(network, given, normalized=True), network.out_norm(expected))
    assert torch.equal(before, network({"input": given})["logits"])


@torch.no_grad()
def test_reading_meets_no_hook_and_leaves_none_also_after_an_error() -> None:
    network = make(NETWORKS["Hyena, GAP, padded"])
    given, called = images(NETWORKS["Hyena, GAP, padded"]), []
    expected = regplug.read_registers(network, given)
    state = {key: id(value) for key, value in network.state_dict(keep_vars=True).items()}
    attributes = {key: value for key, value in vars(network).items() if not key.startswith("_")}
    network.register_forward_hook(lambda *_: called.append("forward"))
    network.forward = lambda inputs: {"logits": called.append("replaced")}  # as wrappers of one instance do
    assert torch.equal(regplug.read_registers(network, given), expected)
    del network.forward
    with pytest.raises(RuntimeError):
        regplug.read_registers(network, given[:, :32])  # half the height
    assert not called
    assert {key: id(value) for key, value in network.state_dict(keep_vars=True).items()} == state
    assert {key: value for key, value in vars(network).items() if not key.startswith("_")} == attributes
    assert not any(
        block._forward_hooks or block._forward_pre_hooks for block in network.modules() if block is not network
    )


def test_reading_works_under_inference_mode_and_trains_the_network() -> None:
    network = make(NETWORKS["hybrid, CLS, padded"])
    given = images(NETWORKS["hybrid, CLS, padded"])
    with torch.inference_mode():
        assert regplug.read_registers(network, given).is_inference()
    regplug.read_registers(network, given).square().sum().backward()
    assert network.reg_token.grad.abs().sum() > 0
    assert network.out_proj.weight.grad is None


def test_reading_works_under_autocast_wherever_the_network_does() -> None:
    network = make(NETWORKS["attention, CLS, padded"])
    given = images(NETWORKS["attention, CLS, padded"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        after_blocks = seen(network.blocks[-1], lambda: network({"input": given}))
        registers = regplug.read_registers(network, given)
        assert torch.equal(registers, after_blocks[:, 17:21])
    assert not torch.equal(registers, regplug.read_registers(network, given))
    # nvsubquadratic's own: the day it works, the README's sentence on it goes
    hyena = make(NETWORKS["Hyena, GAP"])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(AssertionError, match="must match x.dtype"):
        hyena({"input": images(NETWORKS["Hyena, GAP"])})


def test_threads_that_read_at_once_each_get_their_own_result() -> None:
    network = make(NETWORKS["hybrid, CLS, padded"])
    given = [images(NETWORKS["hybrid, CLS, padded"], seed) for seed in range(6)]
    with torch.no_grad():
        expected = [regplug.read_registers(network, one) for one in given]
    found: dict[int, list[Tensor]] = {}
    start = threading.Barrier(len(given))

    @torch.no_grad()
    def read(index: int) -> None:
        start.wait()
        found[index] = [regplug.read_registers(network, given[index]) for _ in range(5)]

    threads = [threading.Thread(target=read, args=(index,)) for index in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, one in enumerate(expected):
        assert all(torch.equal(one, again) for again in found[index])


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (torch.zeros(2, 3, 64, 64), r"got \[2, 3, 64, 64\]\.$"),
        (torch.zeros(64, 64, 3), r"got \[64, 64, 3\]\.$"),
        ({"image": torch.zeros(2, 64, 64, 3)}, r"got NoneType\.$"),
        ([1], r"got list\.$"),
    ],
)
def test_what_is_no_images_with_channels_last_is_refused(inputs: object, got: str) -> None:
    network = make(NETWORKS["attention, CLS, padded"])
    with pytest.raises(regplug.ShapeError, match=r"expected images \[B, H, W, 3\] or \{'input': images\}.*" + got):
        regplug.read_registers(network, inputs)


def test_a_network_with_a_conditioner_attached_exports() -> None:
    configuration = NETWORKS["hybrid, CLS, padded"]
    network, given = make(configuration), images(configuration)
    attached = regplug.attach(network, "pool", film_options={"kernel_hidden_dim": 8, "num_film_layers": 2}).eval()
    assert not any(
        key.startswith("tokens.network.out_proj") for key in attached.state_dict()
    )  # a head that is not run is not trained
    with torch.no_grad():
        torch.nn.init.normal_(attached.conditioner.film.mlp[2].weight)
        program = torch.export.export(attached, (given,)).module()
        for seed in (1, 2):
            pairs, expected = program(images(configuration, seed)), attached(images(configuration, seed))
            torch.testing.assert_close(pairs, expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(program(given), expected, rtol=1e-5, atol=1e-6)


# ---- FiLM sites


def test_every_kernel_with_a_generator_is_a_site() -> None:
    sizes = regplug.measure_backbone(regplug.default_registry().backbone_entry("nvsubquadratic"), "hybrid_ha")
    assert sizes.film_sites == ()
    network = make(NETWORKS["hybrid, CLS, padded"])
    (site,) = film_sites(network)
    kernel = network.get_submodule(site.where)
    assert (site.features, site.num_layers) == (32, 2)
    pairs = kernel.film_generator(torch.zeros(1, 24))
    assert [(tuple(gamma.shape), tuple(beta.shape)) for gamma, beta in pairs] == [((1, 32), (1, 32))] * 2

"""Models are recognised by their class, read by their plugin, and get a readout attached."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
import torch
from support.plugins import builtin_with
from torch import Tensor, nn

import regplug
from regplug import (
    BackboneEntry,
    NameLookupError,
    PluginError,
    Registry,
    RegplugError,
    ShapeError,
    SpecError,
    TokenLayout,
)
from regplug.commands.bench.backbone_share import conditioning_cost
from regplug.nn.attached import AttachedConditioner, AttachedReadout


class Tiny(nn.Module):
    """Images ``[B, 3, 4, 4]`` -> tokens ``[B, 1 + R + 4, D]``, a class token and R registers first."""

    def __init__(self, num_registers: int = 2, hidden_dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, hidden_dim, kernel_size=2, stride=2)
        self.prefix = nn.Parameter(torch.randn(1, 1 + num_registers, hidden_dim))
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, images: Tensor, normalized: bool = True) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(images), -1, -1), patches], dim=1)
        return self.norm(tokens) if normalized else tokens


class Derived(Tiny):
    """Known by its base class."""


class TinyTokens(nn.Module):
    def __init__(self, model: Tiny, normalized: bool) -> None:
        super().__init__()
        self.model = model
        self.normalized = normalized

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images, self.normalized)


def layout_of(model: Tiny) -> TokenLayout:
    count = model.prefix.shape[1] - 1
    if count == 0:
        raise SpecError("model 'tiny': carries no register tokens (its one prefix token is the class token).")
    return TokenLayout(num_registers=count, hidden_dim=model.prefix.shape[2], start=1, normalized=True)


def build(name: str | None = None, /, **sizes: int) -> Tiny:
    if name not in (None, "two"):
        raise NameLookupError(f"model {name!r}: not known; known: two.")
    return Tiny(**sizes)


TINY = BackboneEntry(
    "tiny",
    build=build,
    layout=layout_of,
    tokens=TinyTokens,
    describe=lambda model: ("two", {"num_registers": model.prefix.shape[1] - 1}),
    readouts=("mean", "compress-concat"),
    default="compress-concat",
    options={"compressed_dim": 3},
    classes=(f"{__name__}:Tiny",),
)


def changed(**fields: Any) -> BackboneEntry:
    return BackboneEntry(**{**vars(TINY), **fields})


@pytest.fixture
def registry() -> Registry:
    return builtin_with(acme=TINY)


@pytest.mark.parametrize("cls", [Tiny, Derived])
def test_a_model_is_recognised_by_its_class_and_its_base_classes(cls: type[Tiny], registry: Registry) -> None:
    with torch.device("meta"):
        model = cls(num_registers=5)
    wanted = TokenLayout(num_registers=5, hidden_dim=8, start=1, normalized=True)
    assert regplug.layout_of(model, registry=registry) == wanted
    assert regplug.layout_of(torch.compile(model, backend="eager"), registry=registry) == wanted


def test_an_unknown_model_is_refused_and_the_backbones_that_recognise_models_are_named() -> None:
    with pytest.raises(NameLookupError, match=r"model Linear: has no registers that an installed.*: acme:tiny; use"):
        regplug.layout_of(nn.Linear(1, 1), registry=builtin_with(acme=TINY))


def test_two_plugins_that_know_a_model_are_both_named_and_one_may_be_chosen() -> None:
    registry = builtin_with(acme=TINY, other=changed(name="small", classes=(f"{__name__}:Derived",)))
    with pytest.raises(
        NameLookupError, match=r"Derived: recognised by acme:tiny and other:small; use backbone='acme:ti"
    ):
        regplug.layout_of(Derived(), registry=registry)
    assert regplug.layout_of(Derived(), backbone="other:small", registry=registry).num_registers == 2
    assert regplug.layout_of(Tiny(), registry=registry).num_registers == 2


def test_a_model_without_registers_is_refused_with_the_plugins_message(registry: Registry) -> None:
    for call in (regplug.layout_of, regplug.attach):
        with pytest.raises(SpecError, match="model 'tiny': carries no register tokens"):
            call(Tiny(num_registers=0), registry=registry)


def test_what_fails_inside_a_plugin_is_said_to_be_the_plugins() -> None:
    registry = builtin_with(acme=changed(layout=lambda model: model.nothing))
    with pytest.raises(PluginError, match="backbone 'tiny': expected layout to answer, got AttributeError"):
        regplug.layout_of(Tiny(), registry=registry)
    registry = builtin_with(acme=changed(layout=lambda model: 4))
    with pytest.raises(PluginError, match="backbone 'tiny': layout: expected a TokenLayout, got int"):
        regplug.layout_of(Tiny(), registry=registry)
    registry = builtin_with(acme=changed(tokens=lambda model, normalized: model.prefix))
    with pytest.raises(PluginError, match=r"backbone 'tiny': tokens: expected an nn\.Module, got Parameter"):
        regplug.read_registers(Tiny(), torch.zeros(1, 3, 4, 4), registry=registry)
    registry = builtin_with(acme=changed(tokens=lambda model, normalized: nn.Sequential(nn.Flatten(), nn.Identity())))
    with pytest.raises(ShapeError, match=r"expected tokens \[B, T, 8\] with T >= 3, got \[1, 48\]"):
        regplug.read_registers(Tiny(), torch.zeros(1, 3, 4, 4), registry=registry)
    registry = builtin_with(acme=changed(tokens=None))
    with pytest.raises(SpecError, match="backbone 'tiny': expected a backbone that says how its tokens are read"):
        regplug.read_registers(Tiny(), torch.zeros(1, 3, 4, 4), registry=registry)


def test_registers_are_read_normalised_or_not(registry: Registry) -> None:
    model, images = Tiny(), torch.randn(3, 3, 4, 4)
    raw = regplug.read_registers(model, images, normalized=False, registry=registry)
    assert torch.equal(raw, model.prefix[:, 1:].expand(3, -1, -1))
    assert raw.is_contiguous()
    for way in (None, True):
        assert torch.equal(regplug.read_registers(model, images, normalized=way, registry=registry), model.norm(raw))
    with pytest.raises(SpecError, match="normalized: expected True, False or None, got 'yes'"):
        regplug.read_registers(model, images, normalized="yes", registry=registry)  # type: ignore[arg-type]


def test_attaching_finds_layout_sizes_and_width(registry: Registry) -> None:
    model, images = Tiny(), torch.randn(3, 3, 4, 4)
    whole = regplug.attach(model, registry=registry)
    assert isinstance(whole, AttachedReadout)
    assert (whole.spec.strategy, whole.spec.cond_dim) == ("regplug:compress-concat", 6)
    assert torch.equal(whole(images), whole.readout(regplug.read_registers(model, images, registry=registry)))
    other = regplug.attach(model, "mean", normalized=False, registry=registry)
    assert other.spec.options == {}  # the default's options are the default strategy's alone
    assert torch.equal(other(images), model.prefix[:, 1:].mean(1).expand(3, -1))


def test_attaching_a_generator_passes_the_width_on(registry: Registry) -> None:
    options = {"kernel_hidden_dim": 5, "num_film_layers": 2}
    whole = regplug.attach(Tiny(), film_options=options, compressed_dim=7, registry=registry)
    assert isinstance(whole, AttachedConditioner)
    assert whole.conditioner.film.cond_dim == whole.spec.cond_dim == 14
    same = regplug.attach(
        Tiny(), film="regplug.nn.film:KernelFiLMGenerator", film_options=options, compressed_dim=7, registry=registry
    )
    assert [gamma.shape for gamma, _ in same(torch.zeros(3, 3, 4, 4))] == [(3, 5), (3, 5)]
    wrong = regplug.KernelFiLMGenerator(13, **options)
    with pytest.raises(SpecError, match="expected conditioning of width 13, got 6 from strategy 'compress-concat'"):
        regplug.attach(Tiny(), film=wrong, registry=registry)


class Halves(nn.Module):
    """A generator of no known family: shift first."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.cond_dim = cond_dim

    def forward(self, conditioning: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(conditioning[:, :3], conditioning[:, 3:])]


def test_a_generator_of_an_unknown_family_is_attached_when_its_form_and_order_are_stated(registry: Registry) -> None:
    images = torch.randn(2, 3, 4, 4)
    with pytest.raises(SpecError, match="Halves: expected a known family or a stated form and order"):
        regplug.attach(Tiny(), film=Halves, registry=registry)
    whole = regplug.attach(Tiny(), film=Halves, form="gamma", order="shift-first", registry=registry)
    conditioning = whole.conditioner.readout(whole.conditioner.select(whole.tokens(images)))
    [(gamma, beta)] = whole(images)
    assert torch.equal(torch.cat([beta, gamma], dim=1), conditioning)


def test_an_attached_module_trains_the_model_itself(registry: Registry) -> None:
    model = Tiny()
    whole = regplug.attach(model, "concat", registry=registry)
    whole(torch.randn(3, 3, 4, 4)).square().sum().backward()
    assert model.prefix.grad is not None
    assert {id(p) for p in model.parameters()} <= {id(p) for p in whole.parameters()}


def test_a_named_backbone_is_built_with_its_options(registry: Registry) -> None:
    whole = regplug.attach("tiny:two", "mean", model_options={"hidden_dim": 12}, registry=registry)
    assert whole.spec.cond_dim == 12
    assert (whole.source.entry.full_name, whole.source.model, whole.source.options) == (
        "acme:tiny",
        "two",
        {"hidden_dim": 12},
    )
    with pytest.raises(NameLookupError, match="model 'three': not known; known: two"):
        regplug.attach("tiny:three", registry=registry)
    with pytest.raises(SpecError, match="model_options: expected none with an instance, got hidden_dim"):
        regplug.attach(Tiny(), model_options={"hidden_dim": 12}, registry=registry)
    with pytest.raises(SpecError, match="option 'hidden_dim': expected a JSON value"):
        regplug.attach("tiny", model_options={"hidden_dim": {1}}, registry=registry)


def build_typed(size: str = "two", /, *, depth: int = 1, norm: Literal["pre", "post"] = "pre", wide=False) -> Tiny:
    return Tiny(num_registers=depth, hidden_dim=16 if wide else 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": "2"}, "backbone 'tiny': option 'depth': expected int, got '2'"),
        ({"norm": "none"}, "option 'norm': expected Literal['pre', 'post'], got 'none'"),
        ({"wide": "False"}, "option 'wide': expected bool, got 'False'; use false"),
        ({"dept": 2}, "option 'dept': expected a known option, got 2; known: depth, norm, wide (closest: depth)"),
    ],
)
@pytest.mark.parametrize("name", ["tiny", "tiny:two"])
def test_the_options_of_a_backbone_are_checked_against_what_makes_it(name, options, said) -> None:
    registry = builtin_with(acme=changed(build=build_typed))
    assert regplug.layout_of(name, registry=registry).num_registers == 1
    with pytest.raises(SpecError, match=re.escape(said)):
        regplug.attach(name, "mean", model_options=options, registry=registry)


@pytest.mark.parametrize(
    "word", ["word", "entry", "reference", "model", "name", "registry", "strategy", "film_options"]
)
def test_an_option_is_never_taken_for_something_else(word: str, registry: Registry) -> None:
    with pytest.raises(RegplugError, match=word):
        regplug.attach("tiny", "mean", model_options={word: 1}, registry=registry)
    with pytest.raises(SpecError, match=word):
        regplug.attach("tiny", "mean", strategy_options={word: 1}, registry=registry)
    with pytest.raises(SpecError, match=word):
        regplug.attach("tiny", "mean", film_options={word: 1}, registry=registry)


def test_what_is_no_model_and_no_mapping_is_refused(registry: Registry) -> None:
    with pytest.raises(SpecError, match=r"model: expected an nn\.Module, got NoneType"):
        regplug.read_registers(None, torch.zeros(1), backbone="tiny", registry=registry)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"model_options: expected a mapping of names to values, got \[1\]"):
        regplug.attach("tiny", model_options=[1], registry=registry)  # type: ignore[arg-type]
    assert regplug.layout_of("tiny:two", registry=registry).num_registers == 2


def test_a_model_whose_description_fails_is_attached_and_says_why() -> None:
    registry = builtin_with(acme=changed(describe=lambda model: model.nothing))
    source = regplug.attach(Tiny(), "mean", registry=registry).source
    assert "expected describe to answer, got AttributeError" in str(source)


def test_a_backbone_without_default_wants_a_strategy() -> None:
    registry = builtin_with(acme=changed(readouts=(), default=None, options={}))
    with pytest.raises(SpecError, match="backbone 'tiny': expected a strategy, got none, and it has no default"):
        regplug.attach(Tiny(), registry=registry)
    assert regplug.attach(Tiny(), "mean", registry=registry).spec.cond_dim == 8


def test_the_cost_of_conditioning_is_a_part_of_the_whole(registry: Registry) -> None:
    options = {"kernel_hidden_dim": 5, "num_film_layers": 2}
    images = torch.zeros(2, 3, 4, 4)
    for attached in (
        regplug.attach(Tiny(), registry=registry),
        regplug.attach(Tiny(), film_options=options, registry=registry),
    ):
        cost = conditioning_cost(attached.eval(), images, rounds=5)
        assert cost.whole.low <= cost.whole.median <= cost.whole.high
        assert cost.share == cost.conditioning.median / cost.whole.median
        assert cost.conditioning.median > 0
    with pytest.raises(SpecError, match=r"attached: expected what regplug\.attach gave, got Tiny"):
        conditioning_cost(Tiny(), images)  # type: ignore[arg-type]

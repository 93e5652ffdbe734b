"""Pairing passes the readout's width as the generator's own argument, or checks the width that it has."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from nvsubquadratic.modules.film import KernelFiLMGenerator as UpstreamGenerator
from support.errors import message_of
from support.plugins import registered, registry_of
from torch import Tensor, nn

import regplug
from regplug import FiLMEntry, KernelFiLMGenerator, PluginError, ReadoutSpec, SpecError
from regplug.nn.pairing import Convention, check_film_width, convention_of, film_family

SIZES = {"kernel_hidden_dim": 4, "num_film_layers": 2}


@pytest.fixture(scope="module")
def spec() -> ReadoutSpec:
    """Gives 12 numbers: 4 registers, 3 each."""
    return regplug.resolve("compress-concat", num_registers=4, hidden_dim=8, compressed_dim=3)


class GlobalCond(nn.Module):
    """diffusion-policy's name for the width, and an option named like one of the readout's sizes."""

    def __init__(self, global_cond_dim: int, hidden_dim: int = 5) -> None:
        super().__init__()
        self.layer = nn.Linear(global_cond_dim, hidden_dim)
        self.global_cond_dim = global_cond_dim

    def forward(self, conditioning: Tensor) -> Tensor:
        return self.layer(conditioning)


class ConditioningEmbedding(nn.Module):
    """The name for the width in adaptive layer norms."""

    def __init__(self, embedding_dim: int, conditioning_embedding_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(conditioning_embedding_dim, 2 * embedding_dim)


class Stranger(nn.Module):
    """Its argument for the width must be named."""

    def __init__(self, style: int, *, depth: int = 1) -> None:
        super().__init__()
        self.style = style
        self.depth = depth


class TwoWords(nn.Module):
    def __init__(self, cond_dim: int, global_cond_dim: int) -> None:
        super().__init__()
        self.given = (cond_dim, global_cond_dim)


refusal = functools.partial(message_of, regplug.pair)


# ---- a class


@pytest.mark.parametrize("film", [KernelFiLMGenerator, "regplug.nn.film:KernelFiLMGenerator"])
def test_a_class_or_its_name_is_built_with_the_width_of_the_readout(spec: ReadoutSpec, film: Any) -> None:
    made = regplug.pair(spec, film, **SIZES, film_hidden_dim=7)
    assert type(made) is KernelFiLMGenerator
    assert (made.cond_dim, made.film_hidden_dim) == (12, 7)
    pairs = made(spec.build()(torch.randn(2, 4, 8)))
    assert [part.shape for pair in pairs for part in pair] == [(2, 4)] * 4


@pytest.mark.parametrize("film", [UpstreamGenerator, "nvsubquadratic.modules.film:KernelFiLMGenerator"])
def test_the_class_of_nvsubquadratic_is_built_unchanged(spec: ReadoutSpec, film: Any) -> None:
    made = regplug.pair(spec, film, **SIZES)
    assert type(made) is UpstreamGenerator
    assert made.mlp[0].in_features == 12


def test_a_third_party_class_gets_the_width_as_its_own_argument(spec: ReadoutSpec) -> None:
    assert regplug.pair(spec, GlobalCond).global_cond_dim == 12
    assert regplug.pair(spec, ConditioningEmbedding, embedding_dim=6).linear.weight.shape == (12, 12)
    assert regplug.pair(spec, Stranger, width="style", depth=3).style == 12


def test_an_option_of_the_generator_may_be_named_as_a_size_of_the_readout(spec: ReadoutSpec) -> None:
    made = regplug.pair(spec, GlobalCond, hidden_dim=9)
    assert made.layer.weight.shape == (9, 12)


def test_an_unknown_argument_for_the_width_must_be_named(spec: ReadoutSpec) -> None:
    text = refusal(spec, Stranger)
    assert text == (
        "FiLM generator Stranger: expected one of cond_dim, global_cond_dim, conditioning_embedding_dim, "
        "conditioning_dim, cond_channels, "
        "dim_condition, condition_shape, context_dim, llm_dim in its constructor, got none; use width= to name it."
    )
    assert "expected a constructor that names 'styl', got (style" in refusal(spec, Stranger, width="styl")


def test_two_known_arguments_in_one_constructor_are_not_guessed(spec: ReadoutSpec) -> None:
    assert "got cond_dim, global_cond_dim; use width= to name it." in refusal(spec, TwoWords)
    assert regplug.pair(spec, TwoWords, width="global_cond_dim", cond_dim=5).given == (5, 12)


def test_the_options_of_a_generator_are_checked_as_those_of_a_readout(spec: ReadoutSpec) -> None:
    owner = "FiLM generator KernelFiLMGenerator: "
    assert refusal(spec, KernelFiLMGenerator, kernel_hidden_dim=4) == (
        f"{owner}expected option num_film_layers: int, got none."
    )
    assert "(closest: num_film_layers)." in refusal(spec, KernelFiLMGenerator, **SIZES, num_film_layer=2)
    assert refusal(spec, KernelFiLMGenerator, **SIZES, film_hidden_dim="7") == (
        f"{owner}option 'film_hidden_dim': expected int, got '7'."
    )
    assert "option 'cond_dim': expected an option, got one of the sizes" in refusal(
        spec, KernelFiLMGenerator, **SIZES, cond_dim=12
    )
    text = refusal(spec, KernelFiLMGenerator, kernel_hidden_dim=4, num_film_layers=0)
    assert text.endswith("num_film_layers must be >= 1, got 0")


def test_a_name_that_cannot_be_imported_is_a_plugin_error(spec: ReadoutSpec) -> None:
    with pytest.raises(
        PluginError, match="^FiLM generator: expected to import 'surely_not_there:Film', got ModuleNotF"
    ):
        regplug.pair(spec, "surely_not_there:Film")


def test_what_is_no_module_class_is_refused(spec: ReadoutSpec) -> None:
    def make(cond_dim: int) -> int:
        return cond_dim

    assert refusal(spec, make) == "FiLM generator make: expected an nn.Module, got int."


# ---- an instance


@pytest.mark.parametrize("cls", [KernelFiLMGenerator, UpstreamGenerator])
def test_an_instance_of_the_right_width_is_returned_itself(spec: ReadoutSpec, cls: Any) -> None:
    film = cls(12, 4, 2)
    assert regplug.pair(spec, film) is film


@pytest.mark.parametrize("cls", [KernelFiLMGenerator, UpstreamGenerator])
def test_an_instance_of_another_width_is_refused_with_both_widths(spec: ReadoutSpec, cls: Any) -> None:
    assert refusal(spec, cls(13, 4, 2)) == (
        "FiLM generator KernelFiLMGenerator: expected conditioning of width 13, got 12 from strategy 'compress-concat'."
    )


def test_a_third_party_instance_has_its_width_in_a_known_or_named_attribute(spec: ReadoutSpec) -> None:
    for film, width in ((GlobalCond(12), None), (Stranger(12), "style")):
        assert regplug.pair(spec, film, width=width) is film
    assert "expected conditioning of width 9, got 12" in refusal(spec, GlobalCond(9))
    assert "expected conditioning of width 9, got 12" in refusal(spec, Stranger(9), width="style")
    assert refusal(spec, Stranger(12)) == (
        "FiLM generator Stranger: expected an integer attribute cond_dim or global_cond_dim or "
        "conditioning_embedding_dim or conditioning_dim or cond_channels or dim_condition or condition_shape or "
        "context_dim or llm_dim, got none; use width= to name it."
    )
    assert "use width= to name it." in refusal(spec, Stranger(12), width="stile")


def test_an_instance_takes_no_options(spec: ReadoutSpec) -> None:
    assert refusal(spec, KernelFiLMGenerator(12, 4, 2), kernel_hidden_dim=4) == (
        "FiLM generator KernelFiLMGenerator: expected no options with an instance, got kernel_hidden_dim."
    )


def test_a_width_is_checked_against_the_readout_that_gives_it() -> None:
    check_film_width(KernelFiLMGenerator(12, 4, 2), 12, "RegisterMean")
    with pytest.raises(SpecError, match="expected conditioning of width 12, got 13 from RegisterMean"):
        check_film_width(KernelFiLMGenerator(12, 4, 2), 13, "RegisterMean")


# ---- families and conventions


class Derived(KernelFiLMGenerator):
    """A user's subclass of ours."""


def test_a_family_is_recognised_along_the_classes_it_is_made_of() -> None:
    for film in (KernelFiLMGenerator, UpstreamGenerator, Derived, Derived(12, 4, 2), UpstreamGenerator(12, 4, 2)):
        assert film_family(film).full_name == "regplug:kernel-film"
    assert film_family(Stranger) is None
    assert film_family(nn.Linear(2, 2)) is None


def test_the_nearest_family_wins() -> None:
    near = FiLMEntry("near", Derived, form="1+gamma", order="shift-first")
    far = FiLMEntry("far", KernelFiLMGenerator)

    for entries in ([near, far], [far, near]):
        registry = registry_of(*entries)
        assert film_family(Derived, registry).name == "near"
        assert film_family(KernelFiLMGenerator, registry).name == "far"


def test_the_meaning_of_pairs_is_known_for_a_family_or_stated_by_the_caller() -> None:
    assert convention_of(UpstreamGenerator(12, 4, 2)) == Convention("gamma", "gamma-first")
    assert convention_of(Stranger(12), "1+gamma", "shift-first") == Convention("1+gamma", "shift-first")


@pytest.mark.parametrize("stated", [{}, {"form": "gamma"}, {"order": "gamma-first"}])
def test_an_unknown_meaning_is_not_guessed(stated: dict[str, str]) -> None:
    with pytest.raises(SpecError) as caught:
        convention_of(Stranger(12), **stated)
    assert str(caught.value) == (
        "FiLM generator Stranger: expected a known family or a stated form and order, "
        f"got form={stated.get('form')!r}, order={stated.get('order')!r}; "
        "use form='gamma' or '1+gamma' and order='gamma-first' or 'shift-first'."
    )


@pytest.mark.parametrize(
    ("form", "order", "text"),
    [
        ("beta", "gamma-first", "form: expected one of gamma, 1+gamma, got 'beta'."),
        ("gamma", "unspecified", "order: expected one of gamma-first, shift-first, got 'unspecified'."),
    ],
)
def test_a_form_or_order_that_is_none_of_the_two_is_refused(form: str, order: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        convention_of(Stranger(12), form, order)
    assert str(caught.value) == f"FiLM generator Stranger: {text}"
    with pytest.raises(SpecError, match="^FiLMEntry 'f': (form|order): expected one of"):
        FiLMEntry("f", Stranger, form=form, order=order)


class Styled(nn.Module):
    def __init__(self, style_dim: int) -> None:
        super().__init__()
        self.position = nn.Linear(3, 3)
        self.style_dim = style_dim


@pytest.fixture
def with_third_party_family() -> Any:
    """A plugin with its own argument for the width, and a generator with another width in its first layer."""
    with registered(FiLMEntry("style", Styled, width="style_dim", form="1+gamma", order="shift-first")):
        yield


@pytest.mark.usefixtures("with_third_party_family")
def test_the_argument_of_a_third_party_family_works_for_its_class_and_instance(spec: ReadoutSpec) -> None:
    made = regplug.pair(spec, Styled)
    assert made.style_dim == 12
    assert regplug.pair(spec, made) is made
    assert "expected conditioning of width 9, got 12" in refusal(spec, Styled(9))
    assert convention_of(made) == Convention("1+gamma", "shift-first")


@pytest.mark.parametrize("film", [None, 3, dict, int])
def test_what_is_no_class_with_a_signature_is_refused_as_a_film_generator(film: Any) -> None:
    with pytest.raises(SpecError, match="^FiLM generator"):
        regplug.pair(regplug.resolve("mean", num_registers=4, hidden_dim=12), film)


@pytest.mark.parametrize(("word", "stated"), [("form", "1+gamma"), ("order", "shift-first")])
def test_the_meaning_of_a_known_family_cannot_be_contradicted(word: str, stated: str) -> None:
    film = KernelFiLMGenerator(12, 3, 1)
    with pytest.raises(SpecError, match=f"{word}: expected '.*', which its family means, got '{re.escape(stated)}'"):
        convention_of(film, **{word: stated})

    class Derived(KernelFiLMGenerator):
        """May mean something else."""

    assert getattr(convention_of(Derived(12, 3, 1), **{word: stated}), word) == stated


def test_families_are_looked_up_in_the_registry_that_is_given() -> None:
    class Wide(nn.Module):
        def __init__(self, breadth: int) -> None:
            super().__init__()
            self.breadth = breadth

    registry = registry_of(regplug.FiLMEntry("wide", Wide, width="breadth", order="shift-first"))
    spec = regplug.resolve("mean", num_registers=2, hidden_dim=6)
    assert regplug.pair(spec, Wide, registry=registry).breadth == 6
    assert regplug.pair(spec, Wide(6), registry=registry).breadth == 6
    assert convention_of(Wide(6), registry=registry).order == "shift-first"
    with pytest.raises(SpecError, match="use width= to name it"):
        regplug.pair(spec, Wide)


# ---- by registered name


class Nudge(nn.Module):
    """A plugin's generator: its own argument for the width, and pairs in the other order."""

    def __init__(self, style: int, features: int) -> None:
        super().__init__()
        self.style = style
        self.features = features
        self.layer = nn.Linear(style, 2 * features)

    def forward(self, conditioning: Tensor) -> list[tuple[Tensor, Tensor]]:
        shift, scale = self.layer(conditioning).chunk(2, -1)
        return [(shift, scale)]


class Applies(nn.Module):
    """Applies FiLM itself."""

    def __init__(self, style: int) -> None:
        super().__init__()
        self.style = style

    def forward(self, h: Tensor, conditioning: Tensor) -> Tensor:
        return h * conditioning


@pytest.mark.parametrize("name", ["kernel-film", "regplug:kernel-film"])
def test_a_registered_generator_is_built_by_its_name(spec, name):
    film = regplug.pair(spec, name, **SIZES)
    assert type(film) is KernelFiLMGenerator
    assert film.cond_dim == 12


@pytest.mark.parametrize("name", ["nudge", "acme:nudge"])
def test_a_plugins_generator_is_built_by_name_with_its_own_argument(spec, name):
    registry = registry_of(FiLMEntry("nudge", Nudge, width="style", form="1+gamma", order="shift-first"))
    film = regplug.pair(spec, name, registry=registry, features=5)
    assert type(film) is Nudge
    assert film.style == 12


def test_a_text_that_is_both_a_familys_name_and_a_class_means_the_family(spec):
    text = "regplug.nn.film:KernelFiLMGenerator"
    assert type(regplug.pair(spec, text, **SIZES)) is KernelFiLMGenerator
    registry = registry_of(FiLMEntry("KernelFiLMGenerator", Nudge, width="style"), distribution="regplug.nn.film")
    assert type(regplug.pair(spec, "regplug.nn.film:KernelFiLMGenerator", registry=registry, features=5)) is Nudge


@pytest.mark.parametrize("name", ["kernel-fim", "regplug:kernel-fim", "no-such", "", "a b", "acme:no-such"])
def test_an_unregistered_name_is_refused(spec, name):
    with pytest.raises(regplug.NameLookupError, match="FiLM generator"):
        regplug.pair(spec, name, **SIZES)


def test_a_misspelled_name_gets_the_closest(spec):
    with pytest.raises(regplug.NameLookupError, match=r"closest: kernel-film"):
        regplug.pair(spec, "kernel-fim", **SIZES)


def test_a_given_width_argument_overrides_the_family(spec):
    registry = registry_of(FiLMEntry("nudge", Nudge, width="style"))
    with pytest.raises(SpecError, match=r"'nudge': expected a constructor that names 'no_such', got \(style, features"):
        regplug.pair(spec, "nudge", registry=registry, width="no_such", features=5)


@pytest.mark.parametrize("word", ["context_dim", "dim_condition", "condition_shape", "llm_dim"])
def test_the_width_arguments_of_other_projects_are_known(spec, word):
    text = f"def __init__(self, {word}: int):\n    nn.Module.__init__(self)\n    self.{word} = {word}\n"
    members: dict[str, Any] = {}
    exec(text, {"nn": nn}, members)
    cls = type("Foreign", (nn.Module,), members)
    assert getattr(regplug.pair(spec, cls), word) == 12
    with pytest.raises(SpecError, match="expected conditioning of width 11, got 12"):
        regplug.pair(spec, cls(11))


def test_a_width_of_cross_attention_is_not_taken_for_that_of_film_next_to_it(spec):
    class Block(nn.Module):
        def __init__(self, cond_dim: int, context_dim: int = 3) -> None:
            super().__init__()
            self.given = (cond_dim, context_dim)

    assert regplug.pair(spec, Block).given == (12, 3)

"""What a user chose: the width is right, nothing is allocated, the class is unchanged, and the spec is plain data."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
import resource
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nvsubquadratic.lazy_config import LazyConfig, instantiate
from torch import Tensor, nn

import regplug
from regplug import PluginError, ReadoutEntry, ReadoutSpec, SpecError
from regplug.nn.readouts.averages import RegisterMean, RegisterPooling
from regplug.nn.readouts.concatenations import RegisterCompressConcat
from regplug.registry.options import json_options
from regplug.registry.spec import specify


def spec_of(build: Any, num: int = 4, dim: int = 6, sizes: dict[str, str] | None = None, **options: Any) -> ReadoutSpec:
    return specify(ReadoutEntry("mine", build, sizes=sizes or {}), num, dim, options)


def refusal(build: Any, num: int = 4, dim: int = 6, sizes: dict[str, str] | None = None, **options: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        spec_of(build, num, dim, sizes, **options)
    assert str(caught.value).startswith("strategy 'mine': ")
    return caught.value


class Reads(nn.Module):
    """Flattens the registers; the subclasses say the width, or not, or wrongly."""

    def forward(self, registers: Tensor) -> Tensor:
        return registers.flatten(1)


class SaysRight(Reads):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__()
        self.out_dim = num_registers * hidden_dim


class SaysWrong(Reads):
    out_dim = 25


class SaysAsProperty(SaysWrong):
    @property
    def out_dim(self) -> int:
        return 24


class SaysText(Reads):
    out_dim = "24"


class SaysTrue(Reads):
    out_dim = True


class SaysZero(Reads):
    out_dim = 0


class NoMetaForward(nn.Module):
    """Branches on a value, which no tensor on the meta device has."""

    def forward(self, registers: Tensor) -> Tensor:
        return registers.mean(1) if registers.sum().item() >= 0 else registers[:, 0]


class NoMetaForwardSaysRight(NoMetaForward):
    out_dim = 6


class NoMetaForwardSaysWrong(NoMetaForward):
    out_dim = 7


# ---- the one true width


@pytest.mark.parametrize(
    ("strategy", "options", "cond_dim"),
    [("mean", {}, 384), ("pool", {}, 384), ("concat", {}, 1536), ("compress-concat", {"compressed_dim": 96}, 384)],
)
def test_a_strategy_has_the_width_of_its_formula(strategy: str, options: dict[str, int], cond_dim: int) -> None:
    spec = regplug.resolve(strategy, num_registers=4, hidden_dim=384, **options)
    assert (spec.cond_dim, spec.measured) == (cond_dim, True)
    assert spec.build()(torch.zeros(2, 4, 384)).shape == (2, cond_dim)


@given(num=st.integers(1, 20), dim=st.integers(1, 500), width=st.integers(1, 200))
def test_the_width_of_compress_concat_is_r_times_c(num: int, dim: int, width: int) -> None:
    spec = regplug.resolve("compress-concat", num_registers=num, hidden_dim=dim, compressed_dim=width)
    assert spec.cond_dim == num * width


def test_the_width_of_the_published_networks() -> None:
    sizes = {"hidden_dim": 384, "compressed_dim": 96}
    widths = [regplug.resolve("compress-concat", num_registers=num, **sizes).cond_dim for num in (4, 8, 13, 14)]
    assert widths == [384, 768, 1248, 1344]


@pytest.mark.parametrize("build", [Reads, SaysRight, SaysAsProperty])
def test_a_width_is_measured_and_a_stated_one_agrees(build: type) -> None:
    spec = spec_of(build)
    assert (spec.cond_dim, spec.measured) == (24, True)


def test_a_wrong_out_dim_is_refused_with_both_widths() -> None:
    assert str(refusal(SaysWrong)) == ("strategy 'mine': out_dim: expected 24, which its forward gives, got 25.")


@pytest.mark.parametrize(("build", "shown"), [(SaysText, "'24'"), (SaysTrue, "True"), (SaysZero, "0")])
def test_an_out_dim_that_is_no_positive_integer_is_refused(build: type, shown: str) -> None:
    assert str(refusal(build)) == f"strategy 'mine': out_dim: expected a positive integer, got {shown}."


def test_the_out_dim_of_a_module_without_a_meta_forward_is_checked_when_it_is_built() -> None:
    right, wrong = spec_of(NoMetaForwardSaysRight), spec_of(NoMetaForwardSaysWrong)
    assert (right.cond_dim, right.measured) == (6, False)
    assert (wrong.cond_dim, wrong.measured) == (7, False)
    assert type(right.build()) is NoMetaForwardSaysRight
    with pytest.raises(SpecError, match=r"^strategy 'mine': out_dim: expected 6, which its forward gives, got 7\.$"):
        wrong.build()


class ForwardFails(nn.Module):
    """States a width, and its forward fails on any device."""

    out_dim = 6

    def forward(self, registers: Tensor) -> Tensor:
        return registers.reshape(7, 11, 13)


def test_a_forward_that_fails_when_it_is_built_is_a_spec_error_with_the_cause() -> None:
    spec = spec_of(ForwardFails)
    assert not spec.measured
    with pytest.raises(SpecError, match="^strategy 'mine': ") as caught:
        spec.build()
    assert type(caught.value.__cause__) is RuntimeError


def test_a_module_with_neither_out_dim_nor_meta_forward_is_refused_with_a_message() -> None:
    error = refusal(NoMetaForward)
    assert "expected an integer attribute out_dim or a forward that runs on the meta device, got neither" in str(error)
    assert isinstance(error.__cause__, RuntimeError)


class Gives(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, registers: Tensor) -> Any:
        given = {"pair": (registers, registers), "tokens": registers, "sum": registers.sum(), "one": registers[0]}
        return given[self.what]


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ("pair", "expected a tensor [B, cond_dim], got tuple."),
        ("tokens", "expected [2, cond_dim] for registers [2, 4, 6], got [2, 4, 6]."),
        ("sum", "expected [2, cond_dim] for registers [2, 4, 6], got []."),
        ("one", "expected [2, cond_dim] for registers [2, 4, 6], got [4, 6]."),
    ],
)
def test_a_forward_that_gives_something_else_is_refused(what: str, shown: str) -> None:
    assert str(refusal(Gives, what=what)) == f"strategy 'mine': {shown}"


# ---- sizes and options


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *((word, value) for word in ("num_registers", "hidden_dim") for value in (0, -1, True, 4.0, "4")),
        ("hidden_dim", None),
    ],
)
def test_a_size_that_is_no_positive_integer_is_refused(word: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        regplug.resolve("mean", **{"num_registers": 4, "hidden_dim": 8, word: value})
    assert str(caught.value) == f"strategy 'mean': {word}: expected a positive integer, got {value!r}."


class InAnotherWord(nn.Linear):
    """Its constructor calls D so: in_features."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__(in_features, width)

    def forward(self, registers: Tensor) -> Tensor:
        return super().forward(registers).amax(1)


def test_a_constructor_may_have_another_word_for_a_size() -> None:
    spec = spec_of(InAnotherWord, sizes={"in_features": "hidden_dim"}, width=5)
    assert (spec.cond_dim, spec.arguments) == (5, {"in_features": 6, "width": 5})
    assert spec.build().in_features == 6
    assert "expected option in_features: int" in str(refusal(InAnotherWord, width=5))


@pytest.mark.parametrize("sizes", [{"in_features": "dim"}, {"in_features": 3}, "hidden_dim", [("a", "hidden_dim")]])
def test_an_entry_maps_words_to_the_two_sizes_only(sizes: Any) -> None:
    with pytest.raises(SpecError, match="^ReadoutEntry 'mine': sizes: expected constructor words that mean"):
        ReadoutEntry("mine", InAnotherWord, sizes=sizes)


def test_an_option_of_the_wrong_type_is_refused_before_anything_is_built() -> None:
    with pytest.raises(
        SpecError, match=r"^strategy 'compress-concat': option 'compressed_dim': expected int, got '96'"
    ):
        regplug.resolve("compress-concat", num_registers=4, hidden_dim=8, compressed_dim="96")
    with pytest.raises(SpecError, match=r"expected option compressed_dim: int, got none\.$"):
        regplug.resolve("compress-concat", num_registers=4, hidden_dim=8)
    with pytest.raises(
        SpecError, match=r"option 'compresed_dim': .*; known: compressed_dim \(closest: compressed_dim\)"
    ):
        regplug.resolve("compress-concat", num_registers=4, hidden_dim=8, compresed_dim=2)
    with pytest.raises(SpecError, match=r"option 'compressed_dim': expected a known option, got 2; known: none\.$"):
        regplug.resolve("mean", num_registers=4, hidden_dim=8, compressed_dim=2)


class Refuses(Reads):
    def __init__(self, heads: int) -> None:
        super().__init__()
        if heads % 2:
            raise AssertionError("heads must be even")


def test_a_refusal_of_the_constructor_names_the_strategy_and_is_chained() -> None:
    error = refusal(Refuses, heads=3)
    said, _, place = str(error).partition(" (")
    assert said == (
        "strategy 'mine': expected sizes and options that its constructor takes, got heads=3: AssertionError: "
        "heads must be even"
    )
    assert re.fullmatch(r".*test_spec\.py:\d+\)", place)
    assert type(error.__cause__) is AssertionError
    with pytest.raises(SpecError, match="got num_registers=4, hidden_dim=8, compressed_dim=0: ") as caught:
        regplug.resolve("compress-concat", num_registers=4, hidden_dim=8, compressed_dim=0)
    assert "compressed_dim: expected a positive integer, got 0" in str(caught.value.__cause__)


class NoModule:
    def __init__(self, hidden_dim: int) -> None: ...


def test_a_callable_that_makes_no_module_is_refused() -> None:
    assert str(refusal(NoModule)) == "strategy 'mine': expected an nn.Module, got NoModule."


def test_a_callable_without_a_signature_is_refused() -> None:
    assert "signature" in str(refusal(dict))


def test_a_reference_that_cannot_be_imported_is_a_plugin_error() -> None:
    with pytest.raises(PluginError, match="^strategy 'mine': expected to import 'surely_not_there:Class', got ModuleN"):
        spec_of("surely_not_there:Class")


# ---- nothing is allocated, nothing is moved


def test_huge_sizes_are_resolved_without_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=10**7, compressed_dim=10**6)
    assert spec.cond_dim == 4 * 10**6
    assert regplug.resolve("concat", num_registers=10**5, hidden_dim=10**7).cond_dim == 10**12
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 10**8  # the projection alone would be 4 * 10**13 bytes


class Draws(Reads):
    """Draws numbers while it is made, as every layer does."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden_dim, 4), nn.Dropout(0.5), nn.Linear(4, hidden_dim))
        self.query = nn.Parameter(torch.randn(hidden_dim))
        nn.init.trunc_normal_(self.layers[0].weight, std=0.02)
        nn.init.orthogonal_(self.layers[2].weight)

    def forward(self, registers: Tensor) -> Tensor:
        return self.layers(registers * self.query).mean(1)


def test_resolving_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    random.seed(0)
    states = torch.get_rng_state(), random.getstate()
    spec_of(Draws)
    regplug.resolve("compress-concat", num_registers=4, hidden_dim=8, compressed_dim=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    spec_of(Draws).build()
    assert not torch.equal(torch.get_rng_state(), states[0])


def test_building_draws_what_the_class_itself_draws() -> None:
    torch.manual_seed(4)
    made = regplug.create("compress-concat", num_registers=4, hidden_dim=8, compressed_dim=2)
    torch.manual_seed(4)
    assert torch.equal(made.compress.weight, RegisterCompressConcat(4, 8, 2).compress.weight)


class Normed(nn.Module):
    """Batch norm over the registers' mean; ``meta`` says whether its forward runs on the meta device."""

    def __init__(self, hidden_dim: int, meta: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(hidden_dim)
        self.frozen = nn.BatchNorm1d(hidden_dim).eval()
        self.out_dim = hidden_dim
        self.meta = meta

    def forward(self, registers: Tensor) -> Tensor:
        mean = self.norm(registers.mean(1))
        return mean if self.meta or mean.sum().item() <= 0 else mean + 0


@pytest.mark.parametrize("meta", [True, False])
def test_probing_moves_no_running_statistics_and_no_mode(meta: bool) -> None:
    made = spec_of(Normed, meta=meta).build()
    fresh = nn.BatchNorm1d(6)
    for name, value in fresh.state_dict().items():
        assert torch.equal(made.norm.state_dict()[name], value)
    assert (made.training, made.norm.training, made.frozen.training) == (True, True, False)
    made(torch.randn(3, 4, 6))
    assert not torch.equal(made.norm.running_mean, fresh.running_mean)


# ---- the class itself


@pytest.mark.parametrize(
    ("strategy", "cls", "options"),
    [
        ("mean", RegisterMean, {}),
        ("pool", RegisterPooling, {}),
        ("compress-concat", RegisterCompressConcat, {"compressed_dim": 2}),
    ],
)
def test_building_gives_the_class_itself_in_the_default_dtype(
    strategy: str, cls: type, options: dict[str, int]
) -> None:
    spec = regplug.resolve(strategy, num_registers=4, hidden_dim=8, **options)
    assert spec.readout_class is cls
    first, second = spec.build(), spec.build()
    assert type(first) is cls
    assert first is not second
    assert first.training
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in first.parameters())
    with torch.device("meta"):
        assert all(p.is_meta for p in spec.build().parameters())


def test_creating_works_as_the_target_of_a_lazy_configuration() -> None:
    config = LazyConfig(regplug.create)(strategy="compress-concat", num_registers=4, hidden_dim=8, compressed_dim=2)
    made = instantiate(config)
    assert type(made) is RegisterCompressConcat
    assert made.out_dim == 8


# ---- plain data


@pytest.fixture
def spec() -> ReadoutSpec:
    return regplug.resolve("compress-concat", num_registers=4, hidden_dim=8, compressed_dim=2)


def test_a_spec_has_a_json_form_that_resolves_to_itself(spec: ReadoutSpec) -> None:
    values = json.loads(json.dumps(spec.as_dict()))
    assert values == {
        "strategy": "regplug:compress-concat",
        "num_registers": 4,
        "hidden_dim": 8,
        "options": {"compressed_dim": 2},
        "cond_dim": 8,
    }
    options = values.pop("options")
    del values["cond_dim"]
    assert regplug.resolve(values.pop("strategy"), **values, **options) == spec


class TakesAnything(Reads):
    def __init__(self, value: Any) -> None:
        super().__init__()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object, b"x", 1 << 53], ids=str)
def test_an_option_without_a_json_form_is_refused(value: object) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(TakesAnything, value=value)
    assert str(caught.value) == (
        f"strategy 'mine': option 'value': expected a JSON value, got {value!r}; only such options can be stored."
    )


def test_a_tuple_is_stored_as_the_list_that_json_gives_back() -> None:
    assert spec_of(TakesAnything, value=(1, (2, None))).as_dict()["options"] == {"value": [1, [2, None]]}


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_spec_is_copied_and_pickled_as_data(spec: ReadoutSpec, way: Any) -> None:
    again = way(spec)
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.as_dict() == spec.as_dict()
    assert type(again.build()) is RegisterCompressConcat


def test_specs_are_equal_exactly_when_what_was_chosen_is(spec: ReadoutSpec) -> None:
    same = regplug.resolve("regplug:compress-concat", num_registers=4, hidden_dim=8, compressed_dim=2)
    others = [
        regplug.resolve("compress-concat", num_registers=2, hidden_dim=8, compressed_dim=4),
        regplug.resolve("compress-concat", num_registers=4, hidden_dim=9, compressed_dim=2),
        regplug.resolve("pool", num_registers=4, hidden_dim=8),
    ]
    assert same == spec
    assert len({spec, same, *others}) == 4
    assert all(other != spec for other in others)
    assert spec_of(TakesAnything, value=1) == spec_of(TakesAnything, value=1) != spec_of(TakesAnything, value=2)


def test_a_spec_is_frozen_and_keeps_its_own_options() -> None:
    options = {"value": 1}
    spec = specify(ReadoutEntry("mine", TakesAnything), 4, 6, options)
    options["value"] = 2
    assert dict(spec.options) == {"value": 1}
    with pytest.raises(FrozenInstanceError):
        spec.cond_dim = 3
    with pytest.raises(TypeError):
        spec.options["value"] = 3


def test_a_spec_owns_its_options_down_to_the_innermost_list() -> None:
    inner = {"widths": [1, 2]}
    spec = specify(ReadoutEntry("mine", TakesAnything), 4, 6, {"value": inner})
    inner["widths"].append(3)
    assert spec.as_dict()["options"] == {"value": {"widths": [1, 2]}}
    with pytest.raises(TypeError):
        spec.options["value"]["widths"] = ()
    with pytest.raises(AttributeError):
        spec.options["value"]["widths"].append(3)
    spec.arguments["value"]["widths"].append(3)  # the constructor's own copy
    assert spec.arguments["value"] == {"widths": [1, 2]}
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_dictionary_with_keys_that_are_not_texts_has_no_json_form() -> None:
    assert json_options("strategy 'x'", {"table": {"1": [2]}}) == {"table": {"1": [2]}}
    for value in ({1: 2}, [{"a": {2: 3}}]):
        with pytest.raises(SpecError, match="option 'table': expected a JSON value"):
            json_options("strategy 'x'", {"table": value})


def test_a_size_or_a_width_that_no_manifest_can_hold_is_refused() -> None:
    with pytest.raises(SpecError, match="num_registers: expected less than 2.53, got 1000000000000000000000"):
        regplug.resolve("mean", num_registers=10**21, hidden_dim=8)
    with pytest.raises(SpecError, match="cond_dim: expected less than 2.53, got 1000000000000000000"):
        regplug.resolve("concat", num_registers=10**9, hidden_dim=10**9)


def test_an_error_of_torch_is_reported_on_one_line() -> None:
    with pytest.raises(SpecError) as error:
        regplug.resolve("compress-concat", num_registers=4, hidden_dim=8, compressed_dim=10**30)
    assert "\n" not in str(error.value)


def test_a_constructor_that_exits_does_not_end_its_host() -> None:
    class Exits(torch.nn.Module):
        def __init__(self) -> None:
            raise SystemExit(0)

    with pytest.raises(SpecError, match="expected sizes and options that its constructor takes"):
        specify(regplug.ReadoutEntry("exits", Exits), 4, 8, {})

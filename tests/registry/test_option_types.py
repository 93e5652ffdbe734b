"""The type of an option, in each way in which a constructor or a configuration class can state it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NotRequired, Required, TypedDict, TypeVar

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from support.plugins import registry_of
from torch import nn

import regplug
from regplug import SpecError
from regplug.registry.json_text import WrongValueError
from regplug.registry.option_values import read
from regplug.registry.options import bind, stored_options
from regplug.registry.type_hints import format_hint, hints_of

if TYPE_CHECKING:
    from collections.abc import Iterable  # a word of typing's: known all the same

    from nowhere import Hidden  # type: ignore[import-not-found]

T = TypeVar("T")


class Norm(enum.Enum):
    NONE = "none"
    LAYER = "layer"


class Text(str, enum.Enum):
    RMS = "rms"
    LAYER = "layer"


class Odd(enum.Enum):
    NAN = float("nan")
    LARGE = 1 << 60
    HALF = "\ud800"


class Access(enum.Flag):
    BOTH = 3  # no name for its bits
    OTHER = 4


@dataclasses.dataclass
class Box(Generic[T]):
    item: T


@dataclasses.dataclass
class Boxes(Box[list[T]], Generic[T]):  # T means another type in the base
    more: T


class NormBox(Box[Norm]): ...


@dataclasses.dataclass
class Scaled:
    size: int
    scale: dataclasses.InitVar[int] = 1

    def __post_init__(self, scale: int) -> None:
        self.total = self.size * scale


@dataclasses.dataclass
class Computed:
    size: int = 1
    double: int = dataclasses.field(init=False)
    scales: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        self.double = 2 * self.size

    @functools.cached_property
    def half(self) -> int:
        return self.size // 2


@dataclasses.dataclass
class Keeps:
    scales: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.scales = torch.zeros(3)


@dataclasses.dataclass
class Exits:
    size: int = 1

    def __post_init__(self) -> None:
        raise SystemExit(0)


@dataclasses.dataclass
class Activated:
    size: int = 1
    act: type[nn.Module] = nn.GELU
    late: Hidden | None = None
    early: Hidden = 3


@dataclasses.dataclass
class Derived(Activated):
    norm: Norm = Norm.NONE


class Sorted(NamedTuple):
    low: int
    high: int

    @classmethod
    def of(cls, low: int, high: int) -> Sorted:
        return cls(low, high)


class Ordered(Sorted):
    def __new__(cls, low: int, high: int) -> Ordered:
        if low > high:
            raise ValueError("low > high")
        return super().__new__(cls, low, high)


class Acting(NamedTuple):
    size: int = 1
    act: type[nn.Module] = nn.GELU


class Fields(TypedDict):
    size: int
    norm: NotRequired[Norm]


class Loose(TypedDict, total=False):
    size: Required[int]
    norm: Norm


@dataclasses.dataclass
class Chain:
    parts: list[Chain | Ring]


@dataclasses.dataclass
class Ring:
    parts: list[Chain | Ring]


def taking(hint: Any) -> Callable[..., None]:
    def build(option: Any) -> None: ...

    build.__annotations__ = {"option": hint}
    return build


def through(hint: Any, value: object) -> tuple[Any, Any]:
    stored = stored_options("x", taking(hint), {}, {"option": value})
    again = json.loads(json.dumps(stored, sort_keys=True))
    return stored["option"], bind("x", taking(hint), {}, again)["option"]


@pytest.mark.parametrize(
    ("hint", "value", "stored", "passed"),
    [
        (Odd, Odd.LARGE, "LARGE", Odd.LARGE),
        (Odd, Odd.NAN, "NAN", Odd.NAN),
        (Odd, Odd.HALF, "HALF", Odd.HALF),
        (Access, "BOTH", 3, Access.BOTH),
        (Access, 7, 7, Access.BOTH | Access.OTHER),
        (Box[Norm], {"item": "layer"}, {"item": "layer"}, Box(Norm.LAYER)),
        (Box[Norm], Box(Norm.LAYER), {"item": "layer"}, Box(Norm.LAYER)),
        (NormBox, {"item": "layer"}, {"item": "layer"}, NormBox(Norm.LAYER)),
        (Boxes[Norm], {"item": [], "more": "layer"}, {"item": [], "more": "layer"}, Boxes([], Norm.LAYER)),
        (Computed, {"size": 2}, {"size": 2}, Computed(2)),
        (Activated, {}, {"size": 1, "late": None, "early": 3}, Activated()),
        (Derived, {"norm": "layer"}, {"size": 1, "late": None, "early": 3, "norm": "layer"}, Derived(norm=Norm.LAYER)),
        (Acting, {"size": 2}, {"size": 2}, Acting(2)),
        (Ordered, [1, 2], {"low": 1, "high": 2}, Ordered(1, 2)),
        (Fields, {"size": 1}, {"size": 1}, {"size": 1}),
        (Fields, {"size": 1, "norm": "layer"}, {"norm": "layer", "size": 1}, {"norm": Norm.LAYER, "size": 1}),
        (Loose, {"size": 1}, {"size": 1}, {"size": 1}),
        (dict[Norm, int], {"LAYER": 1}, {"layer": 1}, {Norm.LAYER: 1}),
        (dict[Text, int], {Text.RMS: 1}, {"rms": 1}, {Text.RMS: 1}),
        (torch.Size, [1, 2], [1, 2], torch.Size([1, 2])),
        (Final[int], 3, 3, 3),
        (Norm, numpy.str_("layer"), "layer", Norm.LAYER),
        (Any, numpy.float64(0.5), 0.5, 0.5),
        (Any, {numpy.str_("k"): 1}, {"k": 1}, {"k": 1}),
    ],
)  # fmt: skip
def test_a_value_is_stored_as_json_and_read_back_as_what_the_hint_says(hint, value, stored, passed) -> None:
    found, argument = through(hint, value)
    assert found == stored
    assert all(type(key) is str for key in found) if isinstance(found, dict) else type(found) is type(stored)
    assert type(argument) is type(passed)
    assert argument == passed


@pytest.mark.parametrize(
    ("hint", "value", "wanted"),
    [
        (Access, 8, "Access (3, 4), got 8"),
        (Box[Norm], {"item": "bogus"}, "item: expected Norm ('none', 'layer'), got 'bogus'"),
        (NormBox, {"item": "bogus"}, "item: expected Norm"),
        (Boxes[Norm], {"item": ["bogus"], "more": "none"}, "item: expected list"),
        (Scaled, Scaled(1, scale=5), "read as Scaled(size=1) with other attributes"),
        (Scaled, {"size": 1, "scale": 5}, "unknown: scale"),
        (Keeps, {}, "with other attributes"),
        (Exits, {}, "got {}; SystemExit: 0"),
        (Activated, {"act": "GELU"}, "act: expected type"),
        (Activated, {"late": 3}, "late: its type cannot be read at run time: import it outside of TYPE_CHECKING"),
        (Activated, {"early": "x"}, "early: expected int, got 'x'"),
        (Derived, {"norm": "bogus"}, "norm: expected Norm"),
        (Ordered, [2, 1], "Ordered (low, high), got [2, 1]; ValueError: low > high"),
        (Fields, {}, "Fields (size, norm), got {}; missing: size"),
        (Loose, {}, "missing: size"),
        (dict[Norm, int], {"none": 1, "NONE": 2}, "two keys mean <Norm.NONE: 'none'>"),
        (dict[int, int], {1: 2}, "the keys of a JSON object are texts"),
        (Any, {"\ud800": 1}, "expected a JSON value"),
        (Any, [[[]]] * 60_000, "at most 131072 brackets and commas"),
        (str, "x" * (1 << 20), "all options together may have 1048576 characters"),
        (Any, OmegaConf.create({"a": "???"}), "MissingMandatoryValue: Missing mandatory value: a"),
    ],
)
def test_what_cannot_be_checked_or_stored_is_refused(hint, value, wanted) -> None:
    with pytest.raises(SpecError) as caught:
        through(hint, value)
    assert str(caught.value).startswith("x: option 'option': expected "), caught.value
    assert wanted in str(caught.value)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_an_option_is_as_deep_as_a_manifest_may_be_and_no_deeper(tmp_path) -> None:
    assert through(Any, nested(62))
    with pytest.raises(SpecError, match="nested deeper than 64"):
        through(Any, nested(63))


def test_an_option_name_that_a_bundle_cannot_hold_is_refused() -> None:
    def build(**options: int) -> None: ...

    for name in ("a b", "", "größe", "\ud800", "x" * 129):
        with pytest.raises(SpecError, match="expected a name of at most 128 ASCII letters"):
            stored_options("x", build, {}, {name: 1})


def test_types_that_hold_each_other_do_not_double_the_work_at_each_level() -> None:
    value: Any = {"parts": ["x"]}
    for _ in range(28):
        value = {"parts": [value]}
    with pytest.raises(SpecError, match="expected Chain"):  # 2^28 attempts would take a day
        through(Chain, value)
    assert read({"parts": [{"parts": []}]}, Ring) == Ring([Chain([])])


def test_a_value_without_a_repr_is_named_by_its_class() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(SpecError, match="expected a known option, got <Mute object>"):
        bind("x", taking(int), {}, {"opinion": Mute()})


def test_hints_that_hold_fields_show_their_names() -> None:
    assert [format_hint(one) for one in (Fields, Ordered, Activated)] == [
        "Fields (size, norm)",
        "Ordered (low, high)",
        "Activated (size, act, late, early)",
    ]
    assert hints_of(Boxes[int].__origin__, (int,)) == {"item": list[int], "more": int}


# ---- however the constructor is written


def traced(function: Any) -> Any:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return call


class Reads(nn.Module):
    def __init__(self, hidden_dim: int, norm: Norm, sizes: Iterable[int] = (), late: Hidden = None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_dim))
        self.norm, self.sizes = norm, sizes

    def forward(self, registers):
        return registers.mean(1) * self.weight


class Wrapped(Reads):
    @traced
    def __init__(self, hidden_dim: int, norm: Norm, late: Hidden = None):
        super().__init__(hidden_dim, norm)


class Meta(type):
    def __call__(cls, hidden_dim: int, norm: Norm):
        return super().__call__(hidden_dim, norm)


class ByMetaclass(Reads, metaclass=Meta):
    def __init__(self, hidden_dim, norm):
        super().__init__(hidden_dim, norm)


class ByNew(Reads):
    def __new__(cls, hidden_dim: int, norm: Norm):
        return super().__new__(cls)

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)


class Nested(Reads):
    class Kind(enum.Enum):
        ONE = "layer"

    def list(self): ...

    def __init__(self, hidden_dim: int, norm: Kind, sizes: list[int] | None = None):
        super().__init__(hidden_dim, norm, sizes)


class Inherited(Reads): ...


def factory(hidden_dim: int, norm: Norm) -> nn.Module:
    return Reads(hidden_dim, norm)


class Factory:
    def __call__(self, hidden_dim: int, norm: Norm) -> nn.Module:
        return Reads(hidden_dim, norm)

    def method(self, hidden_dim: int, norm: Norm) -> nn.Module:
        return Reads(hidden_dim, norm)


BUILDS = [Reads, Wrapped, ByMetaclass, ByNew, Nested, Inherited, factory, Factory(), Factory().method]
BUILDS += [functools.partial(factory), functools.partial(functools.partial(Wrapped), late=None)]


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: getattr(build, "__name__", type(build).__name__))
def test_the_types_of_a_constructor_hold_however_it_is_written(build) -> None:
    sizes = {"hidden_dim": 8}
    passed = bind("x", build, sizes, stored_options("x", build, sizes, {"norm": "layer"}))
    assert isinstance(build(**passed).norm, enum.Enum)
    with pytest.raises(SpecError, match="option 'norm': expected .* got 'bogus'"):
        bind("x", build, sizes, {"norm": "bogus"})


class Joins(nn.Module):
    """The order of its output is that of its option."""

    def __init__(self, picks: Mapping[str, int]):
        super().__init__()
        self.picks = list(picks.values())

    def forward(self, registers):
        return torch.cat([registers[:, pick] for pick in self.picks], 1)


class JoinsOpen(Joins):
    def __init__(self, **picks: int):
        super().__init__(picks)


class Generates(nn.Module):
    def __init__(self, cond_dim: int, scales: dict[str, float]):
        super().__init__()
        self.cond_dim, self.scales = cond_dim, scales

    def forward(self, conditioning):
        return [(conditioning * scale, conditioning) for scale in self.scales.values()]


@pytest.fixture
def registry() -> regplug.Registry:
    return registry_of(
        regplug.ReadoutEntry("joins", Joins),
        regplug.ReadoutEntry("joins-open", JoinsOpen),
        regplug.FiLMEntry("generates", Generates, width="cond_dim", form="gamma", order="gamma-first"),
    )


@pytest.mark.parametrize(
    ("name", "options"), [("joins", {"picks": {"z": 0, "a": 1}}), ("joins-open", {"z": 0, "a": 1})]
)
def test_a_mapping_has_one_order_before_and_after_a_bundle(registry, tmp_path, name, options) -> None:
    spec = registry.resolve(name, num_registers=4, hidden_dim=8, **options)
    readout = spec.build()
    registers = torch.randn(2, 4, 8)
    regplug.export(spec, readout, tmp_path / "b", backends=[], registry=registry)
    assert torch.equal(regplug.load(tmp_path / "b", registry=registry)(registers), readout(registers))


def test_a_module_built_with_an_order_that_no_bundle_has_is_refused_by_export(registry, tmp_path) -> None:
    spec = registry.resolve("joins", num_registers=4, hidden_dim=8, picks={"a": 0})
    layout = regplug.TokenLayout(num_registers=4, hidden_dim=8, start=1)
    for scales in ({"a": 1.0, "z": 2.0}, {"z": 2.0, "a": 1.0}):
        film = regplug.pair(spec, "generates", registry=registry, scales=scales)
        assert list(film.scales) == ["a", "z"]
    whole = regplug.Conditioner(layout, spec.build(), Generates(8, {"z": 2.0, "a": 1.0}), registry=registry)
    with pytest.raises(regplug.ExportError, match="expected a module that its spec rebuilds"):
        regplug.export(spec, whole, tmp_path / "b", backends=[], registry=registry)


def test_what_resolve_takes_the_reader_of_a_manifest_takes() -> None:
    from regplug.registry.json_text import parse_json

    with pytest.raises(WrongValueError):  # the rule that options are held to is the reader's own
        parse_json(json.dumps({"options": {"_": nested(63)}}).encode())

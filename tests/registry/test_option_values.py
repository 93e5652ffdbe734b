"""An option reaches the constructor as its type hint says, is stored as JSON, and is read back as the same value."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, Protocol, TypedDict, TypeVar

import pytest
import torch
from omegaconf import OmegaConf
from support.errors import message_of
from support.plugins import registry_of
from torch import nn

import regplug
from regplug import SpecError
from regplug.registry.options import bind, describe_signature, stored_options
from regplug.registry.stored_values import same
from regplug.registry.type_hints import choices


class Norm(enum.Enum):
    NONE = "none"
    LAYER = "layer"


class Depth(enum.IntEnum):
    ONE = 1
    TWO = 2


class Text(str, enum.Enum):
    RMS = "rms"
    LAYER = "layer"


class Parts(enum.Flag):
    CLS = 1
    PATCHES = 2
    REGISTERS = 4


class Kernel(enum.Enum):
    SMALL = (3, 3)
    LARGE = (7, 7)


class Swapped(enum.Enum):
    A = "B"
    B = "A"


@dataclasses.dataclass
class Config:
    eps: float = 1e-5
    norm: Norm = Norm.NONE
    widths: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Doubles:
    size: int

    def __post_init__(self) -> None:
        self.size *= 2


@dataclasses.dataclass
class Refuses:
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("size must be positive")


class Pair(NamedTuple):
    first: int
    second: Norm = Norm.LAYER


class Fields(TypedDict, total=False):
    eps: float
    norm: Norm


class Speaks(Protocol):
    def speak(self) -> None: ...


Count = NewType("Count", int)
Bounded = TypeVar("Bounded", bound=int)


def taking(hint: Any, default: Any = dataclasses.MISSING) -> Callable[..., None]:
    def build(option: Any) -> None: ...

    build.__annotations__ = {"option": hint}
    build.__defaults__ = None if default is dataclasses.MISSING else (default,)
    return build


def through(hint: Any, value: object) -> tuple[Any, Any]:
    """What is stored, and what the constructor gets of it after a way through JSON."""
    stored = stored_options("x", taking(hint), {}, {"option": value})
    again = json.loads(json.dumps(stored))
    return stored["option"], bind("x", taking(hint), {}, again)["option"]


refusal = functools.partial(message_of, through)


TAKEN = [
    (Norm, "layer", "layer", Norm.LAYER),
    (Norm, "LAYER", "layer", Norm.LAYER),
    (Norm, Norm.LAYER, "layer", Norm.LAYER),
    (Norm | None, None, None, None),
    (Optional[Norm], "none", "none", Norm.NONE),  # noqa: UP045
    (str | Norm, "layer", "layer", Norm.LAYER),
    (str | Norm, "other", "other", "other"),
    (str | Norm, Norm.LAYER, "layer", Norm.LAYER),
    (list[Norm], ["none", "LAYER"], ["none", "layer"], [Norm.NONE, Norm.LAYER]),
    (dict[str, Norm], {"k": "none"}, {"k": "none"}, {"k": Norm.NONE}),
    (tuple[Norm, int], ["none", 1], ["none", 1], (Norm.NONE, 1)),
    (Depth, 2, 2, Depth.TWO),
    (Depth, "TWO", 2, Depth.TWO),
    (int, Depth.TWO, 2, 2),
    (Text, "rms", "rms", Text.RMS),
    (str, Text.RMS, "rms", "rms"),
    (Parts, 5, 5, Parts.CLS | Parts.REGISTERS),
    (Parts, Parts.CLS | Parts.PATCHES, 3, Parts.CLS | Parts.PATCHES),
    (Kernel, "LARGE", "LARGE", Kernel.LARGE),
    (Kernel, Kernel.LARGE, "LARGE", Kernel.LARGE),
    (Swapped, "A", "A", Swapped.B),  # its value comes first
    (Swapped, Swapped.A, "B", Swapped.A),
    (Literal["a", Norm.LAYER], "layer", "layer", Norm.LAYER),
    (Literal[1, "1"], "1", "1", "1"),
    (Config, {}, {"eps": 1e-5, "norm": "none", "widths": []}, Config()),
    (
        Config,
        {"norm": "layer", "widths": [1]},
        {"eps": 1e-5, "norm": "layer", "widths": [1]},
        Config(1e-5, Norm.LAYER, [1]),
    ),
    (Config, Config(2.0), {"eps": 2.0, "norm": "none", "widths": []}, Config(2.0)),
    (Config | None, None, None, None),
    (list[Config], [{}], [{"eps": 1e-5, "norm": "none", "widths": []}], [Config()]),
    (Pair, [1, "none"], {"first": 1, "second": "none"}, Pair(1, Norm.NONE)),
    (Pair, {"first": 1}, {"first": 1, "second": "layer"}, Pair(1)),
    (Fields, {"norm": "none"}, {"norm": "none"}, {"norm": Norm.NONE}),
    (torch.dtype, "bfloat16", "bfloat16", torch.bfloat16),
    (torch.dtype, "torch.float16", "float16", torch.float16),
    (torch.dtype, torch.float64, "float64", torch.float64),
    (torch.dtype | None, None, None, None),
    (Count, 3, 3, 3),
    (Annotated[int, "positive"], 3, 3, 3),
    (Bounded, 3, 3, 3),
    (Sequence[int], (1, 2), [1, 2], [1, 2]),
    (Mapping[str, float], {"a": 1}, {"a": 1}, {"a": 1}),
    (Any, (1, {"a": (2,)}), [1, {"a": [2]}], [1, {"a": [2]}]),
    (object, "x", "x", "x"),
    (Callable | None, None, None, None),
    (type[nn.Module] | None, None, None, None),
    (list[int], OmegaConf.create([1, 2]), [1, 2], [1, 2]),
    (Any, OmegaConf.create({"a": [1, {"b": 2}]}), {"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}),
    (Config, OmegaConf.create({"widths": [3]}), {"eps": 1e-5, "norm": "none", "widths": [3]}, Config(widths=[3])),
]


@pytest.mark.parametrize(("hint", "value", "stored", "passed"), TAKEN)
def test_a_value_is_stored_as_json_and_read_back_as_what_the_hint_says(hint, value, stored, passed) -> None:
    found, argument = through(hint, value)
    assert same(found, stored), found
    assert type(argument) is type(passed)
    assert argument == passed


REFUSED = [
    (Norm, "bogus", "Norm ('none', 'layer'), got 'bogus'"),
    (Norm, "Layer", "Norm ('none', 'layer')"),
    (Depth, True, "Depth (1, 2), got True"),
    (Depth, 1.0, "Depth (1, 2), got 1.0"),
    (Depth, 3, "Depth (1, 2), got 3"),
    (Text, "", "Text ('rms', 'layer')"),
    (Parts, 8, "Parts (1, 2, 4), got 8"),
    (Parts, -1, "Parts (1, 2, 4), got -1"),
    (Kernel, [3, 3], "Kernel ('SMALL', 'LARGE'), got [3, 3]"),
    (list[Norm], ["none", "x"], "got ['none', 'x']"),
    (Config, {"esp": 1.0}, "unknown: esp"),
    (Config, {"norm": "x"}, "norm: expected Norm ('none', 'layer'), got 'x'"),
    (Config, 3, "Config (eps, norm, widths), got 3"),
    (Config, Doubles(1), "Config (eps, norm, widths)"),
    (Refuses, {}, "missing: size"),
    (Refuses, {"size": 0}, "size must be positive"),
    (Doubles, {"size": 2}, "expected a value that its stored form gives back"),
    (Doubles, Doubles(2), "expected a value that its stored form gives back"),
    (Pair, [1], "Pair (first, second), got [1]"),
    (Pair, {"second": "none"}, "missing: first"),
    (Fields, {"norms": 1}, "unknown: norms"),
    (torch.dtype, "float33", "torch.dtype, got 'float33'"),
    (torch.dtype, "nn", "torch.dtype, got 'nn'"),
    (torch.dtype, "Tensor", "torch.dtype"),
    (torch.device, "cpu", "device, got 'cpu'"),
    (torch.device, torch.device("cpu"), "expected a JSON value"),
    (type[nn.Module], "GELU", "got 'GELU'"),
    (type[nn.Module], nn.GELU, "expected a JSON value"),
    (Callable, "gelu", "Callable, got 'gelu'"),
    (Callable, len, "expected a JSON value"),
    (Callable[[int], int], len, "expected a JSON value"),
    (nn.Module, nn.GELU(), "expected a JSON value"),
    (torch.Tensor, torch.zeros(1), "expected a JSON value"),
    (Speaks, "x", "got 'x'"),
    (set[int], [1], "got [1]"),
    (set[int], {1}, "expected a JSON value"),
    (bytes, b"x", "expected a JSON value"),
    (complex, 1j, "expected a JSON value"),
    (Any, Norm.LAYER, "expected a value that its stored form gives back"),
    (Any, Text.RMS, "expected a value that its stored form gives back"),
    (Any, Config(), "expected a value that its stored form gives back"),
    (Any, torch.float32, "expected a value that its stored form gives back"),
    (Any, {1: 2}, "expected a JSON value"),
    (Any, "\ud800", "expected a JSON value"),
    (int, 1 << 53, "expected a JSON value"),
    (float, float("inf"), "expected a JSON value"),
    (bool, "False", "expected bool, got 'False'; use false in JSON and on the command line"),
    (int | None, "None", "use null in JSON and on the command line"),
    (Count, "3", "expected int, got '3'"),
    (Bounded, "3", "got '3'"),
    (Literal["a", Norm.LAYER], "none", "got 'none'"),
]


@pytest.mark.parametrize(("hint", "value", "wanted"), REFUSED)
def test_what_cannot_be_checked_or_stored_is_refused(hint, value, wanted) -> None:
    text = refusal(hint, value)
    assert text.startswith("x: option 'option': expected "), text
    assert wanted in text


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "nested too deep" in refusal(Any, endless)


class Unannotated(nn.Module):
    def __init__(
        self,
        hidden_dim,
        encode=True,
        count=3,
        rate=0.0,
        name="x",
        kernel=(3, 3),
        heads=[4],  # noqa: B006 - as users write it
        norm=Norm.NONE,
        dtype=torch.float32,
        act=nn.GELU,
        anything=None,
    ):
        super().__init__()
        self.given = (encode, count, rate, name, kernel, heads, norm, dtype, act, anything)

    def forward(self, registers):
        return registers.mean(1)


def unannotated(**options: Any) -> Any:
    registry = registry_of(regplug.ReadoutEntry("mine", Unannotated))
    return registry.resolve("mine", num_registers=4, hidden_dim=8, **options)


@pytest.mark.parametrize(
    ("option", "good", "passed", "bad"),
    [
        ("encode", False, False, "False"),
        ("encode", False, False, 0),
        ("count", 4, 4, 4.0),
        ("count", 4, 4, True),
        ("rate", 1, 1, "1"),
        ("name", "y", "y", 1),
        ("kernel", [5, 5], (5, 5), 5),
        ("heads", (1,), [1], "1"),
        ("norm", "layer", Norm.LAYER, "bogus"),
        ("dtype", "float64", torch.float64, "floaty"),
        ("act", None, None, nn.ReLU),
        ("act", None, None, "relu"),
        ("anything", {"a": 1}, {"a": 1}, object()),
    ],
)
def test_an_option_without_annotation_has_the_type_of_its_default(option, good, passed, bad) -> None:
    if option != "act":  # a class is no option at all
        assert passed in unannotated(**{option: good}).build().given
    with pytest.raises(SpecError, match=f"option '{option}': expected"):
        unannotated(**{option: bad})


def test_each_module_gets_its_own_lists() -> None:
    spec = unannotated(heads=[1, 2])
    spec.build().given[5].append(3)
    assert spec.build().given[5] == [1, 2]


def test_a_spec_with_an_enum_is_pickled_stored_and_shown_as_json() -> None:
    spec = unannotated(norm=Norm.LAYER)
    assert dict(spec.options) == {"norm": "layer"}
    assert spec == unannotated(norm="LAYER")
    assert pickle.loads(pickle.dumps(spec)).build().given[6] is Norm.LAYER
    assert json.loads(json.dumps(spec.as_dict()))["options"] == {"norm": "layer"}


def test_open_options_have_the_type_that_is_annotated() -> None:
    def build(**options: int) -> None: ...

    assert bind("x", build, {}, {"a": 1}) == {"a": 1}
    with pytest.raises(SpecError, match="option 'a': expected int, got '1'"):
        bind("x", build, {}, {"a": "1"})


def test_none_is_taken_where_it_is_the_default() -> None:
    assert bind("x", taking(int, None), {}, {"option": None}) == {"option": None}


def test_a_signature_says_what_may_be_given() -> None:
    assert describe_signature(Unannotated) == (
        "Unannotated(hidden_dim: any JSON value, encode: bool = True, count: int = 3, rate: float = 0.0, "
        "name: str = 'x', kernel: tuple = (3, 3), heads: list = [4], norm: Norm ('none', 'layer') = 'none', "
        "dtype: torch.dtype = torch.float32, act: type = <class 'torch.nn.modules.activation.GELU'>, "
        "anything: any JSON value = None)"
    )


@pytest.mark.parametrize(
    ("hint", "found"),
    [
        (Norm, ["none", "layer"]),
        (Literal["a", 1], ["a", 1]),
        (bool, [False, True]),
        (Norm | None, ["none", "layer", None]),
        (int, None),
        (int | None, None),
        (Parts, None),
        (list[Norm], None),
    ],
)
def test_the_values_of_an_enum_a_literal_and_a_bool_are_known(hint, found) -> None:
    assert choices(hint) == found

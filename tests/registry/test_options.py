"""Options are checked against the constructor: its signature and its type hints are the only schema."""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.errors import message_of

from regplug.errors import closest
from regplug.registry.option_values import UnfitError, read
from regplug.registry.options import bind, describe, describe_signature

SIZES = {"num_registers": 4, "hidden_dim": 8}


class Attend:
    def __init__(
        self,
        num_registers: int,
        hidden_dim: int,
        heads: int,
        scale: float = 1.0,
        act: Literal["gelu", "relu"] = "gelu",
        mask: int | None = None,
        widths: tuple[int, ...] = (),
        kernel: tuple[int, float] | None = None,
        *,
        names: Sequence[str] = (),
        bias: bool = True,
    ) -> None: ...


class AnotherWord:
    def __init__(self, in_features: int, tokens: int, out: int = 1) -> None: ...


class Open:
    def __init__(self, hidden_dim: int, **options: Any) -> None: ...


class Untyped:
    def __init__(self, a, b=2):
        pass


def fits(value: object, hint: Any) -> bool:
    try:
        read(value, hint)
    except UnfitError:
        return False
    return True


def bound(build: type, words: Mapping[str, str] | None = None, **options: Any) -> dict[str, Any]:
    return bind("strategy 'x'", build, SIZES, options, words)


refusal = functools.partial(message_of, bound)


# ---- binding


def test_the_sizes_that_the_constructor_names_are_passed_with_the_options() -> None:
    assert bound(Attend, heads=2) == {"num_registers": 4, "hidden_dim": 8, "heads": 2}
    assert bound(Open) == {"hidden_dim": 8}
    assert bound(Untyped, a=1) == {"a": 1}


def test_a_size_may_have_another_word_in_the_constructor() -> None:
    words = {"in_features": "hidden_dim", "tokens": "num_registers"}
    assert bound(AnotherWord, words, out=3) == {"in_features": 8, "tokens": 4, "out": 3}
    assert refusal(AnotherWord, words, tokens=9) == (
        "strategy 'x': option 'tokens': expected an option, got one of the sizes."
    )


def test_an_unknown_option_is_answered_with_the_known_and_the_closest() -> None:
    assert refusal(Attend, heads=1, haeds=2) == (
        "strategy 'x': option 'haeds': expected a known option, got 2; "
        "known: act, bias, heads, kernel, mask, names, scale, widths (closest: heads)."
    )
    assert refusal(AnotherWord, {"in_features": "hidden_dim", "tokens": "num_registers"}, zzzz=0) == (
        "strategy 'x': option 'zzzz': expected a known option, got 0; known: out."
    )


@pytest.mark.parametrize("size", ["num_registers", "hidden_dim"])
@pytest.mark.parametrize("build", [Attend, Open, Untyped])
def test_a_size_is_no_option(build: type, size: str) -> None:
    assert refusal(build, **{size: 9}) == f"strategy 'x': option {size!r}: expected an option, got one of the sizes."


def test_missing_options_are_all_named_with_their_types() -> None:
    assert refusal(Attend) == "strategy 'x': expected option heads: int, got none."
    assert refusal(AnotherWord) == "strategy 'x': expected option in_features: int, tokens: int, got none."
    assert refusal(Untyped) == "strategy 'x': expected option a: any JSON value, got none."


def test_an_open_constructor_takes_any_option() -> None:
    assert bound(Open, whatever=[1]) == {"hidden_dim": 8, "whatever": [1]}


def test_a_plain_function_is_bound_as_a_class_is() -> None:
    def make(hidden_dim: int, depth: int = 1) -> None: ...

    assert bound(make, depth=3) == {"hidden_dim": 8, "depth": 3}
    assert "option 'depth': expected int, got '3'" in refusal(make, depth="3")


def test_a_hint_that_names_what_is_not_there_leaves_the_others_in_force() -> None:
    class Late:
        def __init__(self, a: SurelyNotDefined, b: int = 0, c: SurelyNotDefined = True) -> None: ...  # noqa: F821

    assert "option 'a': expected SurelyNotDefined, got 'x'; its type cannot be read" in refusal(Late, a="x")
    assert refusal(Late, b="text").endswith("option 'b': expected int, got 'text'.")
    assert refusal(Late, c="text").endswith("option 'c': expected bool, got 'text'.")


# ---- type hints

ACCEPTED = [
    ("heads", 3, 3),
    ("scale", 2, 2),
    ("scale", 2.5, 2.5),
    ("act", "relu", "relu"),
    ("mask", None, None),
    ("mask", 0, 0),
    ("widths", [1, 2], (1, 2)),
    ("widths", (1, 2), (1, 2)),
    ("widths", [], ()),
    ("kernel", [3, 0.5], (3, 0.5)),
    ("kernel", None, None),
    ("names", ["a"], ["a"]),
    ("names", ("a",), ["a"]),
    ("bias", False, False),
]


@pytest.mark.parametrize(("option", "value", "passed"), ACCEPTED)
def test_a_value_of_the_hinted_type_is_passed_and_a_json_list_becomes_the_tuple(
    option: str, value: object, passed: object
) -> None:
    found = bound(Attend, **{"heads": 1, option: value})[option]
    assert found == passed
    assert type(found) is type(passed)


REFUSED = [
    ("heads", True, "int"),
    ("heads", 2.0, "int"),
    ("heads", "2", "int"),
    ("heads", None, "int"),
    ("scale", True, "float"),
    ("scale", "1", "float"),
    ("scale", float("nan"), "float"),
    ("kernel", [3, float("nan")], "tuple[int, float] | None"),
    ("act", "tanh", "Literal['gelu', 'relu']"),
    ("act", None, "Literal['gelu', 'relu']"),
    ("mask", False, "int | None"),
    ("mask", "no", "int | None"),
    ("widths", 3, "tuple[int, ...]"),
    ("widths", "12", "tuple[int, ...]"),
    ("widths", [1, True], "tuple[int, ...]"),
    ("kernel", [3], "tuple[int, float] | None"),
    ("kernel", [3, 0.5, 1], "tuple[int, float] | None"),
    ("kernel", [0.5, 3], "tuple[int, float] | None"),
    ("names", "text", "Sequence[str]"),
    ("names", [1], "Sequence[str]"),
    ("bias", 1, "bool"),
    ("bias", "false", "bool"),
]


@pytest.mark.parametrize(("option", "value", "hint"), REFUSED)
def test_a_value_of_another_type_is_refused_with_the_hint(option: str, value: object, hint: str) -> None:
    text = refusal(Attend, **{"heads": 1, option: value})
    assert text.startswith(f"strategy 'x': option {option!r}: expected ")
    assert text.endswith(f"{hint}, got {value!r}.")


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (Optional[int], None, "x"),  # noqa: UP045
        (Union[int, str], "x", 1.5),  # noqa: UP007
        (list[int], [1], ["a"]),
        (list[list[int]], [[1], [2, 3]], [[1], 2]),
        (list, (1, 2), 3),
        (tuple, [1], 3),
        (tuple[int, int], (1, 2), (1, 2, 3)),
        (dict, {}, []),
        (list[float], [math.inf], [math.nan]),
        (dict[str, int], {"a": 1}, {"a": "1"}),
        (Mapping[str, int], {}, [("a", 1)]),
        (Literal[1, 2], 1, True),
        (Literal[1], 1, 1.0),
        (Literal[True], True, 1),
        (bool | float, 1e-3, "1"),
        (type(None), None, 0),
    ],
    ids=str,
)
def test_each_kind_of_hint_takes_the_good_and_refuses_the_bad(hint: Any, good: object, bad: object) -> None:
    assert fits(good, hint)
    assert not fits(bad, hint)


def test_of_a_class_that_is_not_known_only_instances_fit() -> None:
    attend = Attend(4, 8, 2)
    assert read(attend, Attend) is attend
    assert not fits("x", Attend)
    assert not fits(3, "a string as hint")
    assert fits(object(), Any)
    assert fits({}, typing.Dict)  # noqa: UP006


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(value=json_values)
def test_no_json_value_is_both_int_and_bool_or_text(value: Any) -> None:
    assert fits(value, int) == (type(value) is int)
    assert fits(value, bool) == (type(value) is bool)
    assert fits(value, str) == (type(value) is str)
    assert fits(value, float) == (type(value) in (int, float))
    assert fits(value, int | None) == (type(value) in (int, type(None)))
    assert fits(value, list[int]) == (type(value) is list and all(type(item) is int for item in value))


# ---- for people


def test_a_constructor_is_described_without_its_sizes() -> None:
    assert describe(Attend) == {
        "heads": "int",
        "scale": "float = 1.0",
        "act": "Literal['gelu', 'relu'] = 'gelu'",
        "mask": "int | None = None",
        "widths": "tuple[int, ...] = ()",
        "kernel": "tuple[int, float] | None = None",
        "names": "collections.abc.Sequence[str] = ()",
        "bias": "bool = True",
    }
    assert describe(AnotherWord, {"in_features": "hidden_dim", "tokens": "num_registers"}) == {"out": "int = 1"}
    assert describe(Untyped) == {"a": "any JSON value", "b": "int = 2"}


def test_a_signature_shows_the_sizes_too() -> None:
    assert describe_signature(AnotherWord) == "AnotherWord(in_features: int, tokens: int, out: int = 1)"
    assert describe_signature(Open) == "Open(hidden_dim: int)"


def test_the_end_of_a_message_about_an_unknown_word() -> None:
    assert closest("meen", ["pool", "mean"]) == "; known: mean, pool (closest: mean)"
    assert closest("zzz", ["pool", "mean"]) == "; known: mean, pool"
    assert closest("zzz", []) == "; known: none"


def test_a_list_of_a_configuration_library_is_taken_as_the_list_or_tuple_it_means() -> None:
    from omegaconf import OmegaConf

    def build(widths: tuple[int, ...], names: list[str]) -> None: ...

    given = OmegaConf.create({"widths": [1, 2], "names": ["a"]})
    assert bind("x", build, {}, dict(given)) == {"widths": (1, 2), "names": ["a"]}
    assert type(bind("x", build, {}, dict(given))["names"]) is list

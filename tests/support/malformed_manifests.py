"""Manifests made from the schema in regplug/format/manifest.py: each key missing, null, of another type, at its limits.

A case is a manifest's bytes and how the reader's message begins after the file, or None where it must accept them.
"""

import json
import typing
from dataclasses import fields, is_dataclass

from regplug.format.manifest import Manifest
from support.contradictory_manifests import agreement
from support.good_manifests import BASES, readout

KINDS = [None, True, 1, 1.5, "two\nwords", [], {}, [[]], {"a": 1}]
Case = tuple[bytes, str | None]


def places(hint: object, value: object, path: tuple = ()) -> typing.Iterator[tuple[tuple, object, object]]:
    """Every value of a manifest, with its type in the schema: ``(path, hint, value)``."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        if path:
            yield path, hint, value
        if value is None:
            return
        hint, path = arguments[0], path
        arguments = typing.get_args(hint)
    elif path:
        yield path, hint, value
    origin = typing.get_origin(hint)
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        for field in fields(hint):
            if field.name in value:  # format 1 has fewer keys
                yield from places(hints[field.name], value[field.name], (*path, field.name))
    elif origin is tuple:
        for index, item in enumerate(value):
            yield from places(arguments[0], item, (*path, index))
    elif origin is not None and origin is not typing.Annotated and isinstance(value, dict):
        for key, item in value.items():
            if arguments[1] is not typing.Any:
                yield from places(arguments[1], item, (*path, key))


def changed(base: dict, path: tuple, value: object) -> bytes:
    """The manifest with another value at a path, or without one for Ellipsis."""
    values = json.loads(json.dumps(base))
    inside = values
    for step in path[:-1]:
        inside = inside[step]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return json.dumps(values).encode()


def words(path: tuple) -> str:
    return ".".join(map(str, path))


def fields_of(base: str, values: dict) -> typing.Iterator[tuple[str, bytes, str | None]]:
    """Each key of each record: missing, and of every wrong type."""
    for path, hint, value in places(Manifest, values):
        where = words(path)
        if (
            isinstance(path[-1], str)
            and path[0] != "files"
            and path[-2:-1] not in (("properties",), ("packages",), ("cases",))
        ):
            yield f"{base}: {where} missing", changed(values, path, ...), f"{where}: expected a value, got nothing"
        for kind in KINDS:
            if not may_be(hint, kind):
                begin = "bundle_format: expected 1 or 2, got" if where == "bundle_format" else where
                yield f"{base}: {where} as {json.dumps(kind)}", changed(values, path, kind), begin
        if isinstance(value, dict) and is_dataclass(without_none(hint)):
            said = f"{where}.surplus: expected no such key, got 1"
            yield f"{base}: a surplus key in {where}", changed(values, (*path, "surplus"), 1), said


def without_none(hint: object) -> object:
    arguments = typing.get_args(hint)
    return arguments[0] if type(None) in arguments else hint


def may_be(hint: object, kind: object) -> bool:
    """Whether the schema allows a value of this type; another rule may still refuse it."""
    if type(None) in typing.get_args(hint):
        return True if kind is None else may_be(without_none(hint), kind)
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if is_dataclass(hint):
        return False
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        return isinstance(kind, list)
    if hint in (int, float):
        return type(kind) in (int, hint)
    if isinstance(origin, type) and issubclass(origin, (str, bool)):
        return type(kind) is origin and origin is bool
    if typing.get_args(hint) == (int, str):
        return type(kind) is int
    return isinstance(kind, dict)


def limits() -> typing.Iterator[tuple[str, bytes, str | None]]:
    """Numbers just inside and just outside the limits, in every JSON notation."""
    large = "an integer >= 1, got "
    for key in ("num_registers", "hidden_dim", "cond_dim"):
        for text, shown in (
            ("0", "0"),
            ("-1", "-1"),
            ("-0", "0"),
            ("4.0", "4.0"),
            ("4e0", "4.0"),
            ("9007199254740992",) * 2,
        ):
            data = json.dumps(readout() | {key: "@"}).replace('"@"', text).encode()
            yield f"{key} as {text}", data, f"{key}: expected {large}{shown}"
    yield (
        "hidden_dim at 2^53 - 1 disagrees",
        json.dumps(readout() | {"hidden_dim": 2**53 - 1}).encode(),
        "input.shape: expected",
    )
    for text in ("1.0", "01", "3", "0", "-1", "1e0", '"1"', "null", "1" * 400):
        data = json.dumps(readout() | {"bundle_format": "@"}).replace('"@"', text).encode()
        yield (
            f"bundle_format as {text}",
            data,
            "not JSON" if text == "01" or len(text) > 9 else "bundle_format: expected 1 or 2",
        )
    for key in ("eager_error", "tolerance"):
        for value in (-1, -1e-300, "0", None):
            wrong = readout()
            wrong["golden"]["cases"][0][key] = value
            yield f"{key} as {value!r}", json.dumps(wrong).encode(), f"golden.cases.0.{key}: expected a number >= 0"
        for value in (0, 0.0, 1, 1e-300, 1e300):
            good = readout()
            good["golden"]["cases"][0][key] = value
            good["programs"][0]["cases"]["batch_1"]["tolerance"] = good["golden"]["cases"][0]["tolerance"]
            yield f"{key} as {value!r}", json.dumps(good).encode(), None


def texts() -> typing.Iterator[tuple[str, bytes, str | None]]:
    """Malformed JSON, and duplicate keys."""
    good = json.dumps(readout())
    for key in readout():
        twice = good[:-1] + f',"{key}":1}}'
        yield f"{key} twice", twice.encode(), f"duplicate key '{key}'"
    marks = sum(map(good.count, ",[]{}"))
    for count in (131_072, 131_073):
        zeros = f'"options": {{"a":[{",".join("0" * (count - marks - 1))}]}}'
        refused = "expected at most 131072 brackets and commas, got 131073" if count > 131_072 else None
        yield f"{count} brackets and commas", good.replace('"options": {}', zeros).encode(), refused
    yield (
        "brackets in a text",
        good.replace('"options": {}', f'"options": {{"a": "{",[{]}" * 40_000}"}}').encode(),
        None,
    )
    for text in ("[" * 200_000, "]" * 200_000):
        yield f"{text[0]} without end", text.encode(), "expected at most 131072 brackets and commas, got 200000"
    options = '"options": {}'
    deep, deeper = (f'"options": {{"a":{"[" * depth}{"]" * depth}}}' for depth in (62, 63))
    for word, text, said in (
        ("nothing", "", "not JSON"),
        ("a list", "[]", "expected an object, got []"),
        ("null", "null", "expected an object, got null"),
        ("an empty object", "{}", "bundle_format: expected a value, got nothing"),
        ("a byte order mark", "\ufeff" + good, "not JSON: begins with a byte order mark"),
        ("a byte after the end", good + "x", "not JSON"),
        ("two manifests", good * 2, "not JSON"),
        ("half of one", good[: len(good) // 2], "not JSON"),
        ("NaN", good.replace("1e-06", "NaN"), "not JSON"),
        ("Infinity", good.replace("1e-06", "Infinity"), "not JSON"),
        ("1e999", good.replace("1e-06", "1e999"), "not JSON"),
        ("half a surrogate", good.replace("AVX2", "\\ud800"), "not JSON"),
        ("65 levels", good.replace(options, deeper), "nested deeper than 64"),
        ("65 levels after one too many was closed", "]" + "[" * 65, "nested deeper than 64"),
        ("64 levels after one too many was closed", "]" + "[" * 64, "not JSON"),
        ("65 levels after some were closed", "[" * 40 + "]]" + "[" * 27, "nested deeper than 64"),
        ("100,000 levels", "[" * 100_000, "nested deeper than 64"),
        ("100,000 objects", '{"a":' * 100_000, "nested deeper than 64"),
        ("a key beyond ASCII", good[:-1] + ',"é\\n":1}', '"\\u00e9\\n": expected no such key, got 1'),
    ):
        yield word, text.encode(), said
    yield "space around it", f"\n\t {good} \r\n".encode(), None
    yield "64 levels", good.replace(options, deep).encode(), None
    yield "a NUL after the end", good.encode() + b"\0", "not JSON"
    yield "no UTF-8", good.replace("AVX2", "\0").encode().replace(b"\\u0000", b"\xff"), "not JSON"


def shown_values() -> typing.Iterator[tuple[str, bytes, str | None]]:
    """Values as a message shows them: numbers at the limits of integer types, strings around the length that is cut."""
    for text, shown in (
        ("-2", "-2"), ("-64", "-64"), ("-70", "-70"),
        ("-4611686018427387905", "-4611686018427387905"),
        ("-9223372036854775807", "-9223372036854775807"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("-9223372036854775809", "-9.22337203685e+18"),
        ("-18446744073709551616", "-1.84467440737e+19"),
        ("9223372036854775808", "9223372036854775808"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.84467440737e+19"),
        ("18446744073709551617", "1.84467440737e+19"),
    ):  # fmt: skip
        data = json.dumps(readout() | {"hidden_dim": "@"}).replace('"@"', text).encode()
        yield f"{text} shown", data, f"hidden_dim: expected an integer >= 1, got {shown}."
    for length in (57, 58, 59, 60):
        data = json.dumps(readout() | {"hidden_dim": "x" * length}).encode()
        whole = f'"{"x" * length}"'
        shown = whole if len(whole) <= 60 else f"{whole[:60]}..."
        yield f"a text of {length} letters shown", data, f"hidden_dim: expected an integer >= 1, got {shown}."


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for name, base in BASES.items():
        found[name] = json.dumps(base()).encode(), None
        for case, data, said in fields_of(name, base()):
            found[case] = data, said
    for group in (limits, texts, agreement, shown_values):
        for case, data, said in group():
            if case in found:
                raise ValueError(f"case {case!r}: expected a name of its own.")
            found[case] = data, said
    return found

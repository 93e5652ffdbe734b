"""Reads options and sizes from the text of a command line."""

from __future__ import annotations

import json
import re
from typing import Any

from regplug.errors import SpecError
from regplug.registry.options import JSON_WORDS

NUMBER = re.compile(r"[+-]?(?=\.?\d)(0|[1-9]\d*)?(\.\d*)?([eE][+-]?\d+)?")


def parse_option(text: str) -> tuple[str, Any]:
    """Key and value of ``key=value``; the value is a number or JSON if it can be read as such, else text.

    Raises:
        SpecError: There is no ``=`` or no key, or the value is Python's word for one of JSON (``True``).
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SpecError(f"expected key=value, got {text!r}.")
    if value in JSON_WORDS:
        raise SpecError(f"{key}: expected {JSON_WORDS[value]}, got {value}; as a text: '{key}=\"{value}\"'.")
    return key, read_value(value)


def read_value(text: str) -> Any:
    """A number or a JSON value if the text can be read as one, else the text."""
    try:
        if NUMBER.fullmatch(text):  # 10., .5 and +3 too, which are not JSON
            return float(text) if {*text} & {*".eE"} else int(text)
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def parse_sizes(text: str) -> tuple[int, ...]:
    """The sizes in ``"3,224,224"``: an input without the batch.

    Raises:
        SpecError: They are not positive integers.
    """
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise SpecError(f"input: expected positive integers, as 3,224,224, got {text!r}.")
    return sizes


def _refuse(text: str) -> Any:
    raise ValueError(text)  # NaN and Infinity are not JSON

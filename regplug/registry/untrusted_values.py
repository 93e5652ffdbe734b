"""Reads values that plugins give: text becomes exactly ``str``, and ``repr`` never raises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from regplug.errors import RegplugError, SpecError, class_name, clip

MAX_ENTRIES = 10_000  # of one hook, and of one list or mapping in an entry
MAX_SHOWN = 200  # characters of an object's repr

T = TypeVar("T")


def exact(text: str) -> str:
    """The text as a plain ``str``, without the equality, hash or format of a subclass."""
    return text if type(text) is str else str.__str__(text)


def repr_of(value: object) -> str:
    """An object's ``repr`` on one line of limited length; the class, if its ``repr`` raises."""
    try:
        return clip(exact(repr(value)), MAX_SHOWN)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a plugin's class may even exit here
        return f"<{class_name(value)} object>"


def bounded(values: Iterable[T], what: str, error: type[RegplugError]) -> list[T]:
    """The values as a list; a generator may go on forever.

    Args:
        values: Any iterable of a plugin.
        what: What they are, for the message.
        error: Raised if there are too many.
    """
    found = list(islice(values, MAX_ENTRIES + 1))
    if len(found) > MAX_ENTRIES:
        raise error(f"{what}: expected at most {MAX_ENTRIES} of them, got more.")
    return found


def texts_of(owner: str, values: object) -> tuple[str, ...]:
    """A list of texts as a tuple; a single text is an error, as it would be read as a list of letters.

    Raises:
        SpecError: It is not a list of texts.
    """
    if not isinstance(values, str) and isinstance(values, Sequence):
        texts = bounded(values, owner, SpecError)
        if are_texts(texts):
            return tuple(map(exact, texts))
    raise SpecError(f"{owner}: expected a list of texts, got {repr_of(values)}.")


def mapping_of(wanted: str, values: object) -> dict[str, Any]:
    """A mapping with texts as keys as a plain dictionary; texts among its values become exactly ``str`` too.

    Raises:
        SpecError: It is something else; the message begins with ``wanted``.
    """
    if isinstance(values, Mapping):
        items = bounded(values.items(), wanted, SpecError)
        if are_texts([key for key, _ in items]):
            return {exact(key): exact(value) if isinstance(value, str) else value for key, value in items}
    raise SpecError(f"{wanted}, got {repr_of(values)}.")


def are_texts(values: Iterable[object]) -> bool:
    """Whether all of them are text."""
    return all(isinstance(value, str) for value in values)

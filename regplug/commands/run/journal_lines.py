"""Which lines a journal may have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

# the fields of a line, by the first one
FIELDS: Mapping[str, Mapping[str, type]] = {
    "journal": {"journal": str, "recipe": dict},
    "recipe": {"recipe": dict},
    "planned": {"planned": dict},
    "done": {
        "done": str,
        "file": str,
        "input": str,
        "stamp": str,
        "first": int,
        "rows": int,
        "size": int,
        "mtime_ns": int,
        "sha256": str,
    },
    "failed": {"failed": str, "input": str, "reason": str},
    "removed": {"removed": str},
}
PLANNED: Mapping[str, type] = {"names": list, "suffix": str, "rows": int}


def check_line(value: Any, schema: str | None) -> None:
    """Check the fields of a line, and that its files are inside the folder.

    Args:
        value: The line's JSON value.
        schema: What ``journal`` must be, for the first line.

    Raises:
        ValueError: It is no such line.
    """
    kind: Any = next(iter(value), None) if isinstance(value, dict) else None
    if kind not in FIELDS:
        raise ValueError(f"a line of none of the kinds {', '.join(FIELDS)}")
    if schema is not None and value.get("journal") != schema:
        raise ValueError(f"no schema {schema}")
    _check_fields(value, FIELDS[kind])
    if kind == "planned":
        _check_fields(value["planned"], PLANNED)
        names = [name if isinstance(name, str) else ".." for name in value["planned"]["names"]]
        files = [f"{name}{value['planned']['suffix']}" for name in names]
    else:
        files = [value["file"]] if kind == "done" else []
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"the file {file}, which is not in the folder")


def _check_fields(value: Mapping[str, Any], fields: Mapping[str, type]) -> None:
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind):
            raise ValueError(f"{name} {value.get(name)!r}")

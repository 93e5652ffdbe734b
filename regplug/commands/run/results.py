"""A unit's results on the disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

TEMPORARY = ".regplug-run-"  # what the names of unfinished files begin with


@dataclass(frozen=True)
class Written:
    """A complete file of results.

    Args:
        rows: How many.
        size: Bytes.
        mtime_ns: The time of the last change.
        sha256: Of the file.
    """

    rows: int
    size: int
    mtime_ns: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

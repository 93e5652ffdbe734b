"""What an output folder has: ``regplug run --status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regplug.commands.run.journal import Record, read_journal, sha256_of


def status_of(output: Path) -> dict[str, Any]:
    """The state of a folder, as JSON values; every file of results is read and compared with the journal.

    Raises:
        SpecError: There is no journal.
    """
    record: Record = read_journal(output)
    damaged = {}
    for name, line in record.done.items():
        path = output / line["file"]
        if not path.is_file():
            damaged[name] = "missing"
        elif sha256_of(path) != line["sha256"]:
            damaged[name] = "another sha256 than in the journal"
    good = [line for name, line in record.done.items() if name not in damaged]
    failed = {name: line["reason"] for name, line in record.failed.items()}
    planned: dict[str, int | None] = {"units": None, "rows": None, **(record.planned or {})}
    return {
        "output": str(output),
        "recipe": record.recipe,
        "units": planned["units"],
        "planned_rows": planned["rows"],
        "done": len(good),
        "rows": sum(line["rows"] for line in good),
        "failed": failed,
        "damaged": damaged,
        "complete": not failed and not damaged and len(good) == planned["units"],
    }

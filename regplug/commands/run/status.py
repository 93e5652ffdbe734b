"""What an output folder has: ``regplug run --status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regplug.commands.run.journal import Record, read_journal, sha256_of
from regplug.errors import SpecError


def status_of(output: Path) -> dict[str, Any]:
    """The state of a folder, as JSON values; every file of results is read and compared with the journal.

    Raises:
        SpecError: There is no journal.
    """
    record: Record = read_journal(output)
    if record.recipe is None:
        raise SpecError(
            f"output {output}: expected results of a run, got one that ended before it began; run it again."
        )
    damaged = {}
    for name, line in record.done.items():
        path = output / line["file"]
        if not path.is_file():
            damaged[name] = "missing"
        elif sha256_of(path) != line["sha256"]:
            damaged[name] = "another sha256 than in the journal"
    planned = record.planned or {"names": record.done, "rows": None}
    good = [record.done[name] for name in planned["names"] if name in record.done and name not in damaged]
    failed = {name: line["reason"] for name, line in record.failed.items()}
    units = len(record.planned["names"]) if record.planned else None
    return {
        "output": str(output),
        "recipe": record.recipe,
        "units": units,
        "planned_rows": planned["rows"],
        "done": len(good),
        "rows": sum(line["rows"] for line in good),
        "failed": failed,
        "damaged": damaged,
        "complete": not failed and not damaged and len(good) == units,
    }

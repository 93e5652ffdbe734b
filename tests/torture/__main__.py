"""Runs the battery and prints its table: ``make torture``, or ``python -m torture damaged --share 0.01`` in tests/."""

import argparse
import importlib
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from torture import Figure

# in the order of the promises in docs/SECURITY.md
PARTS = ("malformed", "mutants", "fuzzing", "mutation", "damaged", "failing", "crashing", "replacing", "soak")


def run_part(name: str, share: float, seed: int) -> tuple[list[Figure], float]:
    def progress(word: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{name}: {word}", end="", file=sys.stderr, flush=True)

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as work:
        figures = importlib.import_module(f"torture.{name}").run(Path(work), share, seed, progress)
    progress("")
    return figures, time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="how much of the full battery")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go too")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}.")
    rows = []
    for name in given.parts or PARTS:
        figures, seconds = run_part(name, given.share, given.seed)
        for figure in figures:
            rows.append({"part": name, **asdict(figure), "ok": figure.ok, "seconds": round(seconds)})
            bad = ", ".join(f"{word} {count}" for word, count in figure.bad.items())
            print(f"{name}: {figure.what} {figure.tried}: {bad} {figure.note}", file=sys.stderr)
        if given.json:  # after each part: the whole takes long
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
    table = Table("part", "what was tried", "times", "what must not happen", "seed", "part's seconds", "note", "verdict")
    for row in rows:
        bad = "\n".join(f"{word}: {count}" for word, count in row["bad"].items())
        seed = "" if row["seed"] is None else str(row["seed"])
        verdict = "ok" if row["ok"] else "BAD"
        table.add_row(row["part"], row["what"], f"{row['tried']:,}", bad, seed, str(row["seconds"]), row["note"], verdict)
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()

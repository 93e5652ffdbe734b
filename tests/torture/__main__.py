"""Runs the battery and prints its table: ``make torture``, or ``python -m torture damaged --share 0.01`` in tests/."""

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from torture import Figure

# in the order of the promises in docs/SECURITY.md
PARTS = (
    "malformed",
    "mutants",
    "fuzzing",
    "mutation",
    "damaged",
    "options",
    "large",
    "libraries",
    "plugins",
    "failing",
    "crashing",
    "replacing",
    "killing",
    "soak",
)


def run_part(name: str, share: float, seed: int) -> tuple[list[Figure], float]:
    def progress(word: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{name}: {word}", end="", file=sys.stderr, flush=True)

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as work:
        figures = importlib.import_module(f"torture.{name}").run(Path(work), share, seed, progress)
    progress("")
    return figures, time.monotonic() - begun


def print_table(rows: list[dict]) -> None:
    heads = ("part", "what was tried", "times", "what must not happen", "seed", "part's seconds", "note", "verdict")
    table = Table(*heads)
    for row in rows:
        bad = "\n".join(f"{word}: {count}" for word, count in row["bad"].items())
        seed = "" if row["seed"] is None else str(row["seed"])
        cells = (row["part"], row["what"], f"{row['tried']:,}", bad, seed, str(row["seconds"]), row["note"])
        table.add_row(*cells, "ok" if row["ok"] else "BAD")
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def write_page(page: Path, rows: list[dict]) -> None:
    """Write the figures between the page's two marks."""
    seconds = sum({row["part"]: row["seconds"] for row in rows}.values())
    lines = [
        f"The last run: {time.strftime('%Y-%m-%d')}, {seconds / 60:.0f} minutes on {os.cpu_count()} cores; regplug "
        f"{version('regplug')}, torch {version('torch')}, Python {platform.python_version()}, {platform.system()}.",
        "",
        "| part | what was tried | times | what must not happen | seed | part's seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        bad = ", ".join(f"{word} {count}" for word, count in row["bad"].items())
        note = row["note"].partition("\n")[0]  # the diffs of surviving mutants are in the JSON only
        what = f"{row['what']} ({note})" if note else row["what"]
        seed = "" if row["seed"] is None else row["seed"]
        lines.append(f"| `{row['part']}` | {what} | {row['tried']:,} | {bad} | {seed} | {row['seconds']} |")
    before, begin, rest = page.read_text().partition("<!-- figures -->\n")
    _, end, after = rest.partition("<!-- end of figures -->")
    if not end:
        sys.exit(f"error: {page}: expected the marks 'figures' and 'end of figures', got none.")
    page.write_text(f"{before}{begin}" + "\n".join(lines) + f"\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="how much of the full battery")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--page", type=Path, metavar="FILE", help="a Markdown page to put the figures into")
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
        if given.json:  # after each part, because all of them take an hour
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
    print_table(rows)
    if given.page:
        write_page(given.page, rows)
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()

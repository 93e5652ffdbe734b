"""Readers in Python and C++ while writers replace one bundle without pause; and several first writers at once."""

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from support.cpp_build import compiled

from torture import Figure
from torture.bundles import content, in_memory, leftovers, make_bundle

WRITERS = 4
OPENS, FIRSTS = 1000, 50
SITE = Path(torch.__file__).parent.parent
REPLACED = "times while it was read; try again."

# PLACE SOURCE: replaces the place by the source's files until its input ends; prints how often
WRITER = """
import select, sys
from pathlib import Path
from regplug.format.write_bundle import write_folder
place, files = Path(sys.argv[1]), {file.name: file.read_bytes() for file in Path(sys.argv[2]).iterdir()}
times = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    write_folder(place, files, force=True)
    times += 1
print(times)
"""
READER = """
import sys
from regplug.errors import BundleError
from regplug.format.read_bundle import read_bundle
for _ in range(int(sys.argv[2])):
    try:
        print(read_bundle(sys.argv[1]).digest)
    except BundleError as error:
        print(error)
"""
# PLACE SOURCE: writes one new bundle when its input ends; prints "won", or the error
FIRST = """
import sys
from pathlib import Path
from regplug.errors import ExportError
from regplug.format.write_bundle import write_folder
files = {file.name: file.read_bytes() for file in Path(sys.argv[2]).iterdir()}
print("ready", flush=True)
for line in sys.stdin:
    try:
        write_folder(Path(sys.argv[1]) / line.strip() / "b", files, force=False)
        print("won", flush=True)
    except ExportError as error:
        print(error, flush=True)
"""


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read_beside(work: Path, readers: dict[str, tuple[int, list[str]]], writer: str = WRITER) -> list[Figure]:
    """Open one bundle while writers replace it; a reader prints a digest or an error for each open."""
    place = work / "place"
    for number in range(WRITERS):
        make_bundle(work / f"version-{number}", number)
    known = {hashlib.sha256(content(work / f"version-{n}")["manifest.json"]).hexdigest() for n in range(WRITERS)}
    make_bundle(place, 0)
    writers = [start(python(writer, place, work / f"version-{number}")) for number in range(WRITERS)]
    try:
        running = {name: start(command) for name, (_, command) in readers.items()}
        lines = {name: reader.communicate(timeout=900)[0].splitlines() for name, reader in running.items()}
    finally:
        replaced = sum(int(one.communicate(timeout=60)[0] or 0) for one in writers)
    during = f"{replaced:,} replacements by {WRITERS} writers"
    figures = []
    for name, answers in lines.items():
        seen = Counter(answers)
        mixed = sum(count for line, count in seen.items() if len(line) == 64 and line not in known)
        gave_up = sum(count for line, count in seen.items() if line.endswith(REPLACED))
        errors = readers[name][0] - seen.total() + sum(seen[line] for line in seen if len(line) != 64) - gave_up
        versions = len(known & seen.keys())
        note = f"during {during}; {versions} versions seen, {gave_up} opens ended in 'replaced 100 times'"
        figures.append(Figure(f"opens in {name}", seen.total(), {"mixtures": mixed, "errors": errors}, note=note))
    return figures


def first_exports(work: Path, places: int) -> Figure:
    """Several writers at once where nothing was: one wins, the others report that."""
    writers = [start(python(FIRST, work / "new", work / f"version-{number}")) for number in range(WRITERS)]
    bad = Counter({"mixtures": 0, "places without one winner": 0, "other messages": 0, "left behind": 0})
    versions = [content(work / f"version-{number}") for number in range(WRITERS)]
    for one in writers:
        one.stdout.readline()
    for number in range(places):
        for one in writers:
            one.stdin.write(f"{number}\n")
            one.stdin.flush()
        answers = [one.stdout.readline().strip() for one in writers]
        place = work / "new" / str(number)
        winners = [files for files, answer in zip(versions, answers, strict=True) if answer == "won"]
        bad["places without one winner"] += len(winners) != 1
        bad["mixtures"] += content(place / "b") not in winners
        lost = f"bundle {place / 'b'}: exists and is kept; use force to replace it (--force), or another folder."
        bad["other messages"] += sum(answer not in ("won", lost) for answer in answers)
        bad["left behind"] += len(leftovers(place))
    for one in writers:
        one.communicate(timeout=60)
    return Figure(f"places that {WRITERS} writers make at once", places, dict(bad))


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    opens = max(50, round(share * OPENS / 2))
    progress("building the reader in C++")
    reader = compiled("reopen.cpp", "-O1")
    with in_memory(work) as memory:
        place = memory / "place"
        readers = {
            "Python": (opens, python(READER, place, opens)),
            # C++ opens so fast that fewer opens would meet few replacements
            "C++": (opens * 20, [str(reader), str(place), str(opens * 20)]),
        }
        progress("readers and writers")
        figures = read_beside(memory, readers)
        progress("first writers")
        return [*figures, first_exports(memory, max(5, round(share * FIRSTS)))]

"""The largest files that are read: how much memory and time each takes until it is refused or read.

As a program, ``python -m torture.large FILE...``, it reads each file by the reader that its name says, and measures it.
"""

import dataclasses
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.good_manifests import readout

from regplug.errors import BundleError
from regplug.format.limits import MAX_HEADER, MAX_MANIFEST
from regplug.format.manifest_rules import parse_manifest
from regplug.format.safetensors_header import read_file, read_file_header, read_header
from torture import Figure
from torture.options import MAX_SECONDS, Outcome, memory

SPARSE = 3 << 30  # bytes of a sparse file
GRAIN = 96 << 20  # a regular expression remembers where each of half a million escapes began
TESTS = Path(__file__).resolve().parent.parent
# the reader of a file, by the end of its name
READERS: dict[str, Callable[[str], object]] = {
    ".manifest": lambda path: parse_manifest("DIR", Path(path).read_bytes()),
    ".header": lambda path: read_header("file", Path(path).read_bytes()),
    ".info": lambda path: read_file_header("weights F", path),
    ".weights": lambda path: read_file("weights F", path),
}


def texts(room: int) -> Iterator[tuple[str, str]]:
    """JSON values of this many bytes, each made of many parts of one kind."""

    def many(unit: str) -> str:
        return f"[{','.join([unit] * (room // (len(unit) + 1)))}]"

    nested = "[" * 55 + "]" * 55
    for name, unit in (
        ("nested lists", nested), ("lists", "[]"), ("objects", "{}"), ("objects of one", '{"a":0}'), ("digits", "0"),
        ("numbers", "1e9"), ("long integers", "9" * 300), ("texts", '""'), ("escapes", '"\\u00e9\\\\"'),
        ("surrogates", '"\\ud83d\\ude00"'),
    ):  # fmt: skip
        yield name, many(unit)
    yield "keys", "{" + ",".join(f'"{number:x}":0' for number in range(room // 10)) + "}"
    yield "one text", '"' + '\\"' * (room // 2 - 2) + '"'
    yield "one number", "0." + "9" * (room - 10)
    yield "brackets that never close", "[" * room
    yield "brackets that open nothing", "]" * room
    yield "quotation marks", '"' * room
    yield "backslashes", '"' + "\\" * (room - 1)


def files(work: Path) -> Iterator[Path]:
    """A file for each of them at each place."""
    good = json.dumps(readout())
    room = MAX_MANIFEST - len(good) - 64
    for name, text in texts(room):
        for place, around in (("options", '"options": {"a": @}'), ("film", '"film": @')):
            data = good.replace('"options": {}' if place == "options" else '"film": null', around).replace("@", text)
            yield _written(work / f"{name} as {place}.manifest", data.encode())
        yield _written(work / f"{name}.header", _header('{"a":' + text + "}"))
        shape = '{"a":{"dtype":"F32","data_offsets":[0,0],"shape":' + text + "}}"
        yield _written(work / f"{name} as a shape.header", _header(shape))
    entry = '"{}":{{"dtype":"F32","shape":[0,0,0,0,0,0,0,0],"data_offsets":[0,0]}}'
    for count in (4096, 12_000):
        yield _written(work / f"{count} tensors.header", _header(f"{{{','.join(map(entry.format, range(count)))}}}"))
    described = ",".join(f'"{number}":""' for number in range(80_000))
    yield _written(work / "metadata.header", _header('{"__metadata__":{' + described + "}}"))
    for kind in (".info", ".weights"):
        yield _sparse(work / f"zeros{kind}", b"")
        yield _sparse(work / f"a hole{kind}", _header('{"a":{"dtype":"F32","data_offsets":[0,4],"shape":[1]}}'))
    size = SPARSE - MAX_HEADER
    one = f'{{"a":{{"dtype":"U8","data_offsets":[0,{size}],"shape":[{size}]}}}}'.ljust(MAX_HEADER - 8)
    yield _sparse(work / "one tensor.info", _header(one))


def _header(text: str) -> bytes:
    data = text.encode()[:MAX_HEADER]
    return len(data).to_bytes(8, "little") + data


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _sparse(path: Path, data: bytes) -> Path:
    with path.open("wb") as file:
        file.write(data)
        file.truncate(SPARSE)
    return path


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    """See ``torture``; it runs in full for every share, and nothing is drawn."""
    made = list(files(work))
    command = [sys.executable, "-m", "torture.large", *map(str, made)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS, check=True)
    outcomes = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    rows: dict[str, list[Outcome]] = {}
    for path, outcome in zip(made, outcomes, strict=True):
        rows.setdefault(path.suffix, []).append(outcome)
    words = {".manifest": "manifests of 1 MiB", ".header": "headers of 1 MiB"}
    words |= {".info": "files of 3 GiB, described", ".weights": "files of 3 GiB that are no weights"}
    return [figure(words[suffix], found) for suffix, found in rows.items()]


def figure(what: str, outcomes: list[Outcome]) -> Figure:
    """One row of the table."""
    bad = {
        "over 1 s": sum(one.seconds > MAX_SECONDS for one in outcomes),
        f"over {GRAIN >> 20} MiB": sum(one.taken > GRAIN for one in outcomes),
        "untidy refusals": sum(not _is_tidy(one.said) for one in outcomes),
    }
    taken, seconds = max(one.taken for one in outcomes), max(one.seconds for one in outcomes)
    refused = sum(one.said != "read" for one in outcomes)
    note = f"{refused} refused, {len(outcomes) - refused} read; at most {taken / (1 << 20):.0f} MiB and {seconds:.2f} s"
    return Figure(what, len(outcomes), bad, note=note)


def _is_tidy(said: str) -> bool:
    return (
        len(said) <= 400 and said.isprintable() and said.startswith(("read", "bundle DIR: ", "file: ", "weights F: "))
    )


# ---- the process that reads


def read_measured(path: str) -> Outcome:
    """Read a file and measure the peak of memory and the CPU time."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = memory("VmRSS"), time.process_time()
    try:
        READERS[Path(path).suffix](path)
        said = "read"
    except BundleError as error:
        said = str(error)
    seconds = time.process_time() - begun
    return Outcome(said, max(memory("VmHWM") - before, 0), seconds)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for path in sys.argv[1:]:
        print(json.dumps(dataclasses.asdict(read_measured(path))), flush=True)

"""The verdicts of three readers on the same bytes: ours in Python, ours in C++, and the reference implementation."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import safetensors

from regplug.errors import BundleError
from regplug.format.manifest_rules import parse_manifest
from regplug.format.safetensors_header import read_header

ACCEPTED = "accepted"
FILE, MANIFEST = "s", "m"  # the kind of a record
Record = tuple[str, bytes]


def in_python(kind: str, data: bytes) -> str:
    try:
        if kind == FILE:
            read_header("file", data)
        else:
            parse_manifest("DIR", data)
    except BundleError as error:
        return str(error)
    return ACCEPTED


def in_cpp(program: Path, records: Sequence[Record]) -> list[str]:
    given = b"".join(kind.encode() + len(data).to_bytes(8, "little") + data for kind, data in records)
    done = subprocess.run([program], input=given, capture_output=True, check=True)
    said = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if len(said) != len(records):
        raise ValueError(f"verdicts: expected {len(records)} lines, got {len(said)}.")
    return said


def by_the_reference(kind: str, data: bytes) -> bool:
    """Whether the safetensors package, or Python's own JSON parser, accepts it."""
    try:
        if kind == FILE:
            safetensors.deserialize(data)
        else:
            json.loads(data)
    except (safetensors.SafetensorError, ValueError, RecursionError):
        return False
    return True


def compare(program: Path, records: Iterable[Record]) -> tuple[Counter[str], list[str]]:
    """How often the readers differ, and the first bytes that show it."""
    records = list(records)
    counted: Counter[str] = Counter()
    shown = []
    for (kind, data), cpp in zip(records, in_cpp(program, records), strict=True):
        python = in_python(kind, data)
        reference = by_the_reference(kind, data)
        counted["accepted"] += python == ACCEPTED
        counted["stricter"] += reference and python != ACCEPTED
        bad = [
            word
            for word, is_so in (
                ("disagreements", (python == ACCEPTED) != (cpp == ACCEPTED)),
                ("different messages", python != cpp),
                ("looser than the reference", not reference and ACCEPTED in (python, cpp)),
            )
            if is_so
        ]
        counted.update(bad)
        if bad:
            shown.append(f"{', '.join(bad)}: Python {python!r}, C++ {cpp!r}, of {data[:2000]!r}")
    return counted, shown

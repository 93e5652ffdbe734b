"""Whether a copy of the package reads the named cases correctly. Runs without torch, once for each mutant."""

import json
import os
import pickle
import sys
import tempfile
from pathlib import Path

from support import malformed_files, malformed_manifests

import regplug
from regplug.errors import BundleError
from regplug.format.safetensors_header import _reader, read_file, read_file_header, read_header, stored_tensors
from torture.verdicts import ACCEPTED, in_cpp, in_python

WORDS = dict(
    zip(
        malformed_files.DTYPES,
        ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"],
        strict=True,
    )
)


def expect(program: Path, kinds: str, place: Path) -> Path:
    """Write the named files ("s"), the named manifests ("m"), or both ("sm"), each with the verdict of the C++ reader.

    They are made here, not by the oracle: the manifests are made from the schema, which a mutant may change.
    """
    groups = {"s": malformed_files, "m": malformed_manifests}
    records = [(kind, data) for kind in kinds for data, _ in groups[kind].cases().values()]
    verdicts = in_cpp(program, records)
    place.write_bytes(pickle.dumps([(*record, said) for record, said in zip(records, verdicts, strict=True)]))
    return place


def is_read_whole(data: bytes) -> bool:
    """Whether the tensors of an accepted file are the ones in its header."""
    begin = 8 + int.from_bytes(data[:8], "little")
    said = json.loads(data[8:begin])
    metadata = said.pop("__metadata__", {})
    wanted, stored = {}, {}
    for name in sorted(said):
        dtype, shape = said[name]["dtype"], tuple(said[name]["shape"])
        first, end = said[name]["data_offsets"]
        wanted[name] = dtype, shape, first, end
        stored[name] = WORDS[dtype], shape, begin + first, end - first
    tensors, found = read_header("file", data)
    places = stored_tensors("file", data)
    return (
        found == metadata
        and [(name, tuple(vars(info).values())) for name, info in tensors.items()] == list(wanted.items())
        and [(name, tuple(vars(place).values())) for name, place in places.items()] == list(stored.items())
    )


def said_of_a_file(data: bytes, place: Path) -> str:
    """The verdict on the same bytes in a file, where the header is judged without reading the data."""
    place.write_bytes(data)
    try:
        header = read_file_header("file", str(place))
        read = read_file("file", str(place))
    except BundleError as error:
        return str(error)
    return ACCEPTED if header == read_header("file", data) and read == data else "other bytes"


def a_short_read_is_said(place: Path) -> bool:
    """Whether a file that is too short for its reader is refused with this message."""
    place.write_bytes(b"12345")
    descriptor = os.open(place, os.O_RDONLY)
    try:
        read = _reader("file", descriptor)
        whole = read(1, 4) == b"234" and read(0, 5) == b"12345"
        read(2, 9)
    except BundleError as error:
        return whole and str(error) == "file: expected 9 bytes, got 5; it changed while it was read."
    finally:
        os.close(descriptor)
    return False


def holds(kind: str, data: bytes, verdict: str, place: Path) -> bool:
    said = in_python(kind, data)
    if said != verdict or kind != "s":
        return said == verdict
    return said_of_a_file(data, place) == verdict and (said != ACCEPTED or is_read_whole(data))


def main() -> None:
    """Arguments: the folder of the copy, and the file of ``expect``. Exits with 1 at the first case that differs."""
    copy, expected = Path(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes())
    if not Path(regplug.__file__).is_relative_to(copy):
        sys.exit(f"oracle: expected regplug of {copy}, got {regplug.__file__}.")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "file")
        if not (a_short_read_is_said(place) and all(holds(*one, place) for one in expected)):
            sys.exit(1)

"""Checks the parts of a model library that the dynamic linker reads, before the library is written to a bundle."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from regplug.errors import ExportError

# libraries that every process with libtorch_cpu has
ALLOWED_LIBRARIES = {
    "libtorch.so", "libtorch_cpu.so", "libc10.so", "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libm.so.6",
    "libmvec.so.1", "libc.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1",
}  # fmt: skip
SHARED = 3
MACHINES = {"x86-64": 62, "aarch64": 183}
LOAD, DYNAMIC, STACK = 1, 2, 0x6474E551
EXECUTABLE, WRITABLE = 1, 2
NEEDED, HASH, STRINGS, SYMBOLS, RPATH, RUNPATH = 1, 4, 5, 6, 15, 29
GNU_HASH, VERSIONS = 0x6FFFFEF5, 0x6FFFFFF0
SYMBOL = struct.Struct("<IBBHQQ")
LOCAL, WEAK, UNIQUE = 0, 2, 10
FIRST_VERSION = 2  # a symbol of a library with versions, as the C library's are
INTERFACE = "AOTInductor"  # the prefix of all functions that torch calls in a model library


def check_library(owner: str, data: bytes, machine: str = "x86-64") -> None:
    """Refuse a library that needs more from the dynamic linker than a model library should.

    Args:
        owner: The library, for messages.
        data: Its bytes.
        machine: The kind of CPU that it is for, a key of ``MACHINES``.

    Raises:
        ExportError: It is not a shared object for that machine; needs an executable stack, or memory that is both
            writable and executable; searches folders, or needs a library, that libtorch does not; or exports symbols
            besides a model library's interface, which would receive calls of other libraries in the process.
    """
    kind = (SHARED, MACHINES[machine])
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64 or struct.unpack_from("<HH", data, 16) != kind:
        raise ExportError(f"{owner}: expected a shared object for {machine}, got other bytes.")
    try:
        _check_segments(owner, data)
    except (struct.error, ValueError, StopIteration) as error:
        raise ExportError(f"{owner}: expected a whole shared object, got a damaged one.") from error


def called_functions(data: bytes) -> list[str]:
    """The functions that a model library calls and that neither it nor the C and C++ libraries have: torch's, SLEEF's.

    The library was checked.
    """
    entries, place_of = _dynamic(data)
    names, symbols = place_of(STRINGS), place_of(SYMBOLS)
    versions = place_of(VERSIONS) if VERSIONS in {tag for tag, _ in entries} else None
    found = []
    for index in range(1, _count(data, entries, place_of)):
        name, info, _, section, _, _ = SYMBOL.unpack_from(data, symbols + index * SYMBOL.size)
        (version,) = (0,) if versions is None else struct.unpack_from("<H", data, versions + 2 * index)
        if not section and info >> 4 != WEAK and version & 0x7FFF < FIRST_VERSION:
            found.append(_text(data, names + name))
    return sorted(found)


def _segments(data: bytes) -> list[tuple[int, ...]]:
    """Of each segment: type, flags, place in the file, address, physical address, bytes in the file."""
    (first,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return [struct.unpack_from("<IIQQQQ", data, first + i * size) for i in range(count)]


def _dynamic(data: bytes) -> tuple[list[tuple[int, int]], Callable[[int], int]]:
    """What the dynamic linker reads, and the place in the file of the table with a tag."""
    segments = _segments(data)
    begin, length = next((place, size) for kind, _, place, _, _, size in segments if kind == DYNAMIC)
    entries: list[tuple[int, int]] = list(struct.iter_unpack("<QQ", data[begin : begin + length]))

    def place_of(wanted: int) -> int:
        address = next(value for tag, value in entries if tag == wanted)
        place, start = next(
            (place, start)
            for kind, _, place, start, _, size in segments
            if kind == LOAD and start <= address < start + size
        )
        return int(place + address - start)

    return entries, place_of


def _check_segments(owner: str, data: bytes) -> None:
    segments = _segments(data)
    stacks = [flags for kind, flags, *_ in segments if kind == STACK]
    if len(stacks) != 1 or stacks[0] & EXECUTABLE:
        raise ExportError(f"{owner}: expected a stack that is not executable, got one that is.")
    if any(kind == LOAD and flags & EXECUTABLE and flags & WRITABLE for kind, flags, *_ in segments):
        raise ExportError(f"{owner}: expected memory that is written or run, got some that is both.")
    entries, place_of = _dynamic(data)
    names = place_of(STRINGS)
    needed = {_text(data, names + value) for tag, value in entries if tag == NEEDED}
    searched = [_text(data, names + value) for tag, value in entries if tag in (RPATH, RUNPATH)]
    if searched:
        raise ExportError(f"{owner}: expected no folder to search for libraries, got {', '.join(searched)}.")
    if foreign := sorted(needed - ALLOWED_LIBRARIES):
        raise ExportError(f"{owner}: expected no library but libtorch's own, got {', '.join(foreign)}.")
    visible = sorted(_visible(data, place_of(SYMBOLS), _count(data, entries, place_of), names))
    if visible:
        raise ExportError(
            f"{owner}: expected no exported symbol but {INTERFACE}*, got {visible[0]} and {len(visible) - 1} more."
        )


def _count(data: bytes, entries: list[tuple[int, int]], place_of: Callable[[int], int]) -> int:
    """The number of symbols."""
    tags = {tag for tag, _ in entries}
    return max(count(data, place_of(tag)) for tag, count in COUNTS.items() if tag in tags)


def _visible(data: bytes, symbols: int, count: int, names: int) -> Iterator[str]:
    """The exported symbols outside the interface, and those that are unique in a process."""
    for index in range(count):
        name, info, _, section, _, _ = SYMBOL.unpack_from(data, symbols + index * SYMBOL.size)
        if section and info >> 4 != LOCAL:
            text = _text(data, names + name)
            if info >> 4 == UNIQUE or not text.startswith(INTERFACE):
                yield text


def _hash_count(data: bytes, place: int) -> int:
    """The number of symbols, from the older hash table."""
    _, count = struct.unpack_from("<II", data, place)
    return int(count)


def _gnu_hash_count(data: bytes, place: int) -> int:
    """The number of symbols, from the newer hash table: its last chain ends with the last symbol."""
    buckets, first, bloom, _ = struct.unpack_from("<IIII", data, place)
    begin = place + 16 + 8 * bloom
    last: int = max(struct.unpack_from(f"<{buckets}I", data, begin), default=0)
    if last < first:
        return int(first)  # it exports nothing
    while not struct.unpack_from("<I", data, begin + 4 * (buckets + last - first))[0] & 1:
        last += 1
    return last + 1


COUNTS = {HASH: _hash_count, GNU_HASH: _gnu_hash_count}


def _text(data: bytes, begin: int) -> str:
    return data[begin : data.index(b"\0", begin)].decode()

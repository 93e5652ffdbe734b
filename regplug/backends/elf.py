"""Looks at a model library before it is shipped: what the dynamic linker would read of it, and run or search for."""

from __future__ import annotations

import struct

from regplug.errors import ExportError

# what a process that has libtorch_cpu has anyway
KNOWN = {
    "libtorch.so", "libtorch_cpu.so", "libc10.so", "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libm.so.6",
    "libmvec.so.1", "libc.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2",
}  # fmt: skip
SHARED, X86_64 = 3, 62
LOAD, DYNAMIC, STACK = 1, 2, 0x6474E551
EXECUTABLE, WRITABLE = 1, 2
NEEDED, STRINGS, RPATH, RUNPATH = 1, 5, 15, 29


def check_library(owner: str, data: bytes) -> None:
    """Refuse a library that asks the dynamic linker for more than a model library needs.

    Raises:
        ExportError: It is no shared object for x86-64, wants an executable stack or memory that is both written and
            run, searches folders of its own, or needs a library that no libtorch has.
    """
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64 or struct.unpack_from("<HH", data, 16) != (SHARED, X86_64):
        raise ExportError(f"{owner}: expected a shared object for x86-64, got other bytes.")
    try:
        _check_segments(owner, data)
    except (struct.error, ValueError, StopIteration) as error:
        raise ExportError(f"{owner}: expected a whole shared object, got a damaged one.") from error


def _check_segments(owner: str, data: bytes) -> None:
    (first,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    # type, flags, place in the file, address, physical address, bytes in the file
    segments = [struct.unpack_from("<IIQQQQ", data, first + i * size) for i in range(count)]
    stacks = [flags for kind, flags, *_ in segments if kind == STACK]
    if len(stacks) != 1 or stacks[0] & EXECUTABLE:
        raise ExportError(f"{owner}: expected a stack that is not executable, got one that is.")
    if any(kind == LOAD and flags & EXECUTABLE and flags & WRITABLE for kind, flags, *_ in segments):
        raise ExportError(f"{owner}: expected memory that is written or run, got some that is both.")
    begin, length = next((place, size) for kind, _, place, _, _, size in segments if kind == DYNAMIC)
    entries = list(struct.iter_unpack("<QQ", data[begin : begin + length]))
    address = next(value for tag, value in entries if tag == STRINGS)
    names = next(
        place + address - start
        for kind, _, place, start, _, size in segments
        if kind == LOAD and start <= address < start + size
    )
    needed = {_text(data, names + value) for tag, value in entries if tag == NEEDED}
    searched = [_text(data, names + value) for tag, value in entries if tag in (RPATH, RUNPATH)]
    if searched:
        raise ExportError(f"{owner}: expected no folder to search for libraries, got {', '.join(searched)}.")
    if foreign := sorted(needed - KNOWN):
        raise ExportError(f"{owner}: expected no library but libtorch's own, got {', '.join(foreign)}.")


def _text(data: bytes, begin: int) -> str:
    return data[begin : data.index(b"\0", begin)].decode()

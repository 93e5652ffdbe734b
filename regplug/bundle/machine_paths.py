"""Looks for paths of the exporting machine in programs: they reveal its user, projects and tools."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from regplug.errors import ExportError

SYSTEM = {Path("/"), Path("/usr"), Path("/usr/local")}  # the same on every machine
TENSORS = re.compile(r"[^/]+/(data|constants)/\d+")  # in a TorchScript archive; tensors may contain any bytes


def check_machine_paths(owner: str, data: bytes) -> None:
    """Refuse a program that holds a path of this machine.

    Args:
        owner: The program's file, for the message.
        data: Its bytes; in an archive, every member except tensors is searched.

    Raises:
        ExportError: It holds a path; the message has the path and the archive's member.
    """
    places = [os.fsencode(place) + b"/" for place in sorted(_places())]
    for member, content in _parts(data):
        for place in places:
            if (found := content.find(place)) >= 0:
                text = re.match(rb"[\x20-\x7e]{0,80}", content[found:])
                shown = text.group().decode() if text else ""
                raise ExportError(f"{owner}: {member}expected no path of this machine, got {shown!r}.")


def _places() -> set[Path]:
    named = {Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix), Path(sys.base_prefix)}
    named.add(Path(torch.__file__).parent.parent)
    with suppress(RuntimeError):  # a user without a home
        named.add(Path.home())
    return (named | {place.resolve() for place in named}) - SYSTEM


def _parts(data: bytes) -> Iterator[tuple[str, bytes]]:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        yield "", data
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            if not TENSORS.fullmatch(name):
                yield f"member {name!r}: ", archive.read(name)

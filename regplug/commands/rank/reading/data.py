"""Which kind of data is at a path."""

from __future__ import annotations

import os
from pathlib import Path

from regplug.commands.rank.reading.source import Source, owner_of
from regplug.errors import SpecError


def open_source(path: str | os.PathLike[str], labels: str | None = None, groups: str | None = None) -> Source:
    """The data at a path; labels are read, inputs and tokens are not.

    Args:
        path: A folder of images, a folder of Parquet files, or an ``.npz``, ``.safetensors`` or ``.parquet`` file.
        labels: The column or the array with the labels.
        groups: The column or the array with the groups.

    Raises:
        SpecError: There are no such data, or they cannot be read.
    """
    place = Path(path)
    owner = owner_of(place)
    if place.is_dir():
        files = sorted(one for one in place.glob("*.parquet") if not one.name.startswith("."))
        if files:
            from regplug.commands.rank.reading.parquet import ParquetFiles

            return ParquetFiles(place, files, labels, groups)
        from regplug.commands.rank.reading.image_folder import open_image_folder

        return open_image_folder(place, labels, groups)
    if not place.exists():
        raise SpecError(f"{owner}: expected a file or a folder, got nothing there.")
    if not place.is_file():
        raise SpecError(f"{owner}: expected a file or a folder, got something else.")
    kind = place.suffix.lower()
    if kind == ".npz":
        from regplug.commands.rank.reading.npz import NpzFile

        return NpzFile(place, labels, groups)
    if kind == ".safetensors":
        from regplug.commands.rank.reading.arrays import SafetensorsFile

        return SafetensorsFile(place, labels, groups)
    if kind == ".parquet":
        from regplug.commands.rank.reading.parquet import ParquetFiles

        return ParquetFiles(place, [place], labels, groups)
    raise SpecError(
        f"{owner}: expected a folder of images, or a file named .npz, .safetensors or .parquet, got {place.name!r}."
    )

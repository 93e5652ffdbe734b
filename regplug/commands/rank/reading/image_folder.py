"""Folders of images: a folder for each class, as torchvision's ImageFolder reads it, or images and a CSV file."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from regplug.commands.rank.reading.source import PICTURES, Picture, chosen_name, owner_of, stamp_of_files
from regplug.errors import SpecError, clip, one_line, shorten

# torchvision.datasets.folder.IMG_EXTENSIONS
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TABLES = ("labels.csv", "metadata.csv")  # the second one is the name that Hugging Face's imagefolder reads
FILE_NAME = "file_name"
INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")  # 007 is the name of a class
FIRST = 5  # names of what is left out that are kept for the report
NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf)", re.IGNORECASE)


@dataclass
class ImageFolder:
    """Image files with labels; a ``Source``.

    Args:
        path: The folder.
        files: The images in order.
        labels: The label of each.
        groups: The group of each, or None.
        facts: What was left out: ``empty_folders`` and ``unlabelled_images``, each with how many (``count``) and the
            ``first`` names, and how many ``other_files``.
        table: The CSV file that has the labels, or None.
    """

    path: Path
    files: Sequence[Path]
    labels: Any
    groups: Any = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    table: Path | None = None
    names: Sequence[str] | None = None
    kind: str = "image folder"
    content: str = PICTURES

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        """Of names, sizes and times of modification; the images are not read for it."""
        return stamp_of_files(self.path, self.files)

    def batches(self, start: int, size: int) -> Iterator[list[Picture]]:
        """The images from ``start`` on; each is read when it is opened."""
        for begin in range(start, len(self.files), size):
            yield [Picture(f"image {one}", partial(Path, one)) for one in self.files[begin : begin + size]]


def open_image_folder(path: Path, labels: str | None, groups: str | None) -> ImageFolder:
    """Images in a folder, with the labels of its CSV file, or of the folders that they are in.

    Hidden files and folders are passed over. Folders without images, and images without a label, are counted.

    Args:
        path: The folder.
        labels: The CSV file's column with the labels.
        groups: The CSV file's column with the groups.

    Raises:
        SpecError: There are no images or no labels, or the CSV file names an image that does not exist.
    """
    owner = owner_of(path)
    tables = [path / name for name in TABLES if (path / name).is_file()]
    if len(tables) > 1:
        raise SpecError(f"{owner}: expected {TABLES[0]} or {TABLES[1]}, got both; remove one.")
    if tables:
        return _with_table(path, tables[0], labels, groups)
    for option, value in (("labels", labels), ("groups", groups)):
        if value is not None:
            raise SpecError(f"{owner}: --{option}: expected {' or '.join(TABLES)} with a column {value!r}, got none.")
    return _by_class(path, owner)


def _by_class(path: Path, owner: str) -> ImageFolder:
    files: list[Path] = []
    names: list[str] = []
    empty: list[str] = []
    others = 0
    for folder in sorted(_folders(path), key=lambda one: one.name):
        found, more = _images_below(folder)
        others += more
        files += found
        names += [folder.name] * len(found)
        if not found:
            empty.append(folder.name)
    loose = sorted(one.name for one in path.iterdir() if _is_image(one))
    if not files:
        what = f"images without {TABLES[0]} ({FILE_NAME},label)" if loose else "no image in any folder there"
        known = ", ".join(EXTENSIONS)
        raise SpecError(f"{owner}: expected a folder of images ({known}) for each class, or {TABLES[0]}, got {what}.")
    facts = {"empty_folders": _left_out(empty), "unlabelled_images": _left_out(loose), "other_files": others}
    return ImageFolder(path, files, names, facts=facts)


def _left_out(names: Sequence[str]) -> dict[str, Any]:
    return {"count": len(names), "first": list(names[:FIRST])}


def _folders(path: Path) -> list[Path]:
    return [one for one in path.iterdir() if not one.name.startswith(".") and one.is_dir()]


def _images_below(folder: Path) -> tuple[list[Path], int]:
    """The images in a folder and those below it, sorted, and how many other files there are.

    Links to folders are followed as torchvision does, but no folder is entered twice: links may form a loop.
    """
    found: list[Path] = []
    others = 0
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            one = Path(place, name)
            if _is_image(one):
                found.append(one)
            else:
                others += not name.startswith(".")
    return sorted(found, key=lambda one: (str(one.parent), one.name)), others  # torchvision's order


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in EXTENSIONS and path.is_file()


def _with_table(path: Path, table: Path, labels: str | None, groups: str | None) -> ImageFolder:
    owner = f"data {table}"
    columns, rows = _rows(owner, table)
    chosen_name(owner, "labels", FILE_NAME if FILE_NAME not in columns else None, columns, (FILE_NAME,))
    others = [name for name in columns if name not in (FILE_NAME, groups)]
    label = chosen_name(owner, "labels", labels, columns, ("label", "labels", *(others if len(others) == 1 else ())))
    group = None if groups is None else chosen_name(owner, "groups", groups, columns, ())
    if not rows:
        raise SpecError(f"{owner}: expected a row for each image, got none.")
    files = []
    for number, row in enumerate(rows):
        name = row[FILE_NAME]
        place = PurePosixPath(name)
        if not name or place.is_absolute() or ".." in place.parts:
            raise SpecError(f"{owner}: row {number}: expected a file inside the folder, got {clip(name, 80)!r}.")
        files.append(path / place)
    missing = [str(one.relative_to(path)) for one in files if not one.is_file()]
    if missing:
        raise SpecError(f"{owner}: expected each {FILE_NAME} to be a file, got none for {shorten(missing, 3)}.")
    often, count = Counter(files).most_common(1)[0]
    if count > 1:
        raise SpecError(f"{owner}: expected each image once, got {str(often.relative_to(path))!r} {count} times.")
    found = _as_numbers([row[label] for row in rows])
    named = set(files)
    unnamed = [str(one.relative_to(path)) for one in _images_below(path)[0] if one not in named]
    facts = {"unlabelled_images": _left_out(unnamed)}
    return ImageFolder(path, files, found, None if group is None else [row[group] for row in rows], facts, table)


def _rows(owner: str, table: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise SpecError(f"{owner}: expected a CSV file in UTF-8, got {one_line(error)}.") from error
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise SpecError(f"{owner}: row {number}: expected {len(columns)} values, got another number of them.")
    return columns, rows


def _as_numbers(texts: list[str]) -> list[Any]:
    """The texts of a column as integers or floats if all of them are; an empty text is a missing label."""
    if "" in (one.strip() for one in texts):
        return [one.strip() or None for one in texts]
    for kind, pattern in ((int, INTEGER), (float, NUMBER)):
        if all(pattern.fullmatch(one.strip()) for one in texts):
            return [kind(one) for one in texts]
    return texts

"""Keeps the scores of each training in the cache folder, so that an interrupted ranking goes on where it ended."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from regplug.commands.rank.probe import Scored
from regplug.errors import ExportError, SpecError
from regplug.format.single_file import write_files
from regplug.registry.cache_folder import read_regular

LARGEST = 1 << 30
CONTROL = "control."


class Results:
    """One safetensors file for each training.

    Args:
        folder: Where they are; made if needed. None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def read(self, key: str | None) -> tuple[Scored, Tensor] | None:
        """What ``write`` kept under this key; None if there is nothing, or it is damaged. No key keeps nothing."""
        if self.folder is None or key is None:
            return None
        try:
            path = self.folder / f"{key}.safetensors"
            tensors = load(read_regular(path, LARGEST))
            os.utime(path)  # used now, for `regplug cache prune`
            controls = {name[len(CONTROL) :]: one for name, one in tensors.items() if name.startswith(CONTROL)}
            return Scored(tensors["scores"], controls, tensors["rate"].item()), tensors["places"]
        except (OSError, KeyError, ValueError, SafetensorError):
            return None

    def write(self, key: str | None, scored: Scored, places: Tensor) -> None:
        """Keep the scores of the samples in these places.

        Raises:
            SpecError: The folder cannot be written into.
        """
        if self.folder is None or key is None:
            return
        controls = {f"{CONTROL}{name}": one for name, one in scored.controls.items()}
        rate = scored.scores.new_tensor([scored.rate])
        tensors = {"scores": scored.scores, "places": places, "rate": rate, **controls}
        try:
            write_files({self.folder / f"{key}.safetensors": save(tensors)}, force=True)
        except ExportError as error:
            reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else str(error).rstrip(".")
            raise SpecError(
                f"cache {self.folder}: cannot be written: {reason}. What was trained is kept; make room, or choose "
                "another folder (--cache), and run the same again."
            ) from error

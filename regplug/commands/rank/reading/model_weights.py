"""Loads a whole model's weights from a file, strictly, and digests weights."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regplug.commands.import_checkpoint.candidates import list_names
from regplug.commands.import_checkpoint.checkpoint import open_checkpoint
from regplug.commands.rank.reading.source import digest_of_files
from regplug.errors import SpecError


def load_weights(model: nn.Module, path: str | os.PathLike[str], state_key: str | None = None) -> None:
    """Set all weights of a model from a safetensors file or a file that ``torch.save`` wrote; no pickled code runs.

    Args:
        model: The model.
        path: The file.
        state_key: The key that has the weights; see ``open_checkpoint``.

    Raises:
        BundleError: It is missing, damaged, or no checkpoint.
        SpecError: Its names or shapes are not those of the model; the message lists them.
    """
    checkpoint = open_checkpoint(path, state_key)
    state = model.state_dict()
    shapes = {name: tuple(one.shape) for name, one in state.items()}
    missing, more = sorted(shapes.keys() - checkpoint.shapes.keys()), sorted(checkpoint.shapes.keys() - shapes.keys())
    owner = f"weights {os.fspath(path)}"
    if missing or more:
        parts = [f"no {list_names(missing)}"] if missing else []
        parts += [f"unknown {list_names(more)}"] if more else []
        raise SpecError(
            f"{owner}: expected the {len(shapes)} tensors of {type(model).__name__}, got {' and '.join(parts)}."
        )
    wrong = next((name for name in shapes if checkpoint.shapes[name] != shapes[name]), None)
    if wrong is not None:
        raise SpecError(f"{owner}: {wrong}: expected {list(shapes[wrong])}, got {list(checkpoint.shapes[wrong])}.")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(checkpoint.read(name))


def digest_of_weights_file(path: str | os.PathLike[str]) -> str:
    """The sha256 of a weights file.

    Raises:
        SpecError: It is no file that can be read.
    """
    try:
        return digest_of_files([Path(path)])
    except OSError as error:
        raise SpecError(f"weights {os.fspath(path)}: expected a file, got {error.strerror or error}.") from error


def digest_of_model(model: nn.Module) -> str:
    """A sha256 of a model's structure and its weights."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        value: Any = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""A classifier on disk: one safetensors file that also holds its options."""

from __future__ import annotations

import json
import os
from importlib.resources import as_file, files
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from regplug import BundleError

from .model import DigitsViT

METADATA_KEY = "regplug_digits"
SHIPPED = "trained/compress-concat.safetensors"


def save_model(model: DigitsViT, path: str | os.PathLike[str]) -> None:
    """Write weights and options; an existing file is replaced atomically.

    Args:
        model: The classifier.
        path: The file to write.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    target = Path(path)
    unfinished = target.with_name(f"{target.name}.part")
    unfinished.write_bytes(save(state, metadata={METADATA_KEY: json.dumps(model.options, sort_keys=True)}))
    unfinished.replace(target)


def load_model(path: str | os.PathLike[str]) -> DigitsViT:
    """Read what ``save_model`` wrote.

    Args:
        path: The file to read.

    Returns:
        The classifier in eval mode, built from the file's own options.

    Raises:
        BundleError: The file is not a safetensors file, does not hold its options, or does not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    except SafetensorError as error:
        raise BundleError(f"weights {path}: expected a safetensors file, got: {error}.") from error
    if METADATA_KEY not in metadata:
        raise BundleError(f"weights {path}: expected metadata {METADATA_KEY!r}, got {sorted(metadata)}.")
    try:
        model = DigitsViT(**json.loads(metadata[METADATA_KEY]))
        model.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"weights {path}: expected the weights of a digits-vit, got: {error}") from error
    return model.eval()


def load_shipped() -> DigitsViT:
    """Read the weights that come with the package."""
    with as_file(files(__package__) / SHIPPED) as path:
        return load_model(path)

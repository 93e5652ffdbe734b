"""Bundles that are open in this process, and their runs on columns of data."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from regplug.backends.interface import call_flat
from regplug.bundle.contents import BundleContents
from regplug.bundle.load import load_module, load_program
from regplug.commands.run.columns import as_input, as_padded
from regplug.commands.run.images import images_of, is_encoded
from regplug.commands.run.reading import Reading
from regplug.errors import RegplugError, SpecError, class_name, one_line
from regplug.format.manifest import IMAGES, Manifest, TensorSpec
from regplug.format.read_bundle import BundleFiles
from regplug.nn.select import SelectRegisters
from regplug.registry.default import default_registry
from regplug.registry.layout import TokenLayout
from regplug.registry.readout_inputs import MASK

Run = Callable[..., list[Tensor]]  # flat outputs for the inputs in the manifest's order

_OPENED: dict[tuple[str, str | None], Run] = {}
_LOCK = threading.Lock()


def opened(files: BundleFiles, program: str | None) -> Run:
    """The module, or a program, of a bundle: opened once in a process, and kept."""
    key = (files.digest, program)
    with _LOCK:
        if key not in _OPENED:
            _OPENED[key] = _open(files, program)
        return _OPENED[key]


def run_columns(
    run: Run, manifest: Manifest, reading: Reading, columns: Mapping[str, Any], first: int
) -> dict[str, Tensor]:
    """The outputs by name.

    Args:
        run: What ``opened`` returned.
        manifest: The bundle's manifest.
        reading: How columns become inputs.
        columns: At least the inputs' columns.
        first: The row of the first sample, for messages.

    Raises:
        SpecError: A column is no such input, a value is NaN or infinite, or the module fails.
    """
    inputs = _inputs(manifest, reading, columns, first)
    names = [one.name for one in manifest.outputs]
    with torch.no_grad():
        if MASK not in manifest.input_names:  # with a mask, padding may hold anything
            for spec, given in zip(manifest.inputs, inputs, strict=True):
                check_finite(f"column {reading.columns[spec.name]!r}", given, first)
        outputs = run(*inputs)
        for name, output in zip(names, outputs, strict=True):
            check_finite(f"output {name!r}", output, first)
        held = {one.untyped_storage().data_ptr() for one in inputs}
        # a program gives tensors that autograd refuses, and a module may give a view of its input
        outputs = [
            one.clone() if one.is_inference() or one.untyped_storage().data_ptr() in held else one for one in outputs
        ]
    return dict(zip(names, outputs, strict=True))


def check_finite(owner: str, values: Tensor, first: int) -> None:
    """Refuse NaN and infinity.

    Args:
        owner: The tensor, for messages.
        values: ``[n, ...]``.
        first: The row of the first sample, for messages.

    Raises:
        SpecError: There is one; the message has its row.
    """
    if not values.is_floating_point() or bool(torch.isfinite(values.sum(dtype=torch.float32))):
        return  # NaN and infinity stay in a sum, which is faster than a comparison of each value
    wrong = ~torch.isfinite(values)
    if bool(wrong.any()):  # else the sum was too large
        row = int(wrong.flatten(1).any(1).nonzero()[0])
        got = values[row][wrong[row]][0].item()
        raise SpecError(f"{owner}: row {first + row}: expected finite numbers, got {got}.")


def _inputs(manifest: Manifest, reading: Reading, columns: Mapping[str, Any], first: int) -> list[Tensor]:
    specs = _column_specs(manifest, reading.layout)
    found: list[Tensor] = []
    if MASK in manifest.input_names and MASK not in reading.columns:  # the lengths of the lists are the mask
        name = reading.columns[specs[0].name]
        found += as_padded(f"column {name!r}", columns[name], specs[0], reading.cast, first)
    found += [_input(spec, manifest, reading, columns, first) for spec in specs[len(found) :]]
    counts = {reading.columns.get(spec.name, MASK): len(one) for spec, one in zip(specs, found, strict=True)}
    if len(set(counts.values())) > 1:
        got = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise SpecError(f"batch: expected columns with the same number of rows, got {got}.")
    found = found if reading.layout is None else _selected(found, manifest, reading, reading.layout)
    if MASK in manifest.input_names:
        empty = ~found[1].flatten(1).any(1)
        if bool(empty.any()):
            row = first + int(empty.nonzero()[0])
            name = reading.columns.get(MASK, reading.columns[manifest.input.name])
            raise SpecError(f"column {name!r}: row {row}: expected a token that counts, got none.")
    return found


def _column_specs(manifest: Manifest, layout: TokenLayout | None) -> list[TensorSpec]:
    """What the inputs' columns hold: with a layout, all tokens, and a mask of all tokens."""
    if layout is None:
        return list(manifest.inputs)
    tokens = ("B", layout.num_tokens or "T")
    shapes = {manifest.input.name: (*tokens, layout.hidden_dim), MASK: tokens}
    return [TensorSpec(one.name, one.dtype, shapes.get(one.name, one.shape)) for one in manifest.inputs]


def _selected(inputs: list[Tensor], manifest: Manifest, reading: Reading, layout: TokenLayout) -> list[Tensor]:
    """The inputs with the registers of all tokens, and with the registers' part of a mask of all tokens."""
    select, tokens = SelectRegisters(layout), inputs[0]
    owner = f"column {reading.columns[manifest.input.name]!r}: its registers"
    found = [as_input(owner, select(tokens), manifest.input, reading.cast), *inputs[1:]]
    if MASK in manifest.input_names:
        found[1] = select.of_mask(found[1], tokens)
    return found


def _input(spec: TensorSpec, manifest: Manifest, reading: Reading, columns: Mapping[str, Any], first: int) -> Tensor:
    name = reading.columns[spec.name]
    owner, column = f"column {name!r}", columns[name]
    if spec.name == IMAGES and is_encoded(column):
        return images_of(owner, column, manifest, reading.preprocess, first)
    return as_input(owner, column, spec, reading.cast, first)


def _open(files: BundleFiles, program: str | None) -> Run:
    contents = BundleContents(files)
    if program is not None:
        return load_program(contents, program, default_registry()).run_flat
    module = load_module(contents, default_registry())
    names, owner = files.manifest.input_names, f"strategy {files.manifest.strategy!r}"

    def run(*inputs: Tensor) -> list[Tensor]:
        try:
            return call_flat(module, names, inputs)
        except RegplugError:
            raise
        except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise SpecError(f"{owner}: {class_name(error)}: {one_line(error)}") from error

    return run

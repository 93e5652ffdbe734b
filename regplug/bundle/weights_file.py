"""Reads what a weights file outside a bundle says of itself, and sets a module's weights from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from regplug.bundle.describe import describe_module
from regplug.bundle.outline import build_outlined
from regplug.errors import BundleError, NameLookupError, PluginError, SpecError
from regplug.format.manifest import WeightsNote
from regplug.format.safetensors_header import read_file, read_file_header, read_header
from regplug.format.strict_json import read_as
from regplug.format.weights import (
    TensorType,
    check_types,
    load_state,
    load_tensors,
    parse_metadata,
    stored_types,
    types_of,
)
from regplug.format.wrong_path import check_weights_file
from regplug.nn.attached import ATTACHED
from regplug.registry.default import default_registry
from regplug.registry.deprecation import current_options
from regplug.registry.dtypes import torch_dtype
from regplug.registry.entries import Entry, ReadoutEntry
from regplug.registry.json_text import WrongValueError, parse_json
from regplug.registry.layout import TokenLayout
from regplug.registry.spec import ReadoutSpec
from regplug.torch_private import outside_inference_mode, persist_buffers


def check_is_whole(path: str) -> None:
    """Refuse a weights file that says it holds a readout or conditioner without its backbone.

    Raises:
        BundleError: It says so, or the file is malformed.
    """
    owner = f"weights {path}"
    check_weights_file(owner, path)
    stated = parse_metadata(owner, read_file_header(owner, path)[1])
    if stated and stated.get("backbone") is None:
        raise BundleError(
            f"{owner}: expected the backbone's weights too, got a {stated.get('holds')} alone, as `regplug import` "
            "writes it; leave out --with-backbone, or export what attach gave, in Python."
        )


def read_note(path: str, strategy: str | None = None) -> WeightsNote | None:
    """What a weights file says of itself; None if it says nothing.

    Args:
        path: The file.
        strategy: The strategy it must have; None for any.

    Raises:
        BundleError: The file is malformed, has another strategy, or contradicts itself.
        NameLookupError: There is no such strategy.
    """
    owner = f"weights {path}"
    check_weights_file(owner, path)
    stated = _read_metadata(owner, read_file_header(owner, path)[1])
    if not stated:
        return None
    try:
        note = read_as(WeightsNote, parse_json(json.dumps({"backbone": None, **stated}).encode()))
        if note.layout is not None:
            TokenLayout(**vars(note.layout))
    except (WrongValueError, SpecError) as error:
        raise BundleError(f"{owner}: metadata: {error}.") from None
    if note.backbone is not None:
        raise BundleError(
            f"{owner}: expected a readout or conditioner alone, got one behind {note.backbone.name!r}; "
            "use --with-backbone, --backbone and the strategy's name."
        )
    if (note.holds == "conditioner") != (note.film is not None) or (note.film is not None and note.layout is None):
        raise BundleError(f"{owner}: metadata: expected film and layout of a conditioner and of nothing else.")
    if strategy is not None:
        _check_stated(owner, {"strategy": default_registry().readout_entry(strategy).full_name}, stated)
    return note


def build_filled(build: Callable[[], nn.Module], path: str, spec: ReadoutSpec) -> nn.Module:
    """Build a module and set its weights from a safetensors file; they are compared before anything is allocated.

    Args:
        build: Makes the module, on the default device; its sizes and options may come from the file.
        path: The file.
        spec: What builds the readout.

    Raises:
        BundleError: The file is malformed, says that it has another strategy, or does not fit.
        SpecError: ``build`` refuses the sizes or options.
    """
    owner = f"weights {path}"
    check_weights_file(owner, path)
    tensors, metadata = read_file_header(owner, path)
    types = stored_types(tensors)

    def compare(outline: nn.Module) -> None:
        _check_stated(owner, _wanted_metadata(outline, spec), _read_metadata(owner, metadata))
        _take_dtype(outline, types)
        check_types(owner, types_of(outline.state_dict()), types)

    module = build_outlined(build, compare, types)
    return _filled(owner, module, load_tensors(owner, read_file(owner, path)))


def fill(module: nn.Module, path: str, spec: ReadoutSpec) -> None:
    """Set the module's weights from a safetensors file; the module takes the file's dtype.

    Raises:
        BundleError: The file is malformed, says that it has another strategy, or does not fit.
    """
    owner = f"weights {path}"
    check_weights_file(owner, path)
    data = read_file(owner, path)
    stated = _read_metadata(owner, read_header(owner, data)[1])
    _check_stated(owner, _wanted_metadata(module, spec), stated)
    # a bundle's file has every buffer; a plain state dict does not
    undo = persist_buffers(module.tokens) if isinstance(module, ATTACHED) and stated else None
    _filled(owner, module, load_tensors(owner, data))
    if undo:
        undo()


def _filled(owner: str, module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    _take_dtype(module, types_of(state))
    load_state(owner, module, state)
    return module


def _take_dtype(module: nn.Module, types: Mapping[str, TensorType]) -> None:
    dtypes = {dtype for name, _ in types.values() if (dtype := torch_dtype(name)).is_floating_point}
    if len(dtypes) == 1:
        with outside_inference_mode():
            module.to(dtypes.pop())


def _wanted_metadata(module: nn.Module, spec: ReadoutSpec) -> Mapping[str, Any]:
    """What a weights file of the module must say of itself, if it says anything."""
    wanted = describe_module(spec, module, None, default_registry()).as_dict()
    if wanted["holds"] == "readout":  # its layout is only a note
        return {key: value for key, value in wanted.items() if key not in ("layout", "film")}
    return wanted


def _read_metadata(owner: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of itself, with the current names of what has been renamed since."""
    stated: dict[str, Any] = parse_metadata(owner, metadata)
    registry = default_registry()
    lookups: tuple[tuple[object, str, Callable[[str], Entry]], ...] = (
        (stated, "strategy", registry.readout_entry),
        (stated.get("film"), "generator", registry.film_entry),
        (stated.get("backbone"), "name", registry.backbone_entry),
    )
    for place, key, lookup in lookups:
        if isinstance(place, dict) and isinstance(place.get(key), str) and ":" in place[key]:
            with suppress(
                NameLookupError, PluginError, SpecError
            ):  # a name that is not installed is compared unchanged
                entry = lookup(place[key])
                place[key] = entry.full_name
                if isinstance(entry, ReadoutEntry) and isinstance(stated.get("options"), dict):
                    stated["options"] = current_options(
                        f"strategy {entry.name!r}", stated["options"], entry.old_options
                    )
    return stated


def _check_stated(owner: str, wanted: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if key == "backbone" and isinstance(value, dict) and isinstance(stated.get(key), dict):
            # a model may have several names; two models differ in their weights
            _check_stated(owner, {word: value[word] for word in ("name", "normalized")}, stated[key])
        elif key in stated and stated[key] != value:
            raise BundleError(f"{owner}: {key}: expected {value!r}, got {stated[key]!r}, as the file says of itself.")

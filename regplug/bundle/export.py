"""Exports a spec and its trained module to a bundle on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from regplug.bundle.describe import describe_bundle
from regplug.bundle.golden import GoldenSet, compare, make_golden
from regplug.bundle.io_signature import (
    Besides,
    IOSignature,
    part_record,
    signature_of_conditioner,
    signature_of_readout,
)
from regplug.bundle.load import module_run, open_backend
from regplug.bundle.parity import make_programs
from regplug.bundle.rebuild import rebuild
from regplug.errors import BundleError, ExportError, RegplugError, SpecError, class_name
from regplug.format.destination import absolute, check_place
from regplug.format.folder import MANIFEST
from regplug.format.limits import MAX_MANIFEST
from regplug.format.manifest import (
    GOLDEN,
    IMAGES,
    WEIGHTS,
    FileRecord,
    Manifest,
)
from regplug.format.manifest_rules import parse_manifest
from regplug.format.safetensors_header import read_header
from regplug.format.weights import save_tensors, state_of
from regplug.format.write_bundle import write_folder
from regplug.nn.attached import ATTACHED, AttachedConditioner, AttachedReadout, conditioner_of
from regplug.nn.conditioner import Conditioner
from regplug.nn.readouts.join_parts import parts_of
from regplug.nn.tokens import input_shape
from regplug.nn.wrappers import check_whole, copy_of, hooks_of, unwrapped, weights_computed
from regplug.registry.default import default_registry
from regplug.registry.layout import TokenLayout
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec
from regplug.torch_private import persist_buffers


@dataclass(frozen=True)
class Exported:
    """The result of ``export``: the folder, its digest (which pins it), its manifest."""

    directory: Path
    digest: str
    manifest: Manifest


def export(
    spec: ReadoutSpec,
    module: nn.Module,
    directory: str | os.PathLike[str],
    *,
    backends: Sequence[str] = ("torchscript",),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    layout: TokenLayout | None = None,
    mask: bool = False,
    force: bool = False,
    registry: Registry | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Exported:
    """Write a bundle: weights, golden cases, and the programs of each backend, each compared with eager.

    Works on a copy, in eval mode, on the CPU; the module is not changed. The bundle is written atomically: if a program
    exceeds its tolerance, the disk is full or the process is killed, what was there before stays.

    Args:
        spec: What ``resolve`` returned.
        module: The trained readout that ``spec.build()`` made, a ``Conditioner`` around it, or what ``attach``
            returned; then the bundle includes the backbone.
        directory: The folder to make, or an empty one to fill.
        backends: Names of export backends; none for a bundle with data only.
        settings: For each backend, its constructor's keywords: ``{"aotinductor": {"isa": ["x86-64-v4"]}}``.
        layout: Where a readout's registers are in the backbone's tokens, as a note; other modules have a layout.
        mask: Whether the bundle takes a mask ``[B, N]`` of the tokens that count, as a second input.
        force: Replace an existing bundle, atomically.
        registry: Where names are looked up; the installed plugins if None.
        progress: Called with the name of each step as it begins.

    Raises:
        ExportError: The module is not what the spec builds, a bundle cannot hold it, a program exceeds its
            tolerance, or the folder cannot be written.
        RegplugError: A name or an option does not resolve.
    """
    if not isinstance(spec, ReadoutSpec):
        raise SpecError(f"export: spec: expected a ReadoutSpec, got {type(spec).__name__}; use regplug.resolve.")
    registry = registry or default_registry()
    directory = Path(directory)
    place = absolute(directory)  # a constructor may change the working directory
    if isinstance(backends, str):
        raise SpecError(f"backends: expected a list of names, got {backends!r}; use [{backends!r}].")
    settings = dict(settings or {})
    check_place(place, force)
    makers = {
        registry.export_backend_entry(name).name: open_backend(registry, name, settings.pop(name, {}))
        for name in dict.fromkeys(backends)  # a name may be distribution:name; files and records use the name alone
    }
    if settings:
        raise SpecError(f"settings: expected those of the backends, got some of {', '.join(sorted(settings))}.")
    owner = f"strategy {spec.entry.name!r}"
    module = _copy_of(owner, spec, module)
    state = state_of(owner, module)
    progress("golden cases")
    signature, layout = _signature(owner, spec, module, layout, _besides(owner, spec, module, mask))
    golden = make_golden(owner, module, signature)
    manifest = describe_bundle(spec, module, layout, signature, golden, registry)
    rebuilt = _rebuilt(owner, module, manifest, state, golden, registry)
    files = {
        WEIGHTS: save_tensors(state, manifest.describe()),
        GOLDEN: save_tensors(golden.tensors),
    }
    with _readable(owner):
        read_header(f"bundle to be: {WEIGHTS}", files[WEIGHTS])
    records = []
    for program, record in make_programs(makers, rebuilt, files[WEIGHTS], manifest, golden, signature, progress):
        files[program.file] = program.data
        records.append(record)
    manifest = replace(
        manifest,
        programs=tuple(records),
        files={name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()},
    )
    text = manifest.to_bytes()
    with _readable(owner):
        if len(text) > MAX_MANIFEST:
            raise BundleError(f"{MANIFEST}: expected at most {MAX_MANIFEST} bytes, got {len(text)}.")
        parse_manifest("to be", text)
    progress("writing")
    write_folder(place, {**files, MANIFEST: text}, force)
    return Exported(directory, hashlib.sha256(text).hexdigest(), manifest)


# ---- export, step by step


def _copy_of(owner: str, spec: ReadoutSpec, module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise ExportError(f"{owner}: expected an nn.Module, got {class_name(module)}.")
    check_whole(owner, module)
    module = unwrapped(module)
    holder = conditioner_of(module) or module
    readout = unwrapped(holder.readout) if isinstance(holder, (Conditioner, AttachedReadout)) else holder
    wanted = spec.readout_class
    if isinstance(wanted, type) and type(readout) is not wanted:
        raise ExportError(
            f"{owner}: expected a {wanted.__name__} or a Conditioner around it, got {type(readout).__name__}"
            f"{'; use its .module' if isinstance(getattr(readout, 'module', None), wanted) else ''}."
        )
    copied = copy_of(owner, module).cpu().eval()
    if isinstance(copied, ATTACHED):
        persist_buffers(copied.tokens)
    return copied


def _besides(owner: str, spec: ReadoutSpec, module: nn.Module, mask: bool) -> Besides:
    """What the module takes besides tokens or images."""
    if not isinstance(mask, bool):
        raise ExportError(f"{owner}: mask: expected True or False, got {mask!r}.")
    joined = parts_of(spec)
    if mask and isinstance(module, ATTACHED):
        raise ExportError(f"{owner}: mask: expected a module that takes tokens, got one with its backbone.")
    if mask and joined and not any(one.takes_mask for one in joined):
        raise ExportError(f"{owner}: mask: expected a part whose strategy takes one, got none.")
    if mask and not joined and not spec.takes_mask:
        raise ExportError(f"{owner}: mask: expected a strategy that takes one, got {spec.strategy!r}.")
    if joined is None:
        return Besides(mask)
    vectors = tuple((one.part.name, one.part.width) for one in joined if one.part.width)
    return Besides(mask, vectors, tuple(map(part_record, joined)))


def _signature(
    owner: str, spec: ReadoutSpec, module: nn.Module, layout: TokenLayout | None, besides: Besides
) -> tuple[IOSignature, TokenLayout | None]:
    if layout is not None and not isinstance(layout, TokenLayout):
        raise ExportError(f"{owner}: layout: expected a TokenLayout, got {layout!r}.")
    if isinstance(module, (Conditioner, *ATTACHED)):
        if layout not in (None, module.layout):
            raise ExportError(f"{owner}: layout: expected the module's own, got {layout}.")
        layout = module.layout
    images = _image_sizes(owner, module) if isinstance(module, ATTACHED) else None
    sizes = (spec.num_registers, spec.hidden_dim)
    if layout is not None and conditioner_of(module):
        signature = signature_of_conditioner(owner, module, layout, images, besides)
    elif images:
        signature = signature_of_readout(owner, module, images, spec.cond_dim, IMAGES, besides)
    else:
        signature = signature_of_readout(owner, module, sizes, spec.cond_dim, besides=besides)
    if layout is not None and (layout.num_registers, layout.hidden_dim) != sizes:
        raise ExportError(
            f"{owner}: layout: expected num_registers={sizes[0]} and hidden_dim={sizes[1]}, got {layout.num_registers} "
            f"and {layout.hidden_dim}."
        )
    return signature, layout


def _image_sizes(owner: str, module: AttachedReadout | AttachedConditioner) -> tuple[int, ...]:
    """The sizes of the backbone's input, which are fixed in a program."""
    if isinstance(module.source, RegplugError):
        raise ExportError(f"{owner}: expected a backbone that a bundle can name, got: {module.source}")
    try:
        return input_shape(module.tokens)
    except SpecError as error:
        raise ExportError(f"{owner}: {error}") from error


def _rebuilt(
    owner: str,
    module: nn.Module,
    manifest: Manifest,
    state: Mapping[str, Tensor],
    golden: GoldenSet,
    registry: Registry,
) -> nn.Module:
    """The module rebuilt from the bundle's data; programs are made from it, without the user's hooks.

    Raises:
        ExportError: It differs from the exported module, so the bundle could not be loaded.
    """
    try:
        rebuilt = rebuild("to be", manifest, state, registry)
        results = [
            compare(module_run("to be", rebuilt, manifest.input_names), golden, case, manifest.outputs)
            for case in golden.golden.cases
        ]
    except RegplugError as error:
        if text := weights_computed(module):
            raise ExportError(f"{owner}: {text}") from error
        raise ExportError(f"{owner}: expected a module that its spec rebuilds, got another: {error}") from error
    why = "was it changed after spec.build()"
    if hooks := hooks_of(module):
        why = f"does a hook change them ({', '.join(hooks)})"
    elif manifest.backbone is not None:
        why += ", or its backbone built with options that it does not keep"
    for result in results:
        if not result.ok:
            raise ExportError(
                f"{owner}: expected a module that its spec rebuilds, got one whose outputs differ by "
                f"{result.error:.3g} in case '{result.case}'; {why}?"
            )
    if isinstance(rebuilt, ATTACHED):
        persist_buffers(rebuilt.tokens)
    return rebuilt


@contextmanager
def _readable(owner: str) -> Iterator[None]:
    """Refuse to write what readers refuse: options too large or too deep, or too many weights."""
    try:
        yield
    except BundleError as error:
        raise ExportError(f"{owner}: expected a bundle that can be read, got: {error}") from error

"""Describes a strategy, a backbone, a bundle or a weights file, for ``regplug info``."""

from __future__ import annotations

import inspect
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regplug.commands.shared_options import chosen_spec
from regplug.errors import NameLookupError, closest
from regplug.format.manifest import NOTE_KEYS
from regplug.format.read_bundle import check_bundle
from regplug.format.safetensors_header import read_file_header
from regplug.format.weights import parse_metadata
from regplug.format.wrong_path import check_weights_file
from regplug.nn.backbone import measure_backbone, named_backbone
from regplug.registry.default import default_registry
from regplug.registry.description import describe_options, spec_at_any_size
from regplug.registry.distributions import normalise
from regplug.registry.entries import BackboneEntry, ReadoutEntry
from regplug.registry.options import describe_signature
from regplug.registry.references import load_reference, reference_of
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec


def describe(
    what: str,
    *,
    num_registers: int | str | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    model_option: Any = (),
    digest: str | None = None,
    follow_links: bool,
) -> dict[str, Any]:
    """Describe what a name or a path means, as plain values.

    An existing path wins if it looks like a path, or if no strategy and no backbone has the name.

    Raises:
        NameLookupError: No strategy, backbone or path has this name, or several plugins offer it.
        RegplugError: The plugin, the bundle or the file is broken.
    """
    if not what:
        raise NameLookupError("info: expected a strategy, a backbone or a path, got ''.")
    registry = default_registry()
    if (os.sep in what or what.endswith(".safetensors")) and not _names_backbone(what, registry):
        return _describe_path(what, digest, follow_links)
    try:
        entry = registry.readout_entry(what)
    except NameLookupError as no_strategy:
        try:
            backbone_entry, model = named_backbone(what, registry)
        except NameLookupError:
            if Path(what).exists():
                return _describe_path(what, digest, follow_links)
            raise _unknown(what, registry, no_strategy) from None
        return _describe_backbone(backbone_entry, model, model_option)
    sizes = (num_registers, hidden_dim, backbone)
    return _describe_strategy(entry, sizes, options, model_option)


def _names_backbone(what: str, registry: Registry) -> bool:
    """Whether it is a backbone's model with a name like a path: ``transformers:OWNER/NAME``, or its folder."""
    if ":" not in what or Path(what).exists():
        return False
    try:
        return named_backbone(what, registry)[1] is not None
    except NameLookupError:
        return False


def _describe_path(what: str, digest: str | None, follow_links: bool) -> dict[str, Any]:
    path = Path(what)
    if path.is_dir():
        files = check_bundle(what, digest=digest, follow_links=follow_links)
        manifest = asdict(files.manifest)
        del manifest["programs"]
        programs = [
            f"{program.backend} ({', '.join(filter(None, (program.file, program.needs)))})"
            for program in files.manifest.programs
        ]
        sizes = {name: f"{record['size']} bytes" for name, record in manifest.pop("files").items()}
        cases = [case["case"] for case in manifest.pop("golden")["cases"]]
        return {
            "bundle": what,
            "digest": files.digest,
            **manifest,
            "programs": programs,
            "files": sizes,
            "golden_cases": cases,
        }
    if path.exists():
        return _describe_weights(what)
    raise NameLookupError(f"path {what!r}: expected a bundle's folder or a weights file, got nothing there.")


def _describe_weights(what: str) -> dict[str, Any]:
    owner = f"weights {what}"
    check_weights_file(owner, what)
    tensors, metadata = read_file_header(owner, what)
    said = parse_metadata(owner, metadata)
    return {
        "weights": what,
        **{key: said[key] for key in NOTE_KEYS if key in said},  # an unknown key could replace one of ours
        "tensors": [
            {"name": name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.end - info.begin}
            for name, info in sorted(tensors.items())
        ],
    }


def _unknown(what: str, registry: Registry, no_strategy: NameLookupError) -> NameLookupError:
    """The error for an unknown name; after a known plugin's name, it says what that plugin offers."""
    head, colon, _ = what.partition(":")
    if colon and normalise(head) in {record.distribution for record in registry.plugins()}:
        return no_strategy
    known = [*registry.strategies(), *registry.backbones()]
    return NameLookupError(f"{what!r}: no strategy, no backbone and no path{closest(head, known)}.")


def _describe_backbone(entry: BackboneEntry, model: str | None, model_options: Any) -> dict[str, Any]:
    sizes = measure_backbone(entry, model, **dict(model_options))
    named = entry.name if model is None else f"{entry.name}:{model}"
    return {
        "backbone": entry.full_name,
        "model": model,
        "summary": entry.summary,
        "provenance": asdict(entry.provenance) if entry.provenance else None,
        "strategies": list(entry.readouts),
        "default": entry.default,
        "options": dict(entry.options),
        "layout": sizes.layout.as_dict(),
        "groups": [asdict(group) for group in sizes.layout.groups],
        "layout_is": f"declared by the plugin; `regplug check --backbone {named}` compares it with the network",
        "film_sites": [asdict(site) for site in sizes.film_sites],
    }


def _describe_strategy(
    entry: ReadoutEntry, sizes: tuple[int | str | None, int | None, str | None], options: Any, model_option: Any
) -> dict[str, Any]:
    build = load_reference(f"strategy {entry.name!r}", entry.build)
    description = inspect.cleandoc(build.__doc__ or "")  # its own: getdoc would give that of nn.Module
    values: dict[str, Any] = {
        "strategy": entry.full_name,
        "summary": entry.summary,
        "provenance": asdict(entry.provenance) if entry.provenance else None,
        "class": reference_of(entry.build),
        "signature": describe_signature(build),
        "options": [{"option": name, **asdict(one)} for name, one in describe_options(entry).items()],
        "equation": entry.equation,
        "source": entry.source,
    }
    if sizes == (None, None, None):
        spec = spec_at_any_size(entry, dict(options))
        if spec is not None:
            values |= {"formula": spec.formula, "conditions": spec.conditions}
    else:
        spec, _ = chosen_spec(entry.full_name, *sizes, options, model_option)
        values |= {"num_registers": spec.num_registers, "hidden_dim": spec.hidden_dim, "cond_dim": spec.cond_dim}
        values |= {"formula": spec.formula, "conditions": spec.conditions, **_costs(spec)}
    return {**values, "description": description}


def _costs(spec: ReadoutSpec) -> dict[str, int]:
    import torch

    with torch.device("meta"):
        module = spec.build()
    costs = {"parameters": sum(parameter.numel() for parameter in module.parameters())}
    with suppress(Exception):  # not every class has one, and other packages may count differently
        costs["flops_per_sample"] = int(module.flop_count(spec.hidden_dim))  # type: ignore[operator]
    return costs

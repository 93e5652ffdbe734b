"""Answers ``regplug info``: what a strategy, a backbone, a bundle or a weights file is."""

from __future__ import annotations

import inspect
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regplug.choices import chosen_backbone, chosen_spec
from regplug.entries import ReadoutEntry, load_reference, reference_of
from regplug.errors import NameLookupError
from regplug.folder import read_lone_file
from regplug.installed import default_registry
from regplug.options import describe as describe_options
from regplug.reading import read_bundle
from regplug.weights import read_header, read_metadata


def inform(
    what: str,
    *,
    num_registers: int | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    follow_links: bool,
) -> dict[str, Any]:
    """What ``what`` is, as plain values. A path that exists is meant where it looks like one, or nothing has the name.

    Raises:
        NameLookupError: No strategy, backbone or path has this name, or several plugins offer it.
        RegplugError: What the name leads to is broken.
    """
    if not what:
        raise NameLookupError("info: expected a strategy, a backbone or a path, got ''.")
    if os.sep in what or what.endswith(".safetensors"):
        return _inform_path(what, follow_links)
    registry = default_registry()
    try:
        entry = registry.readout_entry(what)
    except NameLookupError as no_strategy:
        try:
            return _inform_backbone(what)
        except NameLookupError:
            if Path(what).exists():
                return _inform_path(what, follow_links)
            raise no_strategy from None
    return _inform_strategy(entry, num_registers, hidden_dim, backbone, options)


def _inform_path(what: str, follow_links: bool) -> dict[str, Any]:
    path = Path(what)
    if path.is_dir():
        files = read_bundle(what, follow_links=follow_links)
        manifest = asdict(files.manifest)
        programs = [f"{one['backend']} ({one['file']})" for one in manifest.pop("programs")]
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
        return _inform_weights(what)
    raise NameLookupError(f"path {what!r}: expected a bundle's folder or a weights file, got nothing there.")


def _inform_weights(what: str) -> dict[str, Any]:
    owner = f"weights {what}"
    data = read_lone_file(owner, what)
    tensors, _ = read_header(owner, data)
    return {
        "weights": what,
        **read_metadata(owner, data),
        "tensors": [
            {"name": name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.end - info.begin}
            for name, info in sorted(tensors.items())
        ],
    }


def _inform_backbone(what: str) -> dict[str, Any]:
    entry, sizes = chosen_backbone(what)
    return {
        "backbone": entry.full_name,
        "summary": entry.summary,
        "provenance": asdict(entry.provenance) if entry.provenance else None,
        "strategies": list(entry.readouts),
        "default": entry.default,
        "options": dict(entry.options),
        "layout": sizes.layout.as_dict(),
        "film_sites": [asdict(site) for site in sizes.film_sites],
    }


def _inform_strategy(
    entry: ReadoutEntry, num_registers: int | None, hidden_dim: int | None, backbone: str | None, options: Any
) -> dict[str, Any]:
    build = load_reference(f"strategy {entry.name!r}", entry.build)
    values: dict[str, Any] = {
        "strategy": entry.full_name,
        "summary": entry.summary,
        "provenance": asdict(entry.provenance) if entry.provenance else None,
        "class": reference_of(entry.build),
        "options": describe_options(build, entry.sizes),
        "description": inspect.getdoc(build),
    }
    if backbone is None and num_registers is None and hidden_dim is None:
        return values
    import torch

    spec, _ = chosen_spec(entry.full_name, num_registers, hidden_dim, backbone, options)
    with torch.device("meta"):
        module = spec.build()
    values["cond_dim"] = spec.cond_dim
    values["parameters"] = sum(parameter.numel() for parameter in module.parameters())
    if callable(getattr(module, "flop_count", None)):
        values["flops_per_sample"] = module.flop_count(spec.hidden_dim)  # type: ignore[operator]
    return values

"""Checks of what a backbone's entry states: how a model is built, described and recognised, and what fits it."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from regplug.conformance.backbone_subject import BackboneSubject
from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.light_import import light_plugin
from regplug.conformance.subject import close
from regplug.errors import ConformanceError, RegplugError
from regplug.nn.backbone import (
    ask_description,
    ask_film_sites,
    ask_layout,
    ask_tokens,
    build_backbone,
    recognise,
    with_defaults,
)
from regplug.nn.pairing import film_family
from regplug.registry.entries import FILE_NAME
from regplug.registry.integers import is_positive_int
from regplug.registry.options import json_options
from regplug.torch_private import OperationWatch

UNKNOWN = "no-such-name"
ROUNDING = 1e-4  # of the largest number: torch may use other kernels
MAX_ALLOCATED = 2**20  # bytes that a constructor may compute outside the meta device, such as rates of drop path


def meta(subject: BackboneSubject) -> None:
    """The model can be built on the meta device: no memory is allocated; weights, layout and FiLM sites are the same.

    ``regplug info`` and ``cond-dim`` get sizes there. With a tensor on a fixed device, or a number read from a weight,
    they need as much memory as the model, or fail.
    """
    allocated = 0

    def count(name: str, given: tuple[object, ...], output: object) -> None:
        nonlocal allocated
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        owned = {one.untyped_storage().data_ptr() for one in given if isinstance(one, Tensor) and not one.is_meta}
        for one in outputs:
            if isinstance(one, Tensor) and not one.is_meta and one.untyped_storage().data_ptr() not in owned:
                allocated += one.untyped_storage().nbytes()

    with torch.device("meta"), OperationWatch(count):
        built = build_backbone(subject.entry, subject.model, **subject.options)
    if isinstance(built, nn.Module):
        for name, tensor in (*built.named_parameters(), *built.named_buffers()):
            if not tensor.is_meta:
                raise ConformanceError(f"build on the meta device: expected {name} there, got it on {tensor.device}.")
    if allocated > MAX_ALLOCATED:
        raise ConformanceError(
            f"build on the meta device: expected no tensors elsewhere, got {allocated / 2**20:.3g} MiB of them."
        )
    _refuse_other_model("build on the meta device", subject, built)


def describe(subject: BackboneSubject) -> str:
    """``describe`` gives a name and options as JSON values, and ``build`` makes the same model from them.

    A bundle with the backbone inside holds nothing else. An option that ``describe`` leaves out gives another network
    when the bundle is loaded: other shapes, or tokens at other positions.
    """
    if subject.entry.describe is None:
        raise DoesNotApplyError("its entry has no describe=, so no bundle can hold its models")
    name, options = ask_description(subject.entry, subject.network)
    if name is not None and not (isinstance(name, str) and FILE_NAME.fullmatch(name)):
        raise ConformanceError(f"describe: expected a name without '/' and spaces, or None, got {name!r}.")
    stored = json_options(f"backbone {subject.entry.name!r}", options)
    step = f"build of what describe gave ({name}, {json.dumps(stored)})"
    with torch.device("meta"):
        built = build_backbone(subject.entry, name, **stored)
    _refuse_other_model(step, subject, built)
    _refuse_other_tokens(step, subject, built, name, stored)
    return f"{name}, {json.dumps(stored)}"


def refusals(subject: BackboneSubject) -> None:
    """A model and an option that do not exist are refused.

    A misspelt option that is silently ignored builds another network than the user asked for.
    """
    requests: list[tuple[str, str | None, dict[str, Any]]] = [
        (f"model {UNKNOWN!r}", UNKNOWN, {}),
        (f"option {UNKNOWN.replace('-', '_')}=1", subject.model, {**subject.options, UNKNOWN.replace("-", "_"): 1}),
    ]
    for what, model, options in requests:
        with torch.device("meta"):
            try:
                build_backbone(subject.entry, model, **options)
            except RegplugError:
                continue
        raise ConformanceError(f"build: {what}: expected a refusal, got a model.")


def recognised(subject: BackboneSubject) -> None:
    """The model's class identifies this backbone, and no other.

    ``layout_of(model)``, ``read_registers`` and ``attach`` look for the names of its class and base classes in
    ``classes``.
    """
    if not subject.entry.classes:
        raise DoesNotApplyError("its entry has no classes=, so an instance is not recognised")
    found = recognise(subject.network, None, subject.registry)
    if found.full_name != subject.entry.full_name:
        raise ConformanceError(
            f"classes: expected {subject.entry.full_name} to recognise its model, got {found.full_name}."
        )


def strategies(subject: BackboneSubject) -> str:
    """Every strategy in ``readouts`` is registered; the default one can be built at this R and D with ``options``.

    ``regplug cond-dim --backbone NAME`` and ``attach(model)`` use the default.
    """
    entry, layout = subject.entry, subject.layout
    if not entry.readouts:
        raise DoesNotApplyError("its entry offers no readouts")
    for name in entry.readouts:
        subject.registry.readout_entry(name)
    if entry.default is None:
        return "no default"
    spec = subject.registry.resolve(
        entry.default,
        num_registers=layout.num_registers,
        hidden_dim=layout.hidden_dim,
        **with_defaults(entry, subject.registry.readout_entry(entry.default), {}, subject.registry),
    )
    with torch.device("meta"):
        spec.build()
    return f"{spec.strategy}, cond_dim {spec.cond_dim}"


def film_sites(subject: BackboneSubject) -> str:
    """Each FiLM site is a module of the model, is named once, and has as many layers and features as stated.

    FiLM pairs of another width, or more pairs than layers, fail much later, in a forward.
    """
    if subject.entry.film_sites is None:
        raise DoesNotApplyError("its entry has no film_sites=")
    network, seen = subject.network, set()
    for site in subject.film_sites:
        owner = f"film site {site.where!r}"
        if site.where in seen:
            raise ConformanceError(f"{owner}: expected each site once, got it twice.")
        seen.add(site.where)
        try:
            module = network.get_submodule(site.where) if site.where else None
        except AttributeError:
            module = None
        if module is None:
            raise ConformanceError(f"{owner}: expected a module of {type(network).__name__}, got none there.")
        for word, count in (("features", site.features), ("num_layers", site.num_layers)):
            if not is_positive_int(count):
                raise ConformanceError(f"{owner}: {word}: expected a positive integer, got {count!r}.")
        _check_widths(owner, module, site.features, site.num_layers, subject)
    return f"{len(seen)} sites"


def _check_widths(owner: str, module: nn.Module, features: int, num_layers: int, subject: BackboneSubject) -> None:
    """Compare with the sizes of a FiLM generator inside the site; without one, with the site's own weights."""
    for path, part in module.named_modules():
        if film_family(part, subject.registry) is None:
            continue
        for word, stated in (("kernel_hidden_dim", features), ("num_film_layers", num_layers)):
            found = getattr(part, word, stated)
            if found != stated:
                raise ConformanceError(f"{owner}: expected {word}={found}, as {path} has, got {stated}.")
    layers = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    matching = [part for part in layers if any(features in one.shape for one in part.parameters(recurse=False))]
    if layers and len(matching) < num_layers:
        raise ConformanceError(
            f"{owner}: expected {num_layers} layers of {features} features, as stated, got {len(matching)} layers with "
            "a weight of that size there."
        )


def _refuse_other_model(step: str, subject: BackboneSubject, built: Any) -> None:
    """Refuse a model with another layout, other FiLM sites, or other names and shapes in its state dict."""
    layout = ask_layout(subject.entry, built)
    if layout != subject.layout:
        raise ConformanceError(f"{step}: expected the same layout, got {_difference(subject.layout, layout)}.")
    if ask_film_sites(subject.entry, built) != subject.film_sites:
        raise ConformanceError(f"{step}: expected the same FiLM sites, got others.")
    if isinstance(subject.built, nn.Module):
        wanted, got = _weights(subject.built), _weights(built) if isinstance(built, nn.Module) else set()
        if wanted != got:
            name, shape, dtype = min(wanted ^ got)
            word = "missing" if (name, shape, dtype) in wanted else "not among them"
            raise ConformanceError(
                f"{step}: expected the names, shapes and dtypes of the model's weights, got others: {name} "
                f"{list(shape)} {dtype} is {word}."
            )


def _refuse_other_tokens(
    step: str, subject: BackboneSubject, built: Any, name: str | None, options: dict[str, Any]
) -> None:
    """Refuse a model that computes something else with the same weights: some options change no shape."""
    if subject.entry.tokens is None or not isinstance(built, nn.Module):
        return
    inputs = subject.checked_inputs(1)
    built.load_state_dict(subject.network.state_dict(), strict=False, assign=True)
    if any(one.is_meta for one in (*built.parameters(), *built.buffers())):  # such as a table outside the state dict
        built = build_backbone(subject.entry, name, **options)
        built.load_state_dict(subject.network.state_dict(), strict=False, assign=True)
    got = subject.read(ask_tokens(subject.entry, built.eval(), bool(subject.layout.normalized)), inputs)
    close(f"{step}, with the model's weights: tokens", got, subject.read(subject.stated_tokens, inputs), ROUNDING)


def _weights(model: nn.Module) -> set[tuple[str, tuple[int, ...], str]]:
    return {(name, tuple(one.shape), str(one.dtype)) for name, one in model.state_dict().items()}


def _difference(wanted: Any, got: Any) -> str:
    before, after = wanted.as_dict(), got.as_dict()
    changed = [word for word in before if before[word] != after[word]]
    return ", ".join(f"{word}={after[word]!r} instead of {before[word]!r}" for word in changed)


CHECKS: tuple[Check[BackboneSubject], ...] = (
    Check("light-plugin", light_plugin),
    Check("meta", meta),
    Check("describe", describe),
    Check("refusals", refusals),
    Check("recognised", recognised),
    Check("strategies", strategies),
    Check("film-sites", film_sites),
)

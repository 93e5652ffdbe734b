"""A backbone with a readout attached: one module from the model's inputs to a conditioning vector or FiLM pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from regplug.errors import RegplugError, SpecError
from regplug.nn.attached import Attached, AttachedConditioner, AttachedReadout, BackboneSource
from regplug.nn.backbone import ask_description, build_backbone, inside, named_backbone, recognise, with_defaults
from regplug.nn.conditioner import BuiltReadout, Conditioner
from regplug.nn.film import KernelFiLMGenerator
from regplug.nn.join import Join
from regplug.nn.pairing import check_gives_pairs, pair
from regplug.nn.readouts.join_parts import JOIN
from regplug.nn.shared_tensors import Origin, share_tensors
from regplug.nn.tokens import layout_for_group, tokens_of
from regplug.registry.default import default_registry
from regplug.registry.entries import FILE_NAME, BackboneEntry
from regplug.registry.layout import REGISTERS, TOKENS
from regplug.registry.options import json_options
from regplug.registry.references import Reference
from regplug.registry.registry import Registry
from regplug.registry.spec import specify


def attach(
    model: nn.Module | str,
    strategy: str | Join | None = None,
    *,
    group: str = REGISTERS,
    strategy_options: Mapping[str, Any] | None = None,
    film: Reference | nn.Module | None = None,
    film_options: Mapping[str, Any] | None = None,
    form: str | None = None,
    order: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    normalized: bool | None = None,
    freeze: bool = False,
    backbone: str | None = None,
    registry: Registry | None = None,
    **options: Any,
) -> AttachedReadout | AttachedConditioner:
    """Put a readout, and a FiLM generator if wanted, on top of a model; layout, sizes and width are found.

    The result shares the model's tensors and hooks, so training it trains the model's weights too. It has its own copy
    of everything else, as it is now: each module's train or eval mode, gradient checkpointing, submodules. So
    ``model.train()`` does not change the result, nor the reverse. It starts in the model's mode, and refuses to run
    after the model's submodules were replaced: attach last.

    Args:
        model: A model that an installed plugin knows, or a name, ``"timm:vit_small_patch14_reg4_dinov2"``, which is
            then built with random weights.
        strategy: The readout, by name; several of different groups, and vectors, ``join(cls="mean", state=7)``; the
            backbone's default when None.
        group: The tokens that the readout reads: another group of ``layout_of(model).groups``, as ``"cls"`` or
            ``"patches"``. A group of free length needs a model that takes one size of images, and runs it once.
        strategy_options: The strategy's options as a mapping, for an option named like a parameter of this function.
        film: A FiLM generator's registered name, class, ``"module:Class"`` or an instance, as ``pair`` takes it; None
            for the conditioning vector itself. With ``film_options`` alone it is a ``KernelFiLMGenerator``.
        film_options: The generator's arguments, without its width.
        form: What the generator's pairs mean, as for ``Conditioner``, if its family is not known.
        order: As ``form``.
        model_options: Arguments for building a named model: ``{"img_size": 224}``.
        normalized: Whether the model's final norm is applied to the registers; None does as the model's own features.
        freeze: Whether the backbone stays in eval mode and gets no gradients. ``requires_grad`` becomes False on its
            weights, which are the model's own. Autocast still applies to it.
        backbone: The backbone that the model is of, if several plugins know its class.
        registry: Where names are looked up; the installed plugins when None.
        **options: The strategy's options.

    Raises:
        NameLookupError: No plugin knows the model, or the strategy is not registered.
        SpecError: The model has no registers or no such group, an option does not fit, the generator takes another
            width or gives no pairs, or a method of the model was replaced by a function that calls the model itself.
    """
    _check_options("strategy_options", strategy_options, set())
    options = {**(strategy_options or {}), **options}
    _check_options("options", options, {"strategy", "num_registers", "hidden_dim"})
    _check_options("film_options", film_options, {"spec", "film", "width", "registry"})
    _check_options("model_options", model_options, set())
    registry = registry or default_registry()
    entry, network, description = _network_of(model, backbone, model_options or {}, registry)
    tokens, layout = tokens_of(entry, network, normalized)
    if isinstance(strategy, Join):
        if group != REGISTERS:
            raise SpecError(f"attach: group: expected none with a join, which names its groups, got {group!r}.")
        if options:
            raise SpecError(f"attach: options: expected each in its part of the join, got {', '.join(options)}.")
        every_token = layout_for_group(tokens, layout, TOKENS)
        options = strategy.options(layout, every_token.num_registers, registry)
        strategy, layout, group = JOIN, every_token, TOKENS
    source = _source_of(entry, network, description, bool(layout.normalized))
    if strategy is None:
        if entry.default is None:
            raise SpecError(f"backbone {entry.name!r}: expected a strategy, got none, and it has no default.")
        strategy = entry.default
    chosen = registry.readout_entry(strategy)
    if chosen.full_name == JOIN and group == REGISTERS:
        group = TOKENS
    layout = layout_for_group(tokens, layout, group)
    options = with_defaults(entry, chosen, options, registry)
    if film is not None:
        check_gives_pairs(film, registry)  # before its options are checked
    own_tokens = share_tensors(tokens)
    spec = specify(chosen, layout.num_registers, layout.hidden_dim, options)
    readout = BuiltReadout(spec)
    attached: AttachedReadout | AttachedConditioner
    if film is None and film_options is None:
        attached = AttachedReadout(own_tokens, layout, readout.module, spec, source)
    else:
        generator = pair(spec, KernelFiLMGenerator if film is None else film, registry=registry, **(film_options or {}))
        conditioner = Conditioner(layout, readout, generator, form, order, registry)
        attached = AttachedConditioner(own_tokens, conditioner, spec, source)
    attached.origin = Origin(network, tokens)
    _start_in_mode(attached, network.training)
    if freeze:
        attached.freeze()
    return attached


def _start_in_mode(attached: Attached, mode: bool) -> None:
    """New modules take the model's mode; those of the backbone keep theirs: a norm may be in eval mode on purpose."""
    kept = {part: part.training for part in attached.tokens.modules()}
    attached.train(mode)
    for part, own in kept.items():
        part.training = own
    attached.tokens.training = mode


def _check_options(word: str, options: Mapping[str, Any] | None, reserved: set[str]) -> None:
    if not isinstance(options or {}, Mapping):
        raise SpecError(f"{word}: expected a mapping of names to values, got {options!r}.")
    if clashes := sorted(reserved & {*(options or {})}):
        raise SpecError(f"{word}: {clashes[0]}: expected an option, got a word that means something else here.")


Description = tuple[str | None, dict[str, Any]]  # the model's name, and the options of which ``build`` makes it


def _network_of(
    model: nn.Module | str, backbone: str | None, options: Mapping[str, Any], registry: Registry
) -> tuple[BackboneEntry, nn.Module, Description | None]:
    """The backbone, its model, and the model's description if a bundle may hold the name that the caller gave."""
    if not isinstance(model, str):
        if options:
            raise SpecError(f"model_options: expected none with an instance, got {', '.join(options)}.")
        return recognise(model, backbone, registry), inside(model), None
    entry, name = named_backbone(model if backbone is None else f"{backbone}:{model}", registry)
    stored = json_options(f"backbone {entry.name!r}", options)
    network = build_backbone(entry, name, **stored)
    is_name = name is None or FILE_NAME.fullmatch(name)  # else it is a hub's address, or a folder
    return entry, network, (name, stored) if is_name else None


def _source_of(
    entry: BackboneEntry, model: nn.Module, description: Description | None, normalized: bool
) -> BackboneSource | RegplugError:
    """A model that its plugin cannot describe can still be trained; only a bundle must name it."""
    try:
        name, options = description or ask_description(entry, model)
        return BackboneSource(entry, name, json_options(f"backbone {entry.name!r}", options), normalized)
    except RegplugError as error:
        return error

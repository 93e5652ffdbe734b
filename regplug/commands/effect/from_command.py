"""What ``regplug audit --effect`` does: builds the network, loads its weights, measures, prints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from regplug.commands.audit.inputs import Inputs
from regplug.commands.effect.inputs import read_inputs
from regplug.commands.effect.options import EffectOptions
from regplug.commands.effect.report import NOTHING, print_report
from regplug.commands.effect.run import DEFAULT_BATCH, effect
from regplug.commands.printing import EXIT_FAILED, print_json, progress, say
from regplug.errors import SpecError, class_name, closest, one_line
from regplug.registry.cond_dim import construct
from regplug.registry.options import bind


def run_effect(
    what: str,
    owner: str,
    build: Callable[..., Any],
    sizes: Mapping[str, Any],
    options: Mapping[str, Any],
    words: Mapping[str, str],
    is_backbone: bool,
    shapes: Inputs | None,
    asked: EffectOptions,
    as_json: bool,
) -> None:
    """Build, measure, print.

    Args:
        what: The network, as the user named it.
        owner: The network, for messages.
        build: Its class, or a function that returns it.
        sizes: Its sizes; None for the constructor's own.
        options: Its other arguments.
        words: The constructor's own names for sizes, each with ours.
        is_backbone: Whether a plugin builds it, with random weights.
        shapes: Gives the shapes of inputs to draw; found by trying when None.
        asked: The options of ``--effect``.
        as_json: Whether to print JSON.
    """
    inputs = None if asked.inputs_file is None else read_inputs(asked.inputs_file)
    if inputs is not None and (shapes is not None or asked.batch is not None):
        raise click.UsageError("--inputs: expected no --input and no --batch with it, got one.")
    with progress(f"measuring {what}") as step:
        step("building")
        given = {word: size for word, size in sizes.items() if size is not None}
        network = construct(owner, build, bind(owner, build, given, options, words))
        missing: tuple[str, ...] = ()
        is_fresh = is_backbone or inspect.isclass(build)
        trained = False if is_fresh else None
        if asked.weights is not None:
            missing, trained = load_weights(owner, network, asked.weights), True
        report = effect(
            network,
            inputs,
            batch=DEFAULT_BATCH if asked.batch is None else asked.batch,
            trained=trained,
            missing=missing,
            shapes=shapes,
            step=step,
        )
    failing, is_empty = report.failing(asked.fail_on), bool(asked.fail_on) and not report.sites
    if as_json:
        print_json("effect", {**report.as_json(asked.fail_on), "network": what})
    else:
        print_report(report)
        if failing:
            say("failed: " + ", ".join(dict.fromkeys(f"{one.kind} ({one.module})" for one in failing)))
        if is_empty:
            say(f"failed: {NOTHING}")
    if failing or is_empty:
        click.get_current_context().exit(EXIT_FAILED)


def load_weights(owner: str, network: nn.Module, path: Path) -> tuple[str, ...]:
    """Fill a network from a file; gives the names of its tensors that the file does not have, or in another shape.

    Raises:
        SpecError: It is no safetensors file, or has none of the network's tensors.
    """
    from safetensors.torch import load

    try:
        found = load(path.read_bytes())
    except Exception as error:  # safetensors has its own class
        raise SpecError(
            f"--weights: {path.name}: expected a safetensors file, got {class_name(error)}: {one_line(error)}."
        ) from error
    own = network.state_dict()
    fits = {name: tensor for name, tensor in found.items() if name in own and own[name].shape == tensor.shape}
    if not fits:
        name = next(iter(found), "no tensor")
        raise SpecError(
            f"--weights: {path.name}: expected tensors of {owner}, got {name!r} and others{closest(name, [*own])}; "
            "check for a prefix in their names."
        )
    with torch.no_grad():
        network.load_state_dict(fits, strict=False)
    return tuple(name for name in own if name not in fits)

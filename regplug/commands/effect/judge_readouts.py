"""Findings about readouts: which tokens they read, and which they use."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from regplug.commands.effect.findings import INFO, MAYBE, SURE, Finding, finding
from regplug.commands.effect.observe import Observation, Reading
from regplug.commands.effect.outputs import varies
from regplug.commands.effect.subject import Subject
from regplug.errors import RegplugError
from regplug.registry.layout import TokenLayout


def constant_tokens(reading: Reading, batch: int) -> list[int]:
    """The tokens that are the same for all samples, by number."""
    if reading.tokens is None:
        return []
    return [r for r in range(reading.tokens.shape[1]) if not varies(reading.tokens[:, r], batch)]


def misplaced_tokens(reading: Reading, layout: TokenLayout | None) -> list[int] | None:
    """The tokens that are no registers, by number; None if that is not known."""
    if layout is None or reading.positions is None or reading.tokens is None:
        return None
    if layout.num_registers is None or reading.tokens.shape[1] != layout.num_registers:
        return None
    try:
        declared = set(layout.positions(reading.length))
    except RegplugError:  # a sequence that is too short for the layout
        return None
    return [number for number, places in enumerate(reading.positions) if declared.isdisjoint(places)]


def _is_padding(position: int, length: int, layout: TokenLayout) -> bool:
    """Whether a position is in none of a layout's groups; False if it names none."""
    known = {place for group in layout.groups for place in layout.for_group(group.name, length).positions(length)}
    return bool(known) and position not in known


def is_zero(reading: Reading, trained: bool | None) -> bool:
    """Whether it reads zeros in a trained network, as padding is; learned tokens may be zero at their start."""
    return bool(trained) and reading.tokens is not None and not bool(reading.tokens.any())


def is_before_mixing(reading: Reading, layout: TokenLayout | None, batch: int, trained: bool | None) -> bool:
    """Whether its tokens are the same for all samples, as learned tokens are at first, and not known to be others."""
    if reading.tokens is None or misplaced_tokens(reading, layout) or is_zero(reading, trained):
        return False
    return len(constant_tokens(reading, batch)) == reading.tokens.shape[1] > 0


def is_constant_vector(reading: Reading, batch: int) -> bool:
    """Whether its output is the same for all samples, although its tokens vary."""
    if reading.output is None or reading.tokens is None or constant_tokens(reading, batch):
        return False
    return not varies(reading.output, batch)


def judge_readout(
    path: str, subject: Subject, seen: Observation, layout: TokenLayout | None, trained: bool | None, grade: str
) -> list[Finding]:
    """The findings about one readout.

    Args:
        path: Its path.
        subject: The network and its inputs.
        seen: What a forward pass showed.
        layout: Where the registers sit, if that is known.
        trained: Whether the network is trained.
        grade: Of findings that depend on the inputs.
    """
    reading = seen.readings.get(path)
    if reading is None or reading.tokens is None:
        return []
    constant, wrong = constant_tokens(reading, subject.batch), misplaced_tokens(reading, layout)
    places = [] if reading.positions is None else [one[0] for one in reading.positions]
    if wrong:
        padding = [n for n in wrong if n in constant or (layout and _is_padding(places[n], reading.length, layout))]
        kind = "reads-padding" if padding else "reads-wrong-tokens"
        return [finding(kind, SURE, path, len(wrong), detail=f"at {places} of {reading.length} tokens")]
    if len(constant) == reading.tokens.shape[1] and (wrong == [] or not is_zero(reading, trained)):
        detail = "" if wrong == [] else "if they are registers: the layout is not known"
        return [finding("before-mixing", INFO, path, 0.0, detail=detail)]
    found = []
    if constant and wrong is None:
        found.append(finding("reads-padding", MAYBE, path, len(constant), detail="the layout is not known"))
    elif is_constant_vector(reading, subject.batch):
        found.append(finding("constant-conditioning", grade, path, 0.0, detail="the readout's output; its tokens vary"))
    used = registers_used(path, subject, reading.tokens)
    if used and len(used) < reading.tokens.shape[1] and not constant:
        other = registers_used(path, subject, reading.tokens, is_redrawn=True)
        by_design = other == used  # with other weights too: it selects
        missing = reading.tokens.shape[1] - len(used)
        found.append(finding("registers-ignored", INFO if by_design else MAYBE, path, missing))
    return found


def registers_used(path: str, subject: Subject, tokens: Tensor, is_redrawn: bool = False) -> tuple[int, ...] | None:
    """The registers to which a readout's output reacts, by number; None if its gradient cannot be computed.

    Args:
        path: The readout's path.
        subject: The network.
        tokens: What it reads.
        is_redrawn: Whether to give it small random weights first, in a copy.
    """
    given = tokens.detach().clone().requires_grad_(True)
    generator = torch.Generator().manual_seed(subject.seed)
    try:
        readout = subject.paths[path]
        if is_redrawn:
            readout = copy.deepcopy(readout)
            with torch.no_grad():
                for parameter in readout.parameters():
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        with torch.enable_grad():
            output = readout(given)
            direction = torch.randn(output.shape, generator=generator).to(output)
            (slope,) = torch.autograd.grad(output, given, direction, allow_unused=True)
    except Exception:  # a readout may take more than tokens, or have no gradient
        return None
    if slope is None:
        return None
    strength = slope.double().norm(dim=2).amax(dim=0)
    return tuple((strength > 0).nonzero().flatten().tolist())

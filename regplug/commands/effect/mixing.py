"""Whether one sample's conditioning reaches another sample, and whether conditioning follows the inputs at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regplug.commands.audit.tensor_trees import map_tensors, tensors_in
from regplug.commands.effect.findings import SURE, Finding, finding
from regplug.commands.effect.interventions import of_arguments
from regplug.commands.effect.observe import Observation
from regplug.commands.effect.outputs import rows, varies
from regplug.commands.effect.subject import Outputs, Subject

TOLERANCE = 8  # times the dtype's eps: the same row may be rounded differently in another batch


def with_first_replaced(batch: int) -> Callable[[Tensor], Tensor]:
    """Sample 0 gets the row of the sample half a batch away; all others keep theirs."""

    def changed(one: Tensor) -> Tensor:
        if not one.dim() or one.shape[0] != batch:
            return one
        other = one.clone()
        other[0] = one[batch // 2]
        return other

    return changed


def judge_mixing(subject: Subject, seen: Observation, baseline: Outputs) -> list[Finding]:
    """Findings ``batch-mixed`` and ``stale-conditioning``."""
    films = [path for path in seen.plan.films if path in seen.conditioning]
    if not films:
        return []
    change = with_first_replaced(subject.batch)
    inputs = subject.swapped_inputs(change)

    def held(without: str = "") -> dict[str, Callable[[Any], Any]]:
        return {
            path: _put(seen.conditioning[path], seen.plan.conditioning.get(path, ()))
            for path in films
            if path != without
        }

    still = subject.run(inputs=inputs, before=held())
    if changed_rows(baseline[""], still[""], subject.batch) - {0}:
        return []  # the network itself mixes samples, whatever they are conditioned on
    found: list[Finding] = []
    arrived: dict[str, list[Tensor]] = {path: [] for path in films}
    subject.run(inputs=inputs, before={path: _keep(arrived[path], seen, path) for path in films})
    for path in films:
        before, after = seen.conditioning[path], arrived[path]
        if len(before) != len(after) or not any(varies(one, subject.batch) for one in before):
            continue
        reached = set().union(*(_rows_of(one, other, subject.batch) for one, other in zip(before, after, strict=True)))
        if reached - {0}:
            found.append(finding("batch-mixed", SURE, path, len(reached - {0}), detail="on the way to it"))
            continue
        own = subject.run(before={**held(path), path: of_arguments(seen.plan.conditioning.get(path, ()), change)})
        others = changed_rows(baseline[""], own[""], subject.batch) - {0}
        if others:
            found.append(finding("batch-mixed", SURE, path, len(others), detail="in it or behind it"))
        elif not reached and _differs(before, subject.batch) and not _is_random(subject, seen, path):
            found.append(finding("stale-conditioning", SURE, path, 0.0))
    return found


def changed_rows(before: Sequence[Tensor], after: Sequence[Tensor], batch: int) -> set[int]:
    """The samples whose outputs differ by more than rounding."""
    if len(before) != len(after):
        return set()
    return set().union(*(_rows_of(one, other, batch) for one, other in zip(before, after, strict=True)))


def _rows_of(before: Tensor, after: Tensor, batch: int) -> set[int]:
    if before.shape != after.shape or not before.dim() or before.shape[0] != batch:
        return set()
    if not before.is_floating_point():
        flat = (before != after).reshape(batch, -1).any(dim=1)
        return set(flat.nonzero().flatten().tolist())
    one, other = rows(before, batch), rows(after, batch)
    scale = one.norm(dim=1).max() * TOLERANCE * torch.finfo(before.dtype).eps
    return set(((one - other).norm(dim=1) > scale).nonzero().flatten().tolist())


def _differs(vectors: Sequence[Tensor], batch: int) -> bool:
    """Whether sample 0 and the one that replaces it have different conditioning."""
    change = with_first_replaced(batch)
    return any(_rows_of(one, change(one), batch) for one in vectors)


def _is_random(subject: Subject, seen: Observation, path: str) -> bool:
    """Whether the conditioning comes from a random number generator."""
    arrived: list[Tensor] = []
    subject.run(before={path: _keep(arrived, seen, path)}, seed=subject.seed + 1)
    pairs = zip(seen.conditioning[path], arrived, strict=False)
    return any(one.shape == other.shape and not torch.equal(one, other) for one, other in pairs)


def _keep(kept: list[Tensor], seen: Observation, path: str) -> Callable[[Any], Any]:
    def hook(given: Any) -> Any:
        tensors = list(tensors_in(given))
        chosen = [index for index in seen.plan.conditioning.get(path, ()) if index < len(tensors)]
        kept.extend(tensors[index].detach().clone() for index in chosen)
        return given

    return hook


def _put(values: Sequence[Tensor], indices: Sequence[int]) -> Callable[[Any], Any]:
    """Gives a module the conditioning of another forward pass, call by call."""
    rest = iter(values)

    def hook(given: Any) -> Any:
        tensors = list(tensors_in(given))
        new: dict[int, Tensor] = {}
        for index in indices:
            if index < len(tensors) and (value := next(rest, None)) is not None:
                new[id(tensors[index])] = value.clone()
        return map_tensors(lambda one: new.get(id(one), one), given)

    return hook

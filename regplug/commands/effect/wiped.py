"""Whether a gamma of 0 wipes out all features: whether anything behind it still depends on the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from regplug.commands.audit.origins import is_inside
from regplug.commands.audit.tensor_trees import is_vector, tensors_in
from regplug.commands.effect.findings import MAYBE, SURE
from regplug.commands.effect.interventions import Replaced
from regplug.commands.effect.observe import Modulation
from regplug.commands.effect.outputs import varies
from regplug.commands.effect.subject import Subject


def wiped_grade(subject: Subject, where: str, modulations: Sequence[Modulation]) -> str | None:
    """How sure it is that features are lost in a module's forward; None if they are not.

    Features go on if a module that runs later, or the output, gets anything but a vector that differs between samples.
    A gate of 0 on a branch is no loss for this reason: what leads around it differs. Nor is it one if another weight
    that starts at 0 is all that makes the rest constant, as in a network whose last layer starts at 0.

    Args:
        subject: The network and its inputs.
        where: Path of the module that multiplies its features by 0.
        modulations: All calls that scale or shift features; they keep their vectors when other weights change.
    """
    held = Replaced(subject.module, {one.number: one.place for one in modulations})
    vectors = {one.number: one.vector for one in modulations}
    held.change = lambda _: vectors[held.calls].clone()
    grade = _grade(subject, where, held)
    if grade is None:
        return None
    held.calls = 0
    try:
        with _without_zeros(subject):
            return None if _grade(subject, where, held) is None else grade
    except Exception:  # a network may refuse weights that it is not used to
        return grade


@contextmanager
def _without_zeros(subject: Subject) -> Iterator[None]:
    """Fill the weights that are 0 with random numbers, for a while."""
    generator = torch.Generator().manual_seed(subject.seed)
    zeros = [
        one
        for name, one in subject.module.named_parameters()
        if one.is_floating_point() and not name.endswith("bias") and not one.is_inference() and not bool(one.any())
    ]
    try:
        with torch.no_grad():
            for one in zeros:
                one.copy_(torch.randn(one.shape, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for one in zeros:
                one.zero_()


def _grade(subject: Subject, where: str, held: Replaced) -> str | None:
    behind: list[bool] = []
    state = {"has_left": False}

    def enter(path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        if state["has_left"] and not is_inside(path, where):
            held.is_paused = True
            behind.extend(_vary(subject, (args, kwargs)))
            held.is_paused = False

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        state["has_left"] = True

    with ExitStack() as hooks:
        for path in subject.paths:
            if where and (part := subject.hooked(path)) is not None:
                hooks.callback(part.register_forward_pre_hook(partial(enter, path), with_kwargs=True).remove)
        if (part := subject.hooked(where)) is not None:
            hooks.callback(part.register_forward_hook(leave).remove)
        output = subject.run(mode=held)[""]
    if any(behind) or any(varies(one, subject.batch) for one in output):
        return None
    return SURE if behind else MAYBE


def _vary(subject: Subject, value: Any) -> list[bool]:
    """Of each tensor of features whether it differs between samples."""
    features = [one for one in tensors_in(value) if one.is_floating_point() and not is_vector(one)]
    return [varies(one, subject.batch) for one in features if one.dim() and one.shape[0] % subject.batch == 0]

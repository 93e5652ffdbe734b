"""Whether a gamma of 0 wipes out all features: whether anything behind it still depends on the input."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn

from regplug.commands.audit.origins import is_inside
from regplug.commands.audit.tensor_trees import is_vector, tensors_in
from regplug.commands.effect.findings import MAYBE, SURE
from regplug.commands.effect.outputs import varies
from regplug.commands.effect.subject import Subject


def wiped_grade(subject: Subject, where: str) -> str | None:
    """How sure it is that features are lost in a module's forward; None if they are not.

    Features go on if a module that runs later, or the output, gets anything but a vector that differs between samples.
    A gate of 0 on a branch is no loss for this reason: what leads around it differs.

    Args:
        subject: The network and its inputs.
        where: Path of the module that multiplies its features by 0.
    """
    behind: list[bool] = []
    state = {"has_left": False}

    def enter(path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        if state["has_left"] and not is_inside(path, where):
            behind.extend(_vary(subject, (args, kwargs)))

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        state["has_left"] = True

    with ExitStack() as hooks:
        for path in subject.paths:
            if where and (part := subject.hooked(path)) is not None:
                hooks.callback(part.register_forward_pre_hook(partial(enter, path), with_kwargs=True).remove)
        if (part := subject.hooked(where)) is not None:
            hooks.callback(part.register_forward_hook(leave).remove)
        output = subject.run()[""]
    if any(behind) or any(varies(one, subject.batch) for one in output):
        return None
    return SURE if behind else MAYBE


def _vary(subject: Subject, value: Any) -> list[bool]:
    """Of each tensor of features whether it differs between samples."""
    features = [one for one in tensors_in(value) if one.is_floating_point() and not is_vector(one)]
    return [varies(one, subject.batch) for one in features if one.dim() and one.shape[0] % subject.batch == 0]

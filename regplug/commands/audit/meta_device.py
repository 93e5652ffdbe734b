"""Builds a module on the meta device, even where the constructor reads numbers out of small tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from regplug.commands.audit.tensor_trees import on_one_device
from regplug.errors import RegplugError, SpecError, class_name, one_line
from regplug.registry.cond_dim import construct

SEQUENCES = (torch.linspace, torch.logspace, torch.arange, torch.tensor)


class _NumbersOnCPU(TorchFunctionMode):
    """Sequences of numbers keep their values (``[x.item() for x in torch.linspace(...)]``); weights stay on meta."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in SEQUENCES:
            kwargs.setdefault("device", "cpu")
        return func(*on_one_device(args), **on_one_device(kwargs))


def build_on_meta(owner: str, build: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """The module on the meta device, and the device on which its constructor ran.

    A constructor that reads numbers which it computed with its weights runs on the CPU.

    Raises:
        SpecError: The constructor refuses the arguments on both devices.
    """
    with warnings.catch_warnings():  # sizes that the user did not ask for may draw a warning
        warnings.simplefilter("ignore")
        device = "meta"
        try:
            with torch.device("meta"), _NumbersOnCPU():
                module = construct(owner, build, arguments)
        except SpecError as error:
            if error.__cause__ is None or isinstance(error.__cause__, RegplugError):  # no fault of the meta device
                raise
            device = "cpu"
            module = construct(owner, build, arguments)
        try:
            return module.to("meta"), device
        except (Exception, SystemExit) as error:  # a quantized layer, a module that overrides ``to``
            raise SpecError(
                f"{owner}: expected a network that moves to the meta device, got {class_name(error)}: {one_line(error)}"
            ) from error

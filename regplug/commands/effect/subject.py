"""A copy of a network with one batch of inputs, run again and again under the same random numbers."""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from regplug.commands.audit.tensor_trees import map_tensors, tensors_in
from regplug.errors import SpecError, class_name, one_line
from regplug.nn.wrappers import unwrapped
from regplug.torch_private import as_written

# path of a module -> what to do with its arguments, or with its output
Changes = Mapping[str, Callable[[Any], Any]]
Outputs = dict[str, list[Tensor]]
# attributes that hold the rate of dropout, or of dropping whole paths: of torch's modules, timm's and transformers'
RATES = ("p", "dropout", "dropout_p", "drop_prob", "drop_rate")
OF_TORCH = frozenset(vars(nn.Module()))  # attributes that every module has


def copied(network: nn.Module) -> nn.Module:
    """A deep copy in eval mode, without wrappers, so that the network itself never runs.

    Raises:
        SpecError: It is no module, is scripted, has tensors without values, or cannot be copied.
    """
    owner = f"effect: {type(network).__name__}"
    if not isinstance(network, nn.Module):
        raise SpecError(f"effect: network: expected an nn.Module, got {type(network).__name__}.")
    inner = unwrapped(network)
    if isinstance(inner, torch.jit.ScriptModule):
        raise SpecError(f"{owner}: expected a module in Python, got a scripted one; use the module that was scripted.")
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise SpecError(f"{owner}: tensor {name!r}: expected one with values, got none; load its weights first.")
    try:
        return copy.deepcopy(inner).eval()
    except Exception as error:  # a class may define __deepcopy__, which may raise anything
        raise SpecError(
            f"{owner}: expected a network that can be copied, got {class_name(error)}: {one_line(error)}; "
            "use a freshly loaded one."
        ) from error


def other_in_eval(network: nn.Module) -> list[str]:
    """The paths of modules in train mode that compute something else in eval mode: active dropout, running statistics.

    A module of another library counts if an attribute of it is named as a rate and is one.
    """
    return [path or type(part).__name__ for path, part in network.named_modules() if part.training and _has_modes(part)]


def _has_modes(part: nn.Module) -> bool:
    if any(name == "running_mean" for name, _ in part.named_buffers(recurse=False)):
        return True
    rates = [vars(part).get(name) for name in RATES]  # not getattr: a property may raise anything
    return any(isinstance(rate, float) and 0 < rate <= 1 for rate in rates)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Leave all random number generators as they were: Python's, numpy's, torch's on every device."""
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(of_numpy)


class Subject:
    """A network, one batch of its inputs, and the seed that every forward pass starts from.

    Args:
        module: The network; it runs in eval mode, and is a copy.
        args: The arguments of its forward.
        kwargs: The keyword arguments of its forward.
        batch: The number of samples.
        seed: Set before every forward pass.
    """

    def __init__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int, seed: int = 0
    ) -> None:
        self.module, self.args, self.kwargs = module, args, dict(kwargs)
        self.batch, self.seed = batch, seed
        self.paths = dict(module.named_modules())
        self._attributes = [
            (part, _own(part)) for part in self.paths.values() if not isinstance(part, torch.jit.ScriptModule)
        ]
        self.buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}

    def run(
        self,
        watched: Sequence[str] = ("",),
        *,
        inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
        before: Changes | None = None,
        after: Changes | None = None,
        mode: Any = None,
        grad: bool = False,
        seed: int | None = None,
    ) -> Outputs:
        """The floating-point outputs of the watched modules, of all their calls together.

        Args:
            watched: Paths of modules; ``""`` is the network.
            inputs: Other arguments than its own.
            before: Changes ``(args, kwargs)`` of the modules at these paths.
            after: Changes the outputs of the modules at these paths.
            mode: A mode of torch to run under.
            grad: Whether to record gradients.
            seed: Another seed.
        """
        seen: Outputs = {path: [] for path in watched}
        with ExitStack() as stack:
            for path, change in (before or {}).items():
                stack.enter_context(_before(self.paths[path], change))
            for path, change in (after or {}).items():
                stack.enter_context(_after(self.paths[path], change))
            for path in seen:
                stack.enter_context(_after(self.paths[path], partial(_keep, seen[path])))
            stack.enter_context(torch.enable_grad() if grad else torch.no_grad())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(as_written())
            stack.enter_context(mode if mode is not None else nullcontext())
            args, kwargs = inputs if inputs is not None else (self.args, self.kwargs)
            args, kwargs = map_tensors(lambda one: one.clone() if not one.requires_grad else one, (args, kwargs))
            _seed(self.seed if seed is None else seed)
            self.module(*args, **kwargs)
        with torch.no_grad():
            for name, tensor in self.module.named_buffers():
                kept = self.buffers.get(name)  # written only if it changed: autograd counts writes
                if kept is not None and tensor.shape == kept.shape and not torch.equal(tensor, kept):
                    tensor.copy_(kept)
        return seen

    def forget(self) -> None:
        """Give modules the attributes that they had before the first forward pass: tensors kept since are gone."""
        for part, before in self._attributes:
            own = part.__dict__
            for name in [one for one in own if one not in before and one not in OF_TORCH]:
                del own[name]
            own.update({name: copy.copy(one) if type(one) in (dict, list) else one for name, one in before.items()})

    def hooked(self, path: str) -> nn.Module | None:
        """The module at a path; None if there is none, or one that takes no hooks."""
        part = self.paths.get(path)
        return None if isinstance(part, torch.jit.ScriptModule) else part

    def swapped_inputs(self, change: Callable[[Tensor], Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs, with the tensors that have one row for each sample changed."""

        def of_samples(one: Tensor) -> Tensor:
            return change(one) if one.dim() and one.shape[0] == self.batch else one

        args, kwargs = map_tensors(of_samples, (self.args, self.kwargs))
        return args, kwargs


def _own(part: nn.Module) -> dict[str, Any]:
    """A module's attributes, without torch's: its parameters, modules and hooks."""
    attributes = {name: one for name, one in vars(part).items() if name not in OF_TORCH}
    return {name: copy.copy(one) if type(one) in (dict, list) else one for name, one in attributes.items()}


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)


def _keep(seen: list[Tensor], output: object) -> None:
    numbers = [torch.view_as_real(one) if one.is_complex() else one for one in tensors_in(output)]
    seen += [one if one.requires_grad else one.clone() for one in numbers if one.is_floating_point()]


@contextmanager
def _before(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: change((args, kwargs)), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _after(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()

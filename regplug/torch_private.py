"""Every private name of torch that regplug uses, except those of Inductor (``backends/inductor_private.py``).

Checked against torch 2.10 and 2.13; an earlier or later name would be guarded here by version.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


def mark_dynamic_batch(tensor: Tensor) -> None:
    """Let only the first size vary in ``torch.compile``; ``dynamic=True`` is six times slower.

    ``torch._dynamo.mark_dynamic``: documented, but under a private name.
    """
    torch._dynamo.mark_dynamic(tensor, 0)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside the result of ``torch.compile(module)``, or the module itself (``_orig_mod``)."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


# where `nn.Module` keeps tensors and hooks; two modules that share such a dictionary share its contents
SHARED_STATE = frozenset(
    {"_parameters", "_buffers", "_non_persistent_buffers_set"}
    | {word for word in vars(nn.Module()) if word.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))}
)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is the result of ``torch.compile(module)``."""
    return uncompiled(module) is not module


def forget_compiled(state: dict[str, Any]) -> dict[str, Any]:
    """A module's attributes without that of ``module.compile()``, which runs the module that it was called on."""
    return {word: value for word, value in state.items() if word != "_compiled_call_impl"}


def compile_in_place_of(module: nn.Module, made: nn.Module, inside_of: Callable[[nn.Module], nn.Module]) -> None:
    """Initialise ``made``, an empty instance, as the same wrapper of ``torch.compile`` around another module."""
    type(made).__init__(made, inside_of(uncompiled(module)), module.dynamo_ctx)


@contextmanager
def as_written() -> Iterator[None]:
    """Run compiled modules eagerly.

    If ``torch._dynamo`` was not imported, nothing was compiled; importing it would take a second.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def uncompiled_name(name: str) -> str:
    """A name of a state dict without the segments of ``torch.compile`` (``_orig_mod``).

    Example:
        >>> uncompiled_name("blocks.0._orig_mod.mlp.weight")
        'blocks.0.mlp.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def project(parent: nn.Module, child: str, x: Tensor) -> Tensor:
    """``parent.child(x)`` in the dtype of its weights, without the overhead of a call if it is a plain linear layer.

    Module attributes and calls cost a third of the whole at B = 1. A layer that something hooks into (a counter of
    FLOPs hooks into all), that was patched or replaced (an adapter, a quantized layer, a parametrized one) is called as
    it is. Not for TorchScript.
    """
    linear = parent._modules[child]
    if (
        type(linear) is not nn.Linear
        or linear._forward_hooks
        or linear._forward_pre_hooks
        or linear._backward_hooks
        or linear._backward_pre_hooks
        or _has_any_global_hook()
        or "forward" in linear.__dict__
        or linear._parameters.get("weight") is None
    ):
        floating = (p for p in linear.parameters() if p.is_floating_point())  # type: ignore[union-attr]
        answer: Tensor = linear(in_compute_dtype(x, next(floating, x)).contiguous())  # type: ignore[misc]
        return answer
    weight, bias = linear._parameters["weight"], linear._parameters["bias"]
    if x.dtype != weight.dtype:  # type: ignore[union-attr]
        x = in_compute_dtype(x, weight)  # type: ignore[arg-type]
    # on a strided register slice the product takes a slow path, 1.5 times the cost of copying first
    return F.linear(x.contiguous(), weight, bias)  # type: ignore[arg-type]


def parameter_of(module: nn.Module, name: str) -> Tensor:
    """``module.name``, without the detour of ``nn.Module.__getattr__``; of a parametrized one, its value."""
    parameter = module._parameters.get(name)
    found: Tensor = getattr(module, name) if parameter is None else parameter
    return found


def in_compute_dtype(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` in the dtype of ``weight``; unchanged under autocast, which converts both for a matrix product."""
    if x.dtype == weight.dtype:
        return x
    device = x.device.type
    # the meta device has no autocast, and torch would raise
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x
    return x.to(weight.dtype)


def outside_inference_mode() -> AbstractContextManager[object]:
    """A context to make weights in: made inside inference mode, they could never be trained."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def persist_buffers(module: nn.Module) -> Callable[[], None]:
    """Put every buffer of a module into its state dict, such as rotary tables; gives a function that undoes it."""
    held = [(child, child._non_persistent_buffers_set) for child in module.modules()]
    for child, _ in held:
        child._non_persistent_buffers_set = set()

    def undo() -> None:
        for child, names in held:
            child._non_persistent_buffers_set = names

    return undo


def cpu_capability() -> str:
    """The instruction set that ATen's CPU kernels use here, as ``at::get_cpu_capability()`` gives it in C++."""
    return torch.backends.cpu.get_cpu_capability()


class LightMode(TorchDispatchMode):
    """A mode whose first operation does not import ``torch._dynamo``, which takes longer than all else in ``load``."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would wrap __torch_dispatch__ to be left out of compiled graphs; none is made in these


class OperationWatch(LightMode):
    """Calls a function with every operation of torch that runs inside it: its name, inputs and outputs.

    ``torch.utils._python_dispatch.TorchDispatchMode``: widely used, but under a private name.
    """

    def __init__(self, seen: Callable[[str, tuple[object, ...], object], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self._seen(str(func), args, output)
        return output


class NoNumbersError(RuntimeError):
    """A module read values of a tensor on the meta device, which has none, while it was built."""


class MetaReadWatch(LightMode):
    """Raises a NoNumbersError, where torch raises errors that differ from others in their text only."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            raise NoNumbersError("a number of a tensor on the meta device")
        try:
            return func(*args, **(kwargs or {}))
        except NotImplementedError as error:  # copied to a device with values, or an operation that reads them
            raise NoNumbersError(str(error)) from error


class AllocationLimit(LightMode):
    """Raises a MemoryError before an operation with which all tensors made so far would exceed so many bytes.

    The size of an output is found by running the operation on the meta device first. A freed tensor still counts.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = self._left = most

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not func._schema.is_mutable:  # an operation that writes into a tensor makes none
            self._left -= self._size_of_output(func, args, kwargs)
            if self._left < 0:
                raise MemoryError(f"expected to take at most {self._most} bytes, got more")
        return func(*args, **kwargs)

    def _size_of_output(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        def outline(value: Any) -> Any:
            return value.to("meta") if isinstance(value, Tensor) else value

        args, kwargs = tree_map(outline, (args, kwargs))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("meta")}
        try:
            output = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):  # it reads values, and its output is not larger than its inputs
            return 0
        return sum(one.numel() * one.itemsize for one in tree_leaves(output) if isinstance(one, Tensor))


@contextmanager
def torchscript_without_warnings() -> Iterator[None]:
    """Silence only TorchScript's deprecation warning, where regplug calls it on purpose.

    torch 2.13 gives a DeprecationWarning, 2.15 a FutureWarning. A class that fails to script leaves an incomplete type,
    and the next attempt fails with "Can't redefine method"; so it is removed here (``torch.jit._recursive``).
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", category)
        try:
            yield
        except Exception:
            torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
            raise


def place_in_outline(tensor: Tensor) -> int | None:
    """Where its storage begins in the archive that ``torch.load(..., map_location="meta")`` read; None if unknown.

    ``_checkpoint_offset``, which torch's own reader of distributed checkpoints uses.
    """
    place: int | None = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    return place


_dispatch_keys = torch._C._dispatch_keys  # looked up once: every call needs it


def _keys_of_plain_tensors() -> frozenset[int]:
    with torch.inference_mode(False):
        ordinary = torch.empty(0, device="cpu")
    with torch.inference_mode():
        return frozenset(_dispatch_keys(one).raw_repr() for one in (ordinary, torch.empty(0, device="cpu")))


_PLAIN = _keys_of_plain_tensors()


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is its numbers in the CPU's memory and nothing else: none that is negated or conjugated when it
    is read, sparse, quantized, nested or fake, and no wrapper of another, as inside ``torch.vmap``.

    By ``torch._C._dispatch_keys``: what all of those have is a key more, or another.
    """
    return _dispatch_keys(tensor).raw_repr() in _PLAIN


def without_subclass(tensor: Tensor) -> Tensor:
    """The same memory as a ``torch.Tensor``, without calling a subclass's ``__torch_function__``."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)

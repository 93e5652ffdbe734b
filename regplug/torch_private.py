"""Every torch name that regplug leans on and torch does not promise to keep, in one file.

Checked against torch 2.10 and 2.13; an earlier or later name would be guarded here by version.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def mark_dynamic_batch(tensor: Tensor) -> None:
    """Let the first size, and no other, vary in ``torch.compile``; ``dynamic=True`` is six times slower.

    ``torch._dynamo.mark_dynamic``: documented, but under a private name.
    """
    torch._dynamo.mark_dynamic(tensor, 0)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside what ``torch.compile(module)`` gave, or the module itself (``_orig_mod``)."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


# where `nn.Module` keeps tensors and hooks: two modules with one such dictionary see what is put into it by either
SHARED_STATE = frozenset(
    {"_parameters", "_buffers", "_non_persistent_buffers_set"}
    | {word for word in vars(nn.Module()) if word.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))}
)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what ``torch.compile`` put around another."""
    return uncompiled(module) is not module


def forget_compiled(state: dict[str, Any]) -> dict[str, Any]:
    """A module's attributes without what ``module.compile()`` left, which runs the module that it was called on."""
    return {word: value for word, value in state.items() if word != "_compiled_call_impl"}


def compile_in_place_of(module: nn.Module, made: nn.Module, inside_of: Callable[[nn.Module], nn.Module]) -> None:
    """Make ``made``, an empty instance, of what ``torch.compile`` put around a module: around another, as it did."""
    type(made).__init__(made, inside_of(uncompiled(module)), module.dynamo_ctx)


@contextmanager
def as_written() -> Iterator[None]:
    """What ``torch.compile`` was applied to runs as it was written.

    Nothing was compiled where ``torch._dynamo`` was not imported, and its import costs a second.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def uncompiled_name(name: str) -> str:
    """A name of a state dict without the segments that ``torch.compile`` put into it (``_orig_mod``).

    Example:
        >>> uncompiled_name("blocks.0._orig_mod.mlp.weight")
        'blocks.0.mlp.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def project(parent: nn.Module, child: str, x: Tensor) -> Tensor:
    """``parent.child(x)`` in the dtype of its weights, by the shortest way where it is a linear layer and nothing else.

    Module attributes and calls cost more than the product at B = 1. A layer that something hooks into (a counter of
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
    """``module.name``, without the detour of ``nn.Module.__getattr__``; of a parametrized one, what it stands for."""
    parameter = module._parameters.get(name)
    found: Tensor = getattr(module, name) if parameter is None else parameter
    return found


def in_compute_dtype(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` in the dtype of ``weight``; as it is under autocast, which converts both for a matrix product."""
    if x.dtype == weight.dtype:
        return x
    device = x.device.type
    # the meta device has no autocast, and torch raises where it is asked
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x
    return x.to(weight.dtype)


def outside_inference_mode() -> AbstractContextManager[object]:
    """Where weights are made: made inside inference mode, they could never be trained."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def persist_buffers(module: nn.Module) -> Callable[[], None]:
    """Put every buffer of a module into its state dict: a backbone's rotary tables too. Gives what undoes it."""
    held = [(child, child._non_persistent_buffers_set) for child in module.modules()]
    for child, _ in held:
        child._non_persistent_buffers_set = set()

    def undo() -> None:
        for child, names in held:
            child._non_persistent_buffers_set = names

    return undo


def cpu_capability() -> str:
    """The instruction set that ATen's CPU kernels use here, as ``at::get_cpu_capability()`` says in C++."""
    return torch.backends.cpu.get_cpu_capability()


class OperationWatch(TorchDispatchMode):
    """Calls back with every operation of torch that runs inside it: its name, its inputs, its output or outputs.

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
    """A module asked a tensor on the meta device for its numbers, which it has none of, while it was built."""


class MetaReadWatch(TorchDispatchMode):
    """Raises a NoNumbersError, a type of its own, where torch's text alone would tell this error from others."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            raise NoNumbersError("a number of a tensor on the meta device")
        try:
            return func(*args, **(kwargs or {}))
        except NotImplementedError as error:  # copied to a device with numbers, or an operation that looks at them
            raise NoNumbersError(str(error)) from error


class AllocationLimit(TorchDispatchMode):
    """Refuses an operation before it runs where all tensors that were made would hold more than so many bytes.

    What an operation gives is found by running it on the meta device first. A tensor that is freed still counts.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = self._left = most

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not func._schema.is_mutable:  # what writes into a tensor makes none
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
        except (NotImplementedError, RuntimeError):  # it looks at numbers, and gives no more than it was given
            return 0
        return sum(one.numel() * one.itemsize for one in tree_leaves(output) if isinstance(one, Tensor))


@contextmanager
def torchscript_without_warnings() -> Iterator[None]:
    """Silence TorchScript's own deprecation warning, and no other, where regplug calls it on purpose.

    torch 2.13 gives a DeprecationWarning, 2.15 a FutureWarning. A class that fails to script leaves half a type behind,
    of which the next attempt says "Can't redefine method"; it is forgotten here (``torch.jit._recursive``).
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
    """Where its storage begins in the archive that ``torch.load(..., map_location="meta")`` made it of; None for none.

    ``_checkpoint_offset``, which torch's own reader of distributed checkpoints uses.
    """
    place: int | None = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    return place


_dispatch_keys = torch._C._dispatch_keys  # looked up once: it is asked on every call


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
    """The same memory as a ``torch.Tensor``, whatever a subclass's ``__torch_function__`` does."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


@contextmanager
def inductor_settings(compiler: str | None) -> Iterator[None]:
    """Keep ``torch.compile`` from headers that are precompiled: it has one place for them, in the temporary folder.

    ``torch._inductor.config.cpp_cache_precompile_headers``; ``TORCHINDUCTOR_CACHE_DIR`` does not move them.

    Args:
        compiler: The C++ compiler, ``cpp.cxx``; None for the one that torch finds.
    """
    from torch._inductor import config

    _keep_probe_from_working_directory()
    settings: dict[str, object] = {"cpp_cache_precompile_headers": False}
    if compiler is not None:
        settings["cpp.cxx"] = (None, compiler)
    with config.patch(settings):
        yield


WITHOUT_WORKING_DIRECTORY = "import sys; sys.path[:] = [one for one in sys.path if one]\n"


def _keep_probe_from_working_directory() -> None:
    """Inductor tries an instruction set by ``python -c``, which would import from the working directory first.

    ``torch._inductor.cpu_vec_isa.VecISA._avx_py_load`` is that code.
    """
    from torch._inductor.cpu_vec_isa import VecISA

    code = VecISA._avx_py_load
    if not code.startswith(WITHOUT_WORKING_DIRECTORY):
        VecISA._avx_py_load = WITHOUT_WORKING_DIRECTORY + code


# A line of the C++ that Inductor writes (torch 2.13), and one without a destructor. The C library keeps a model library
# mapped until every thread that has such a destructor to run has ended, the main one too.
LAST_ERROR = "static thread_local std::string g_aoti_last_error;"
LAST_ERROR_WITHOUT_DESTRUCTOR = (
    "static thread_local struct { char text[1024]; "
    "const char* c_str() const { return text; } "
    "void clear() { text[0] = 0; } "
    "void operator=(const char* said) { int i = 0; for (; i < 1023 && said[i]; ++i) text[i] = said[i]; text[i] = 0; } "
    "} g_aoti_last_error;"
)


class NoShimError(Exception):
    """An operation has no function in torch's C interface, which is all that a model library calls."""


def _refuse_operation(kernel: Any) -> NoReturn:
    traces = (str(node.meta.get("stack_trace") or "") for node in kernel.origins)
    raise NoShimError(f"{kernel.op_overload}\n{next(filter(None, traces), '')}")


def compile_library(graph: ExportedProgram, inputs: list[Tensor], vector: str | None, output: str) -> None:
    """Compile a graph to a bare AOTInductor model library, in a process that does nothing else.

    ``torch._inductor.aot_compile``; ``aoti_compile_and_package`` would wrap the library in an archive that is to be
    unpacked before every use.

    Args:
        graph: The graph; its inputs are all there is, no weights are in it.
        inputs: An input for each, of which only sizes and dtypes matter.
        vector: Inductor's class of vectors to compile for; None for none.
        output: The library's path.

    Raises:
        NoShimError: An operation needs Python's dispatcher, which a host without Python lacks; its name, and the trace
            of its call. Before any C++ is compiled.
    """
    from torch._inductor import aot_compile, config, cpu_vec_isa
    from torch._inductor.ir import FallbackKernel

    # Inductor's own decision: whatever it does not lower, and whose name is not in torchgen.aoti.fallback_ops, it would
    # hand to a "proxy executor"; this method describes the call for that
    FallbackKernel.export_extern_kernel_node = _refuse_operation  # type: ignore[method-assign]

    # or Inductor takes the best that this CPU has
    known = cpu_vec_isa.supported_vec_isa_list
    known[:] = [one for one in known if type(one).__name__ == vector]
    options = {
        "aot_inductor.output_path": output,
        "aot_inductor.allow_stack_allocation": True,  # what is small and does not grow with B needs no allocator
        "aot_inductor.check_lowerbound": False,  # or B = 0 and 1 are refused, for the example has two samples
        "aot_inductor.precompile_headers": False,
        "cpp.simdlen": {"VecAVX512": 512, "VecAVX2": 256, None: 1}[vector],
        "cpp.vec_isa_ok": True,
        "cpp.threads": 1,  # the number would be built in
    }
    if hasattr(config.aot_inductor, "enable_line_tables"):  # torch 2.10 has none, and writes none
        options["aot_inductor.enable_line_tables"] = False
    aot_compile(graph.module(), tuple(inputs), options=options)


def open_library(path: str) -> Callable[[list[Tensor]], list[Tensor]]:
    """An AOTInductor model library as a function: ``torch._C._aoti.AOTIModelContainerRunnerCpu``.

    ``aoti_load_package`` wants an archive, and calls the C++ compiler to look at the CPU: 10 s the first time.
    """
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(path, 1)
    return runner.run

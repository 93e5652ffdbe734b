"""Every name of Inductor and AOTInductor that regplug uses and torch does not promise to keep.

Tested with torch 2.10 and 2.13; a name that differs in another version is chosen by version here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@contextmanager
def inductor_settings(compiler: str | None) -> Iterator[None]:
    """Turn off precompiled headers in ``torch.compile``, and set its C++ compiler.

    ``torch._inductor.config.cpp_cache_precompile_headers``: they are in the shared temporary folder, from which
    ``TORCHINDUCTOR_CACHE_DIR`` does not move them.

    Args:
        compiler: The compiler, ``cpp.cxx``; None for the one that torch finds.
    """
    from torch._inductor import config

    _keep_probe_from_working_directory()
    settings: dict[str, object] = {"cpp_cache_precompile_headers": False}
    if compiler is not None:
        settings["cpp.cxx"] = (None, compiler)
    with config.patch(settings):
        yield


def lacks_compiler(error: BaseException | None) -> bool:
    """Whether ``torch.compile`` failed because there is no C++ compiler that works."""
    from torch._inductor.exc import InvalidCxxCompiler

    return isinstance(getattr(error, "inner_exception", error), InvalidCxxCompiler)


WITHOUT_WORKING_DIRECTORY = "import sys; sys.path[:] = [one for one in sys.path if one]\n"


def _keep_probe_from_working_directory() -> None:
    """Keep the working directory off the import path of Inductor's probe for an instruction set, a ``python -c``.

    ``torch._inductor.cpu_vec_isa.VecISA._avx_py_load`` is its code.
    """
    from torch._inductor.cpu_vec_isa import VecISA

    code = VecISA._avx_py_load
    if not code.startswith(WITHOUT_WORKING_DIRECTORY):
        VecISA._avx_py_load = WITHOUT_WORKING_DIRECTORY + code


# A line of the C++ that Inductor writes (torch 2.13), and one without a destructor. With the first, the C library keeps
# a model library mapped until all threads that used it have ended, even the main thread.
LAST_ERROR = "static thread_local std::string g_aoti_last_error;"
LAST_ERROR_WITHOUT_DESTRUCTOR = (
    "static thread_local struct { char text[1024]; "
    "const char* c_str() const { return text; } "
    "void clear() { text[0] = 0; } "
    "void operator=(const char* said) { int i = 0; for (; i < 1023 && said[i]; ++i) text[i] = said[i]; text[i] = 0; } "
    "} g_aoti_last_error;"
)


class NoShimError(Exception):
    """An operation has no function in torch's C interface, and a model library can call nothing else."""


def _refuse_operation(kernel: Any) -> NoReturn:
    traces = (str(node.meta.get("stack_trace") or "") for node in kernel.origins)
    raise NoShimError(f"{kernel.op_overload}\n{next(filter(None, traces), '')}")


def compile_library(graph: ExportedProgram, inputs: list[Tensor], vector: str | None, output: str) -> None:
    """Compile a graph to a bare AOTInductor model library, in a process that does nothing else.

    ``torch._inductor.aot_compile``; ``aoti_compile_and_package`` would wrap the library in an archive that must be
    unpacked before every use.

    Args:
        graph: The graph, without weights.
        inputs: A tensor for each input; only sizes and dtypes matter.
        vector: Inductor's vector class to compile for; None for code without vectors.
        output: The library's path.

    Raises:
        NoShimError: An operation needs Python's dispatcher, which a host without Python lacks; holds its name and the
            trace of its call. Raised before any C++ is compiled.
    """
    from torch._inductor import aot_compile, config, cpu_vec_isa
    from torch._inductor.ir import FallbackKernel

    # Inductor would hand an operation that it does not lower, and that torchgen.aoti.fallback_ops does not name, to a
    # "proxy executor"; this method describes the call for that
    FallbackKernel.export_extern_kernel_node = _refuse_operation  # type: ignore[method-assign]

    # otherwise Inductor takes the best class of this CPU
    known = cpu_vec_isa.supported_vec_isa_list
    known[:] = [one for one in known if type(one).__name__ == vector]
    options = {
        "aot_inductor.output_path": output,
        "aot_inductor.allow_stack_allocation": True,  # small tensors that do not grow with B need no allocator
        "aot_inductor.check_lowerbound": False,  # otherwise B = 0 and 1 are refused: the example has 2
        "aot_inductor.precompile_headers": False,
        "cpp.simdlen": {"VecAVX512": 512, "VecAVX2": 256, None: 1}[vector],
        "cpp.vec_isa_ok": True,
        "cpp.threads": 1,  # the number would be compiled in
    }
    if hasattr(config.aot_inductor, "enable_line_tables"):  # torch 2.10 writes none
        options["aot_inductor.enable_line_tables"] = False
    aot_compile(graph.module(), tuple(inputs), options=options)


def open_library(path: str) -> Callable[[list[Tensor]], list[Tensor]]:
    """An AOTInductor model library as a function: ``torch._C._aoti.AOTIModelContainerRunnerCpu``.

    ``aoti_load_package`` needs an archive, and runs the C++ compiler to inspect the CPU: 10 s the first time.
    """
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(path, 1)
    return runner.run

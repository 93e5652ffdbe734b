"""Every name of Inductor and AOTInductor that regplug leans on and torch does not promise to keep.

Checked against torch 2.10 and 2.13; an earlier or later name would be guarded here by version.
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


def lacks_compiler(error: BaseException | None) -> bool:
    """Whether ``torch.compile`` failed because there is no C++ compiler that works."""
    from torch._inductor.exc import InvalidCxxCompiler

    return isinstance(getattr(error, "inner_exception", error), InvalidCxxCompiler)


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

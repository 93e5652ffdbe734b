"""Checks that a readout gives the same output scripted, compiled and exported as it does eager."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from regplug.backends.inductor_folder import private_inductor_folder
from regplug.bundle.nonfinite import with_infinity, with_nan
from regplug.conformance.check import Check
from regplug.conformance.extreme_inputs import compare
from regplug.conformance.subject import BATCHES, Subject, close
from regplug.errors import ConformanceError, one_line
from regplug.torch_private import mark_dynamic_batch, torchscript_without_warnings

Run = Callable[[Tensor], Tensor]


def script(subject: Subject) -> None:
    """``torch.jit.script`` answers as eager for batches 0, 1, 2, 7 and a register slice, also saved and loaded.

    It is the way into C++ that needs no compiler. It supports only a part of Python, and some of that works
    differently.
    """
    readout = subject.trained()
    with torchscript_without_warnings():
        scripted = torch.jit.script(readout)
        archive = io.BytesIO()
        torch.jit.save(scripted, archive)
        archive.seek(0)
        loaded = torch.jit.load(archive)
    for given in _inputs(subject, readout):
        # TorchScript has separate code for gradients, so both are run
        _check_equal(subject, "scripted, with gradients", scripted, readout, given)
        with torch.no_grad():
            _check_equal(subject, "scripted, saved and loaded", loaded, readout, given)


def compiled(subject: Subject) -> None:
    """``torch.compile(fullgraph=True)`` answers as eager for all batches and a slice; all batch sizes share one graph.

    NaN and infinity are kept too. Code with a graph break cannot be exported; a graph for each batch size compiles
    again during training, until torch gives up and runs eager.
    """
    readout = subject.trained()
    torch.compiler.reset()  # else graphs of an earlier readout of this class count towards torch's limit
    run = torch.compile(readout, fullgraph=True, backend=subject.compiler)
    with torch.no_grad(), private_inductor_folder():
        _check_equal(subject, "compiled", run, readout, _with_dynamic_batch(subject.registers(2)))
        with torch.compiler.set_stance("fail_on_recompile"):
            try:
                run(_with_dynamic_batch(subject.registers(7)))
            except RuntimeError as error:
                got = f"another for 7 samples after 2: {one_line(error)}"
                raise ConformanceError(f"compiled: expected one graph for every batch, got {got}") from error
        for given in _inputs(subject, readout):
            _check_equal(subject, "compiled", run, readout, _with_dynamic_batch(given) if len(given) > 1 else given)
        compare("compiled", lambda given: [run(_with_dynamic_batch(given))], subject, with_nan, with_infinity)


def exported(subject: Subject) -> None:
    """``torch.export`` with a dynamic batch size gives a graph that answers as eager for batches 0, 1, 2 and 7.

    AOTInductor and ONNX start from this graph. It cannot hold Python code that branches on values, or a batch size
    that is read as a constant.
    """
    readout = subject.trained()
    inputs = _inputs(subject, readout)
    batch = torch.export.Dim("batch", min=min(map(len, inputs)))
    graph = torch.export.export(readout, (subject.registers(2),), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        for given in inputs:
            _check_equal(subject, "exported", graph, readout, given)


def _check_equal(subject: Subject, mode: str, run: Run, readout: nn.Module, given: Tensor) -> None:
    rounding = 8 * torch.finfo(subject.dtype).eps  # above 1e-5 only in half precision
    what = f"{mode}: {'batch' if given.is_contiguous() else 'slice of a batch'} {len(given)}"
    close(what, run(given), readout(given), max(1e-5, rounding))


def _inputs(subject: Subject, readout: nn.Module) -> list[Tensor]:
    """All batches, and registers as a slice of longer tokens; no empty batch if eager refuses one."""
    batches = [subject.registers(batch) for batch in BATCHES if batch or _takes_empty_batch(subject, readout)]
    before, after = subject.registers(2, seed=1)[:, :1], subject.registers(2, seed=2)[:, :1]
    tokens = torch.cat([before, subject.registers(2), after], dim=1)
    return [*batches, tokens[:, 1:-1]]


def _takes_empty_batch(subject: Subject, readout: nn.Module) -> bool:
    """Whether eager takes an empty batch; the check batch-0 asks for it."""
    try:
        readout(subject.registers(0))
    except Exception:  # also an AssertionError
        return False
    return True


def _with_dynamic_batch(given: Tensor) -> Tensor:
    mark_dynamic_batch(given)
    return given


CHECKS = (Check("script", script), Check("compile", compiled), Check("export", exported))

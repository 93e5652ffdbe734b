"""Other ways to run a readout than eager: scripted, compiled, exported, and equal to it in each."""

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
    """``torch.jit.script`` answers as eager for batches 0, 1, 2, 7 and a register slice, saved and loaded too.

    It is the way into C++ that needs no compiler. It takes a part of Python only, and some of what it takes it reads
    otherwise than Python does.
    """
    readout = subject.trained()
    with torchscript_without_warnings():
        scripted = torch.jit.script(readout)
        archive = io.BytesIO()
        torch.jit.save(scripted, archive)
        archive.seek(0)
        loaded = torch.jit.load(archive)
    for given in _inputs(subject, readout):
        # it keeps what it specialised for gradients, so both are run
        _equal(subject, "scripted, with gradients", scripted, readout, given)
        with torch.no_grad():
            _equal(subject, "scripted, saved and loaded", loaded, readout, given)


def compiled(subject: Subject) -> None:
    """``torch.compile(fullgraph=True)`` answers as eager for all batches and a slice, with one graph for every batch.

    NaN and infinity come out of it too. A graph break leaves compiled code half way and cannot be exported; a graph per
    batch size compiles again in the middle of training, until torch gives up and runs eager.
    """
    readout = subject.trained()
    torch.compiler.reset()  # or graphs of an earlier readout of this class would count against the limit
    run = torch.compile(readout, fullgraph=True, backend=subject.compiler)
    with torch.no_grad(), private_inductor_folder():
        _equal(subject, "compiled", run, readout, _free(subject.registers(2)))
        with torch.compiler.set_stance("fail_on_recompile"):
            try:
                run(_free(subject.registers(7)))
            except RuntimeError as error:
                got = f"another for 7 samples after 2: {one_line(error)}"
                raise ConformanceError(f"compiled: expected one graph for every batch, got {got}") from error
        for given in _inputs(subject, readout):
            _equal(subject, "compiled", run, readout, _free(given) if len(given) > 1 else given)
        compare("compiled", lambda given: [run(_free(given))], subject, with_nan, with_infinity)


def exported(subject: Subject) -> None:
    """``torch.export`` with a free batch, from 0 on, gives a graph that answers as eager for batches 0, 1, 2 and 7.

    AOTInductor and ONNX start from this graph. Python that looks at numbers, and a batch size that was read as a
    constant, do not survive it.
    """
    readout = subject.trained()
    inputs = _inputs(subject, readout)
    batch = torch.export.Dim("batch", min=min(map(len, inputs)))
    graph = torch.export.export(readout, (subject.registers(2),), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        for given in inputs:
            _equal(subject, "exported", graph, readout, given)


def _equal(subject: Subject, way: str, run: Run, readout: nn.Module, given: Tensor) -> None:
    rounding = 8 * torch.finfo(subject.dtype).eps  # more than the default for half precision only
    what = f"{way}: {'batch' if given.is_contiguous() else 'slice of a batch'} {len(given)}"
    close(what, run(given), readout(given), max(1e-5, rounding))


def _inputs(subject: Subject, readout: nn.Module) -> list[Tensor]:
    """Every batch, and registers as a slice of longer tokens; no empty batch where eager itself refuses one."""
    batches = [subject.registers(batch) for batch in BATCHES if batch or _takes_nothing(subject, readout)]
    before, after = subject.registers(2, seed=1)[:, :1], subject.registers(2, seed=2)[:, :1]
    tokens = torch.cat([before, subject.registers(2), after], dim=1)
    return [*batches, tokens[:, 1:-1]]


def _takes_nothing(subject: Subject, readout: nn.Module) -> bool:
    """Whether eager takes an empty batch; it is another check that asks for one."""
    try:
        readout(subject.registers(0))
    except Exception:  # by an assert too
        return False
    return True


def _free(given: Tensor) -> Tensor:
    mark_dynamic_batch(given)
    return given


CHECKS = (Check("script", script), Check("compile", compiled), Check("export", exported))

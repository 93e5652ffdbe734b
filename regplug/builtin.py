"""regplug's own strategies, FiLM generator and export backends: a plugin like any other."""

from __future__ import annotations

from regplug.entries import ExportBackendEntry, FiLMEntry, ReadoutEntry
from regplug.hookspecs import hookimpl


@hookimpl
def regplug_readouts() -> list[ReadoutEntry]:
    """The built-in strategies."""
    return [
        ReadoutEntry("mean", "regplug.readouts.averages:RegisterMean", summary="mean over the registers"),
        ReadoutEntry("pool", "regplug.readouts.averages:RegisterPooling", summary="learned average"),
        ReadoutEntry("concat", "regplug.readouts.concatenations:RegisterConcat", summary="all registers, flat"),
        ReadoutEntry(
            "compress-concat",
            "regplug.readouts.concatenations:RegisterCompressConcat",
            summary="each register through one shared projection, then flat",
        ),
    ]


@hookimpl
def regplug_films() -> list[FiLMEntry]:
    """The built-in FiLM generator, and the module whose names it shares."""
    return [
        FiLMEntry(
            "kernel-film",
            "regplug.film:KernelFiLMGenerator",
            classes=("nvsubquadratic.modules.film:KernelFiLMGenerator",),
            summary="conditioning vector -> (gamma, beta) for each hidden layer of a kernel network",
        )
    ]


@hookimpl
def regplug_export_backends() -> list[ExportBackendEntry]:
    """The built-in export backends."""
    return [
        ExportBackendEntry(
            "torchscript",
            "regplug.backends.torchscript:TorchScriptBackend",
            summary="legacy: runs wherever libtorch does, deprecated by PyTorch",
        ),
        ExportBackendEntry(
            "aotinductor",
            "regplug.backends.aotinductor:AOTInductorBackend",
            summary="compiled for an instruction set; weights are inputs, so new ones need no compiler",
        ),
    ]

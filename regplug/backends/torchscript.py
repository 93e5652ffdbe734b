"""The ``torchscript`` backend: an archive that plain ``torch::jit::load`` runs. Legacy: PyTorch retires TorchScript."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from regplug.backends.interface import ExportBackend, Program, Run
from regplug.errors import BundleError, ExportError
from regplug.golden import flatten
from regplug.manifest import Input, Output
from regplug.torch_private import torchscript_without_warnings
from regplug.weights import check_state

FILE = "program.torchscript.pt"
# torch's loaders keep process-wide state
_loading = threading.Lock()


class TorchScriptBackend(ExportBackend):
    """Scripts the module; the archive carries its weights, and ``open`` sets them from ``weights.safetensors``."""

    def export(self, module: nn.Module, example: Tensor, signature: Input, outputs: Sequence[Output]) -> list[Program]:
        """One program, ``program.torchscript.pt``.

        Raises:
            ExportError: TorchScript cannot compile the module; the cause is chained.
        """
        archive = io.BytesIO()
        try:
            with torchscript_without_warnings():
                # into memory: torch.jit.save to a path ends the process when the disk is full
                torch.jit.save(torch.jit.script(module), archive)
        except Exception as error:  # the TorchScript compiler raises nearly every built-in exception
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExportError(f"program 'torchscript': expected a scriptable module, got: {first.strip()}") from error
        return [Program(FILE, _without_debug_records(archive.getvalue()))]

    def open(self, owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run:
        """Load the archive and set its weights.

        Raises:
            BundleError: It does not load, or has other weights.
        """
        try:
            with _loading, torchscript_without_warnings():
                module = torch.jit.load(io.BytesIO(program.data), map_location="cpu")
        except Exception as error:  # torch raises RuntimeError, ValueError, EOFError, ... for a bad archive
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise BundleError(f"{owner.rpartition(': ')[0]}: {program.file}: {first}") from error
        state = module.state_dict()
        check_state(owner, state, weights)
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(weights[name])
        module.eval()
        return lambda given: flatten(module(given))


def _without_debug_records(archive: bytes) -> bytes:
    """The same archive without its ``.debug_pkl`` members, which hold absolute paths of the exporting machine."""
    cleaned = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(cleaned, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            if not member.filename.endswith(".debug_pkl"):
                # a fresh ZipInfo has the fixed date of 1980: the same module gives the same bytes
                target.writestr(zipfile.ZipInfo(member.filename), source.read(member))
    return cleaned.getvalue()

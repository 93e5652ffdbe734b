"""The ``torchscript`` backend: an archive that plain ``torch::jit::load`` runs. Legacy: PyTorch retires TorchScript."""

from __future__ import annotations

import io
import re
import threading
import zipfile
from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor

from regplug.backends.interface import ExportBackend, Program, Run, Source
from regplug.errors import BundleError, ExportError, told
from regplug.golden import flatten
from regplug.torch_private import torchscript_without_warnings
from regplug.weights import check_state, types_of

FILE = "program.torchscript.pt"
FINAL = re.compile(rb"  \w+ : Final\[")
# torch's loaders keep process-wide state
_loading = threading.Lock()


class TorchScriptBackend(ExportBackend):
    """Scripts the module; the archive carries its weights, and ``open`` sets them from ``weights.safetensors``."""

    def export(self, source: Source) -> list[Program]:
        """One program, ``program.torchscript.pt``.

        Raises:
            ExportError: TorchScript cannot compile the module; the cause is chained.
        """
        archive = io.BytesIO()
        try:
            with torchscript_without_warnings():
                # into memory: torch.jit.save to a path ends the process when the disk is full
                torch.jit.save(torch.jit.script(source.module), archive)
        except Exception as error:  # the TorchScript compiler raises nearly every built-in exception
            raise ExportError(f"program 'torchscript': expected a scriptable module, got: {told(error)}") from error
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
            raise BundleError(f"{owner.rpartition(': ')[0]}: {program.file}: {told(error)}") from error
        state = module.state_dict()
        check_state(owner, types_of(state), weights)
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(weights[name])
        module.eval()
        own = {tensor.untyped_storage().data_ptr() for tensor in state.values()}

        def run(given: Tensor) -> list[Tensor]:
            outputs = flatten(module(given))
            # a module may give back a weight; the caller's next write there must not change the program
            return [out.clone() if out.untyped_storage().data_ptr() in own else out for out in outputs]

        return run


def _without_debug_records(archive: bytes) -> bytes:
    """The same archive without its ``.debug_pkl`` members, which hold absolute paths of the exporting machine."""
    cleaned = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(cleaned, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            if not member.filename.endswith(".debug_pkl"):
                # a fresh ZipInfo has the fixed date of 1980: the same module gives the same bytes
                target.writestr(zipfile.ZipInfo(member.filename), _in_order(member.filename, source.read(member)))
    return cleaned.getvalue()


def _in_order(name: str, data: bytes) -> bytes:
    """A member's bytes, without what torch lets the process's hash seed decide: the order of ``Final`` attributes."""
    if name.endswith("/.data/serialization_id"):
        return b"0" * len(data)  # a checksum of the members as torch wrote them; nothing reads it
    if not name.endswith(".py"):
        return data
    lines = data.splitlines(keepends=True)
    blocks = groupby(lines, key=lambda line: FINAL.match(line) is not None)
    return b"".join(line for final, block in blocks for line in (sorted(block) if final else block))

"""The ``torchscript`` backend: an archive that plain ``torch::jit::load`` runs. Legacy: PyTorch retires TorchScript."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor

from regplug.backends.interface import LOADING, ExportBackend, Program, Run, Source, arguments_of, flatten
from regplug.errors import ExportError, one_line
from regplug.format.weights import check_state, types_of
from regplug.nn.wrappers import hooks_of
from regplug.torch_private import torchscript_without_warnings

FILE = "program.torchscript.pt"
DEBUG = ".debug_pkl"
MEMBER = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9._-]+)+")
FINAL = re.compile(rb"  \w+ : Final\[")


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
                # to memory: torch.jit.save to a path crashes the process when the disk is full
                torch.jit.save(torch.jit.script(source.module), archive)
        except Exception as error:  # the compiler raises nearly every built-in exception
            hooks = hooks_of(source.module)
            advice = f"; it has the hooks {', '.join(hooks)}" if hooks else ""
            raise ExportError(
                f"program 'torchscript': expected a scriptable module, got: {one_line(error)}{advice}"
            ) from error
        made = archive.getvalue()
        program = Program(FILE, _without_debug_records(made))
        check_archive(program.data, made)
        return [program]

    def open(self, owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run:
        """Load the archive and set its weights.

        Raises:
            BundleError: It has other weights.
        """
        with LOADING, torchscript_without_warnings():
            module = torch.jit.load(io.BytesIO(program.data), map_location="cpu")
        state = module.state_dict()
        check_state(owner, types_of(state), weights)
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(weights[name])
        module.eval()
        own = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
        names = program.inputs

        def run(*inputs: Tensor) -> list[Tensor]:
            if len(inputs) == 1:
                outputs = flatten(module(inputs[0]))
            else:
                arguments, keywords = arguments_of(names, inputs)
                outputs = flatten(module(*arguments, **keywords))
            # a module may return a weight, and the caller may write to the result
            return [out.clone() if out.untyped_storage().data_ptr() in own else out for out in outputs]

        return run


def check_archive(archive: bytes, made: bytes) -> None:
    """Refuse an archive that is not what torch made, without its debug records.

    Args:
        archive: The archive for the bundle.
        made: What ``torch.jit.save`` gave.

    Raises:
        ExportError: A member is missing, added, duplicate or compressed, or has another size, or a name that leaves the
            archive's folder.
    """
    owner = f"program 'torchscript': {FILE}"
    with zipfile.ZipFile(io.BytesIO(made)) as before, zipfile.ZipFile(io.BytesIO(archive)) as after:
        kept = [one for one in before.infolist() if not one.filename.endswith(DEBUG)]
        members = after.infolist()
    wanted = sorted((one.filename, one.file_size) for one in kept)
    if (got := sorted((one.filename, one.file_size) for one in members)) != wanted:
        raise ExportError(f"{owner}: expected the members {wanted}, got {got}.")
    folders = {one.filename.partition("/")[0] for one in members}
    if len(folders) != 1 or len({one.filename for one in members}) != len(members):
        raise ExportError(f"{owner}: expected members of one folder, each once, got {[name for name, _ in got]}.")
    for one in members:
        if not MEMBER.fullmatch(one.filename) or ".." in one.filename.split("/"):
            raise ExportError(f"{owner}: member {one.filename!r}: expected a plain name, got another.")
        if one.compress_type != zipfile.ZIP_STORED:
            raise ExportError(f"{owner}: member {one.filename!r}: expected it stored, got it compressed.")


def _without_debug_records(archive: bytes) -> bytes:
    """The same archive without its ``.debug_pkl`` members, which hold absolute paths of the exporting machine."""
    cleaned = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(cleaned, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            if not member.filename.endswith(DEBUG):
                # a new ZipInfo has a fixed date (1980), so that the same module gives the same bytes
                target.writestr(zipfile.ZipInfo(member.filename), _in_order(member.filename, source.read(member)))
    return cleaned.getvalue()


def _in_order(name: str, data: bytes) -> bytes:
    """A member's bytes with ``Final`` attributes sorted: torch writes them in the order of the process's hash seed."""
    if name.endswith("/.data/serialization_id"):
        return b"0" * len(data)  # a checksum of the members as torch wrote them, which nothing reads
    if not name.endswith(".py"):
        return data
    lines = data.splitlines(keepends=True)
    blocks = groupby(lines, key=lambda line: FINAL.match(line) is not None)
    return b"".join(line for final, block in blocks for line in (sorted(block) if final else block))

"""A loaded program of any backend: every input is checked before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regplug.backends.interface import ExportBackend, Program, Run
from regplug.bundle.golden import GoldenSet, compare
from regplug.bundle.program_inputs import TORCH_DTYPES, InputChecks
from regplug.errors import BundleError, RegplugError, ShapeError, one_line
from regplug.format.manifest import SMOKE_CASE, WEIGHTS, Manifest
from regplug.format.weights import dtype_name


class LoadedProgram:
    """A program of a bundle, called as the module is.

    Call it with registers ``[B, R, D]`` (a readout; returns ``[B, cond_dim]``) or tokens ``[B, T, D]`` (a conditioner;
    returns the FiLM pairs, gamma first), or with images ``[B, C, H, W]`` if the backbone is included; and with
    ``mask=`` and ``vectors=`` if the bundle has such inputs. Views and slices work, also lazily negated and conjugated
    ones: each input is made plain and contiguous.

    Args:
        backend: The name of the export backend that made it.
        manifest: The bundle's manifest.
        digest: The bundle's digest.
        run: What the backend's ``open`` returned.

    It is pickled as the bundle's path and digest. To unpickle it, the same bundle is opened again.
    """

    def __init__(self, backend: str, manifest: Manifest, digest: str, run: Run) -> None:
        self.reopen: Callable[[], LoadedProgram] | None = None  # set by `load`
        self.backend = backend
        self.manifest = manifest
        self.digest = digest
        self._run = run
        self._owner = f"program '{backend}'"
        self._checks = InputChecks(self._owner, manifest)

    @property
    def cond_dim(self) -> int:
        """Width of the conditioning vector."""
        return self.manifest.cond_dim

    def __call__(
        self, given: Tensor, mask: Tensor | None = None, vectors: Mapping[str, Tensor] | None = None
    ) -> Tensor | list[tuple[Tensor, Tensor]]:
        """Run the program. The result is an inference tensor, without gradient: ``clone()`` it before autograd sees it.

        Args:
            given: Registers, tokens or images.
            mask: ``[B, N]``, bool, true where a token counts, if the bundle has this input.
            vectors: Name and ``[B, width]`` of each vector that the bundle has as an input.

        Raises:
            ShapeError: An input has a wrong rank, R, D, T, batch, dtype or device, or is missing or unknown.
            BundleError: The program fails while it runs.
        """
        if mask is None and vectors is None:
            outputs = self.run_flat(given)
        else:
            outputs = self.run_flat(given, *self._checks.in_order(mask, {} if vectors is None else vectors))
        if self.manifest.holds == "readout":
            return outputs[0]
        return list(zip(outputs[0::2], outputs[1::2], strict=True))

    def __reduce__(self) -> tuple[Callable[[], LoadedProgram], tuple[()]]:
        """The call of ``load`` that opens the program again.

        Raises:
            BundleError: Its registry exists only in this process.
        """
        if self.reopen is None:
            raise BundleError(
                f"{self._owner}: expected to be pickled as a bundle's path and digest, got a program of a registry of "
                "this process; load it in the worker: regplug.load(path, program=..., digest=...)."
            )
        return self.reopen, ()

    def __deepcopy__(self, memo: object) -> LoadedProgram:
        """The program itself: it does not change."""
        return self

    def run_flat(self, *inputs: Tensor) -> list[Tensor]:
        """As a call, with inputs and outputs in the manifest's order."""
        inputs = self._checks.checked(inputs)
        batch = inputs[0].shape[0]
        if not batch:
            return self._nothing()
        if torch.is_autocast_enabled("cpu"):  # a program keeps its own dtype under autocast
            with torch.autocast("cpu", enabled=False):
                return self.run_flat(*inputs)
        taken = {one.untyped_storage().data_ptr() for one in inputs}
        if 0 in taken:  # resized to 0, as FSDP does with sharded weights
            raise ShapeError(f"{self._owner}: expected a tensor with memory, got one whose storage was freed.")
        try:
            with torch.inference_mode():
                outputs = self._run(*[one.contiguous() for one in inputs])
        except (RegplugError, KeyboardInterrupt):
            raise
        except BaseException as error:  # runtimes raise anything, also SystemExit
            raise BundleError(f"{self._owner}: {one_line(error)}") from error
        check_outputs(self._owner, self.manifest, outputs, batch)
        # a module may return a view of its input, which the caller may write to later
        return [out.clone() if out.untyped_storage().data_ptr() in taken else out for out in outputs]

    def _nothing(self) -> list[Tensor]:
        """The outputs for an empty batch, without running: attention divides by the batch, which crashes in C++."""
        with torch.inference_mode():
            return [
                torch.empty(0, int(output.shape[1]), dtype=TORCH_DTYPES[output.dtype], device="cpu")
                for output in self.manifest.outputs
            ]

    def check(self, path: str, golden: GoldenSet, factor: float) -> None:
        """Run the case ``batch_1`` once.

        Raises:
            BundleError: The program fails, or its error is above the tolerance.
        """
        case = next(case for case in golden.golden.cases if case.case == SMOKE_CASE)
        result = compare(self.run_flat, golden, case, self.manifest.outputs, factor)
        if not result.ok:
            raise BundleError(
                f"bundle {path}: {self._owner}: case '{case.case}': error {result.error:.3g} is above the tolerance "
                f"{result.tolerance:.3g}."
            )


def open_run(backend: ExportBackend, bundle: str, program: Program, weights: Mapping[str, Tensor]) -> Run:
    """``backend.open``, with every exception of its runtime as a BundleError.

    Args:
        backend: The program's export backend.
        bundle: The program's bundle, for messages.
        program: The program.
        weights: The module's state dict.

    Raises:
        BundleError: It does not open, or needs other weights.
    """
    program = replace(program, bundle=bundle)
    try:
        return backend.open(f"{bundle}: {WEIGHTS}", program, weights)
    except (RegplugError, KeyboardInterrupt):
        raise
    except BaseException as error:  # runtimes have their own exceptions, some of them not below Exception
        raise BundleError(f"{bundle}: {program.file}: {one_line(error)}") from error


def check_outputs(owner: str, manifest: Manifest, outputs: Sequence[Tensor], batch: int) -> None:
    """Refuse outputs that do not fit the manifest.

    Raises:
        ShapeError: Their number, shapes or dtypes differ.
    """
    promised = manifest.outputs
    fits = len(outputs) == len(promised) and all(
        got.shape == (batch, wanted.shape[1]) and got.dtype == TORCH_DTYPES[wanted.dtype]
        for got, wanted in zip(outputs, promised, strict=True)
    )
    if not fits:  # only here are texts made: this function runs on every call
        expected = ", ".join(f"{output.dtype} {[batch, output.shape[1]]}" for output in promised)
        given = ", ".join(f"{dtype_name(output)} {list(output.shape)}" for output in outputs)
        raise ShapeError(f"{owner}: expected outputs [{expected}], got [{given}].")

"""Golden cases: inputs with expected outputs, and how far a program's outputs may be from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod, sqrt

import torch
from torch import Tensor, nn

from regplug.backends.interface import flatten
from regplug.errors import BundleError, ExportError
from regplug.format.folder import MANIFEST
from regplug.format.manifest import GOLDEN, IMAGES, Golden, GoldenCase, InputSpec, Manifest, TensorSpec
from regplug.format.strict_json import format_value, wrong
from regplug.format.weights import dtype_name
from regplug.registry.dtypes import torch_dtype

MAX_BYTES = 4_000_000
MAX_IMAGE_BYTES = 256_000_000  # with a backbone, for the cases that every file has
SEED = 0
# the batch sizes of the cases; the last two are reduced if the file would be too large
BATCHES = (0, 1, 2, 7, 64)
SLICE_BATCH = 2
ROUNDING = 1e-9  # relative; other languages round a tolerance's decimal digits differently
SLICE_START = 1  # tokens before and after the slice

Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class CaseError:
    """The error of one golden case: how far the outputs are from the truth."""

    case: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN and infinity never are."""
        return isfinite(self.error) and self.error <= self.tolerance


@dataclass(frozen=True)
class GoldenSet:
    """The cases with their tensors: what ``golden.safetensors`` and the manifest's ``golden`` hold together."""

    golden: Golden
    tensors: Mapping[str, Tensor]

    def input(self, case: GoldenCase) -> Tensor:
        """The case's input; a strided view if the case is a slice."""
        stored = self.tensors[f"{case.case}.input"]
        return stored if case.start is None else stored[:, case.start : case.start + case.length]

    def outputs(self, case: GoldenCase, names: Sequence[str]) -> list[Tensor]:
        """The case's expected outputs."""
        return [self.tensors[f"{case.case}.output.{name}"] for name in names]

    def scale(self, case: GoldenCase, names: Sequence[str]) -> float:
        """The largest absolute number in the case's expected outputs; 0 if they are empty."""
        return _scale_of(self.outputs(case, names))


def make_golden(
    owner: str, module: nn.Module, signature: InputSpec, outputs: Sequence[TensorSpec], lengths: Sequence[int]
) -> GoldenSet:
    """Draw inputs from a fixed seed, find the truth, and set each case's tolerance.

    The truth is a float64 forward; the tolerance is four times eager's error plus four units in the last place of the
    largest output. For a module without a float64 forward it is 1e-5 of the largest output.

    Args:
        owner: The strategy, for messages.
        module: The module in eval mode, on the CPU.
        signature: Its input.
        outputs: Its outputs.
        lengths: Values of the input's second size, used in turn: R for a readout, several T for a conditioner, C
            for images.

    Raises:
        ExportError: The cases do not fit into the file, an output is not finite, or a second run gives other outputs.
    """
    dtype = torch_dtype(signature.dtype)
    rest = [int(size) for size in signature.shape[2:]]
    generator = torch.Generator().manual_seed(SEED)
    plan = _plan(owner, signature, lengths, prod(rest), outputs)
    double = double_of(module, dtype, [1, lengths[0], *rest])
    source = "eager" if double is None else "float64"
    cases: list[GoldenCase] = []
    tensors: dict[str, Tensor] = {}
    for index, (name, batch, start) in enumerate(plan):
        length = lengths[index % len(lengths)]
        around = 0 if start is None else 2 * SLICE_START
        shape = (batch, length + around, *rest)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)
        given = drawn if start is None else drawn[:, start : start + length]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            eager = flatten(module(given))
            again = flatten(module(given))
            truth = eager if double is None else flatten(double(given.double()))
        if not all(bool(tensor.isfinite().all()) for tensor in (*eager, *truth)):
            raise ExportError(f"{owner}: case {name!r}: expected finite outputs, got inf or nan; check the weights.")
        scale = _scale_of(truth)
        # noise would widen the tolerance until any program is within it
        if not (moved := largest_error(again, eager)) <= 4 * torch.finfo(dtype).eps * scale:
            raise ExportError(
                f"{owner}: case {name!r}: expected the same outputs for the same input, got {moved:.3g} apart; "
                "a readout neither draws at random in eval mode nor writes into its input or its buffers."
            )
        error = largest_error(eager, truth)
        if error > (most := most_eager_error(source, dtype, scale)):
            raise ExportError(
                f"{owner}: case {name!r}: expected outputs within {most:.3g} of float64, got {error:.3g}; "
                f"{signature.dtype} is too coarse for this module."
            )
        cases.append(GoldenCase(name, batch, start, length, error, tolerance_of(source, dtype, error, scale)))
        tensors[f"{name}.input"] = drawn
        for output, tensor in zip(outputs, truth, strict=True):
            tensors[f"{name}.output.{output.name}"] = tensor.clone()
    return GoldenSet(Golden(source, tuple(cases)), tensors)


def tolerance_of(truth: str, dtype: torch.dtype, eager_error: float, scale: float) -> float:
    """How far from the truth an output may be: four times eager's error plus four units in the last place.

    Args:
        truth: Which forward made the expected outputs, ``float64`` or ``eager``.
        dtype: The module's dtype.
        eager_error: Eager's largest error.
        scale: The largest absolute number among the expected outputs.
    """
    return 4 * eager_error + 4 * torch.finfo(dtype).eps * scale if truth == "float64" else 1e-5 * scale


def most_eager_error(truth: str, dtype: torch.dtype, scale: float) -> float:
    """The largest error that a manifest may state for eager: a larger one would make the tolerance meaningless."""
    return scale * min(1 / 8, 16 * sqrt(torch.finfo(dtype).eps)) if truth == "float64" else 0.0


def golden_set(path: str, manifest: Manifest, tensors: Mapping[str, Tensor]) -> GoldenSet:
    """A bundle's golden set, after its tensors and tolerances are checked against the manifest.

    Raises:
        BundleError: A tensor is missing, unknown, or has another shape than its case; an output is not finite; or a
            tolerance does not follow from eager's error and the outputs.
    """
    owner = f"bundle {path}: {GOLDEN}"
    truth = "float64" if manifest.golden.truth == "float64" else manifest.input.dtype
    rest = [int(size) for size in manifest.input.shape[2:]]
    wanted: dict[str, tuple[str, list[int]]] = {}
    for case in manifest.golden.cases:
        length = -1 if case.start is not None else case.length  # a slice's input is stored wider
        wanted[f"{case.case}.input"] = (manifest.input.dtype, [case.batch, length, *rest])
        for output in manifest.outputs:
            wanted[f"{case.case}.output.{output.name}"] = (truth, [case.batch, int(output.shape[1])])
    if set(wanted) != set(tensors):
        raise BundleError(f"{owner}: expected tensors {_listed(wanted)}, got {_listed(tensors)}.")
    for name, (dtype, shape) in sorted(wanted.items()):
        got = list(tensors[name].shape)
        if len(got) == len(shape) and shape[1] == -1:
            shape[1] = got[1]
        if got != shape or dtype_name(tensors[name]) != dtype:
            raise BundleError(
                f"{owner}: tensor '{name}': expected {dtype} {shape}, got {dtype_name(tensors[name])} {got}."
            )
    golden = GoldenSet(manifest.golden, tensors)
    for case in manifest.golden.cases:
        if golden.input(case).shape[1] != case.length:
            raise BundleError(f"{owner}: case '{case.case}': expected a slice of {case.length} inside the input.")
    for index, case in enumerate(manifest.golden.cases):
        _check_tolerance(path, f"golden.cases.{index}", manifest, golden, case)
    return golden


def _check_tolerance(path: str, where: str, manifest: Manifest, golden: GoldenSet, case: GoldenCase) -> None:
    """Refuse a tolerance that does not follow from the format's formula: a large one would accept any output."""
    scale = golden.scale(case, [output.name for output in manifest.outputs])
    if not isfinite(scale):
        raise BundleError(f"bundle {path}: {GOLDEN}: case '{case.case}': expected finite outputs, got inf or nan.")
    truth, dtype = manifest.golden.truth, torch_dtype(manifest.input.dtype)
    most = most_eager_error(truth, dtype, scale)
    if case.eager_error > most:
        error = wrong(f"{where}.eager_error", f"at most {format_value(most)}", case.eager_error)
        raise BundleError(f"bundle {path}: {MANIFEST}: {error}.")
    wanted = tolerance_of(truth, dtype, case.eager_error, scale)
    if abs(case.tolerance - wanted) > ROUNDING * wanted:
        error = wrong(f"{where}.tolerance", format_value(wanted), case.tolerance)
        raise BundleError(f"bundle {path}: {MANIFEST}: {error}.")


def _scale_of(tensors: Sequence[Tensor]) -> float:
    """The largest absolute number; NaN if there is one, 0 if there are no numbers."""
    largest = [tensor.double().abs().max().item() for tensor in tensors if tensor.numel()]
    return float("nan") if any(one != one for one in largest) else max(largest, default=0.0)


def compare(
    run: Run, golden: GoldenSet, case: GoldenCase, outputs: Sequence[TensorSpec], factor: float = 1.0
) -> CaseError:
    """Run one case and measure it.

    Args:
        run: What to run; takes the input, returns the flat outputs.
        golden: The set that the case belongs to.
        case: The case.
        outputs: The outputs, for their names.
        factor: The tolerance is multiplied with it: 2 on another instruction set.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        got = run(golden.input(case))
    wanted = golden.outputs(case, [output.name for output in outputs])
    return CaseError(case.case, largest_error(got, wanted), case.tolerance * factor)


def largest_error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest absolute difference in float64; infinite if number or shapes differ, NaN if there is a NaN."""
    if len(got) != len(wanted) or any(a.shape != b.shape for a, b in zip(got, wanted, strict=True)):
        return float("inf")
    errors = [(a.double() - b.double()).abs().max().item() for a, b in zip(got, wanted, strict=True) if a.numel()]
    # max() drops a NaN that is not first
    return float("nan") if any(error != error for error in errors) else max(errors, default=0.0)


def _listed(names: Iterable[str]) -> str:
    return f"[{', '.join(sorted(names))}]"


def double_of(module: nn.Module, dtype: torch.dtype, shape: list[int]) -> nn.Module | None:
    """A float64 copy, if its forward works and stays in float64; else None."""
    try:
        double = copy.deepcopy(module).double()
        with torch.no_grad():
            given = flatten(double(torch.zeros(shape, dtype=torch.float64, device="cpu")))
    except Exception:  # it casts inside, has no float64 kernel, or refuses the dtype
        return None
    return double if all(tensor.dtype == torch.float64 for tensor in given) else None


def _plan(
    owner: str, signature: InputSpec, lengths: Sequence[int], width: int, outputs: Sequence[TensorSpec]
) -> list[tuple[str, int, int | None]]:
    """Name, batch and slice start of every case, within the file's limit."""
    itemsize = torch_dtype(signature.dtype).itemsize
    per_sample = max(lengths) * width * itemsize + 8 * sum(int(output.shape[1]) for output in outputs)
    slice_sample = per_sample + 2 * SLICE_START * width * itemsize
    needed = 65_536 + 3 * per_sample + SLICE_BATCH * slice_sample  # the header, batch 1 and 2, the slice
    most = MAX_IMAGE_BYTES if signature.name == IMAGES else MAX_BYTES
    if needed > most:
        advice = "a smaller image" if signature.name == IMAGES else "the readout without its layout"
        raise ExportError(
            f"{owner}: expected golden cases within {most} bytes, got {per_sample} bytes a sample; export {advice}."
        )
    left = max(MAX_BYTES - needed, 0)
    *small, odd, large = (batch for batch in BATCHES if batch >= signature.min_batch)
    odd = min(odd, left // per_sample)
    large = min(large, left // per_sample - odd)
    batches = [*small, *(batch for batch in (odd, large) if batch > 2)]
    return [(f"batch_{batch}", batch, None) for batch in dict.fromkeys(batches)] + [("slice", SLICE_BATCH, SLICE_START)]

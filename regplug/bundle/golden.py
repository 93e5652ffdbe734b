"""Golden cases: inputs with expected outputs, and how far a program's outputs may be from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod, sqrt

import torch
from torch import Tensor, nn

from regplug.backends.interface import call_flat, flatten  # noqa: F401  (backends of 0.1.0 import flatten here)
from regplug.bundle.golden_inputs import draw_inputs
from regplug.bundle.io_signature import IOSignature, plain_inputs
from regplug.bundle.mask_rules import MaskRules
from regplug.errors import BundleError, ExportError, ShapeError
from regplug.format.folder import MANIFEST
from regplug.format.manifest import GOLDEN, IMAGES, Golden, GoldenCase, Manifest, TensorSpec
from regplug.format.strict_json import format_value, wrong
from regplug.format.weights import dtype_name
from regplug.registry.dtypes import torch_dtype
from regplug.registry.readout_inputs import MASK

MAX_BYTES = 4_000_000
MAX_IMAGE_BYTES = 256_000_000  # with a backbone, for the cases that every file has
SEED = 0
# the batch sizes of the cases; the last two are reduced if the file would be too large
BATCHES = (0, 1, 2, 7, 64)
SLICE_BATCH = 2
ROUNDING = 1e-9  # relative; other languages round a tolerance's decimal digits differently
SLICE_START = 1  # tokens before and after the slice

Run = Callable[..., Sequence[Tensor]]


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
    more_inputs: tuple[str, ...] = ()

    def inputs(self, case: GoldenCase) -> list[Tensor]:
        """The case's inputs; if the case is a slice, the first one and a mask are strided views."""
        first = _used(self.tensors[f"{case.case}.input"], case)
        more = {name: self.tensors[f"{case.case}.input.{name}"] for name in self.more_inputs}
        return [first, *(_used(tensor, case) if name == MASK else tensor for name, tensor in more.items())]

    def outputs(self, case: GoldenCase, names: Sequence[str]) -> list[Tensor]:
        """The case's expected outputs."""
        return [self.tensors[f"{case.case}.output.{name}"] for name in names]

    def scale(self, case: GoldenCase, names: Sequence[str]) -> float:
        """The largest absolute number in the case's expected outputs; 0 if they are empty."""
        return _scale_of(self.outputs(case, names))


def _used(stored: Tensor, case: GoldenCase) -> Tensor:
    return stored if case.start is None else stored[:, case.start : case.start + case.length]


def make_golden(owner: str, module: nn.Module, signature: IOSignature) -> GoldenSet:
    """Draw inputs from a fixed seed, find the truth, and set each case's tolerance.

    The truth is a float64 forward; the tolerance is four times eager's error plus four units in the last place of the
    largest output. For a module without a float64 forward it is 1e-5 of the largest output.

    Args:
        owner: The strategy, for messages.
        module: The module in eval mode, on the CPU.
        signature: Its inputs and outputs.

    Raises:
        ExportError: The cases do not fit into the file, an output is not finite, or a second run gives other outputs.
    """
    outputs, lengths, names = signature.outputs, signature.lengths, [one.name for one in signature.inputs]
    dtype = torch_dtype(signature.input.dtype)
    generator = torch.Generator().manual_seed(SEED)
    plan = _plan(owner, signature)
    double = double_of(module, plain_inputs(signature.inputs, 1, lengths[0]), names)
    source = "eager" if double is None else "float64"
    cases: list[GoldenCase] = []
    tensors: dict[str, Tensor] = {}
    for index, (name, batch, start) in enumerate(plan):
        length = lengths[index % len(lengths)]
        drawn = draw_inputs(signature, index, batch, length, start or 0, generator)
        case = GoldenCase(name, batch, start, length, 0.0, 0.0)
        given = [_used(one, case) if at == 0 or names[at] == MASK else one for at, one in enumerate(drawn)]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            eager = call_flat(module, names, given)
            again = call_flat(module, names, given)
            truth = eager if double is None else call_flat(double, names, _in_double(given))
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
                f"{signature.input.dtype} is too coarse for this module."
            )
        cases.append(replace(case, eager_error=error, tolerance=tolerance_of(source, dtype, error, scale)))
        tensors[f"{name}.input"] = drawn[0]
        tensors |= {
            f"{name}.input.{one.name}": tensor for one, tensor in zip(signature.more_inputs, drawn[1:], strict=True)
        }
        for output, tensor in zip(outputs, truth, strict=True):
            tensors[f"{name}.output.{output.name}"] = tensor.clone()
    return GoldenSet(Golden(source, tuple(cases)), tensors, tuple(names[1:]))


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
    names = tuple(one.name for one in manifest.more_inputs)
    wanted: dict[str, tuple[str, list[int]]] = {}
    for case in manifest.golden.cases:
        length = -1 if case.start is not None else case.length  # a slice's input is stored wider
        wanted[f"{case.case}.input"] = (manifest.input.dtype, [case.batch, length, *rest])
        for one in manifest.more_inputs:
            sizes = [case.batch, length if one.name == MASK else int(one.shape[1])]
            wanted[f"{case.case}.input.{one.name}"] = (one.dtype, sizes)
        for output in manifest.outputs:
            wanted[f"{case.case}.output.{output.name}"] = (truth, [case.batch, int(output.shape[1])])
    if set(wanted) != set(tensors):
        raise BundleError(f"{owner}: expected tensors {_listed(wanted)}, got {_listed(tensors)}.")
    for name, (dtype, shape) in sorted(wanted.items()):
        got = list(tensors[name].shape)
        if name.endswith(f".input.{MASK}"):  # checked after the input, which is before it in this order
            shape[1] = int(tensors[name.removesuffix(f".{MASK}")].shape[1])
        elif len(got) == len(shape) and shape[1] == -1:
            shape[1] = got[1]
        if got != shape or dtype_name(tensors[name]) != dtype:
            raise BundleError(
                f"{owner}: tensor '{name}': expected {dtype} {shape}, got {dtype_name(tensors[name])} {got}."
            )
    golden = GoldenSet(manifest.golden, tensors, names)
    rules = MaskRules.of(manifest)
    for case in manifest.golden.cases:
        given = golden.inputs(case)
        if given[0].shape[1] != case.length:
            raise BundleError(f"{owner}: case '{case.case}': expected a slice of {case.length} inside the input.")
        if rules is not None:
            try:
                rules.check(f"{owner}: case '{case.case}'", given[1])
            except ShapeError as error:
                raise BundleError(str(error)) from None
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
        run: What to run; takes the inputs, returns the flat outputs.
        golden: The set that the case belongs to.
        case: The case.
        outputs: The outputs, for their names.
        factor: The tolerance is multiplied with it: 2 on another instruction set.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        got = run(*golden.inputs(case))
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


def double_of(module: nn.Module, examples: Sequence[Tensor], names: Sequence[str] = ("registers",)) -> nn.Module | None:
    """A float64 copy, if its forward works and stays in float64; else None."""
    try:
        double = copy.deepcopy(module).double()
        with torch.no_grad():
            given = call_flat(double, names, _in_double(examples))
    except Exception:  # it casts inside, has no float64 kernel, or refuses the dtype
        return None
    return double if all(tensor.dtype == torch.float64 for tensor in given) else None


def _in_double(given: Sequence[Tensor]) -> list[Tensor]:
    return [one.double() if one.is_floating_point() else one for one in given]


def _plan(owner: str, signature: IOSignature) -> list[tuple[str, int, int | None]]:
    """Name, batch and slice start of every case, within the file's limit."""
    itemsize = torch_dtype(signature.input.dtype).itemsize
    width = prod(int(size) for size in signature.input.shape[2:])
    vectors = sum(int(one.shape[1]) for one in signature.more_inputs if one.name != MASK)
    token = width * itemsize + (len(signature.more_inputs) > 0)  # with a mask, a byte more
    written = 8 * sum(int(output.shape[1]) for output in signature.outputs) + vectors * itemsize
    per_sample = max(signature.lengths) * token + written
    slice_sample = per_sample + 2 * SLICE_START * token
    needed = 65_536 + 3 * per_sample + SLICE_BATCH * slice_sample  # the header, batch 1 and 2, the slice
    most = MAX_IMAGE_BYTES if signature.input.name == IMAGES else MAX_BYTES
    if needed > most:
        advice = "the readout without its layout" if len(signature.outputs) > 1 else "a smaller readout"
        advice = "a smaller image" if signature.input.name == IMAGES else advice
        raise ExportError(
            f"{owner}: expected golden cases within {most} bytes, got {per_sample} bytes a sample; export {advice}."
        )
    left = max(MAX_BYTES - needed, 0)
    *small, odd, large = (batch for batch in BATCHES if batch >= signature.input.min_batch)
    odd = min(odd, left // per_sample)
    large = min(large, left // per_sample - odd)
    batches = [*small, *(batch for batch in (odd, large) if batch > 2)]
    return [(f"batch_{batch}", batch, None) for batch in dict.fromkeys(batches)] + [("slice", SLICE_BATCH, SLICE_START)]

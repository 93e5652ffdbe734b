"""The parity gate: makes a bundle's programs, and refuses one whose error is above the tolerance."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from regplug.backends.cpu import best_for_this_cpu
from regplug.backends.interface import ExportBackend, Program, Source, call_flat
from regplug.bundle.golden import SEED, CaseError, GoldenSet, compare, make_golden
from regplug.bundle.io_signature import IOSignature, plain_inputs
from regplug.bundle.machine_paths import check_machine_paths
from regplug.bundle.nonfinite import BATCH as NAN_BATCH
from regplug.bundle.nonfinite import lost_nan, with_nan
from regplug.bundle.program import LoadedProgram, open_run
from regplug.errors import BundleError, ExportError, PluginError, ShapeError
from regplug.format.manifest import WEIGHTS, CaseResult, Manifest, ProgramRecord
from regplug.format.safetensors_header import stored_tensors
from regplug.format.weights import load_tensors
from regplug.registry.dtypes import torch_dtype
from regplug.registry.entries import FILE_NAME


def make_programs(
    makers: Mapping[str, ExportBackend],
    module: nn.Module,
    weights: bytes,
    manifest: Manifest,
    golden: GoldenSet,
    signature: IOSignature,
    progress: Callable[[str], None],
) -> Iterator[tuple[Program, ProgramRecord]]:
    """Every backend's programs, each compared with eager, with the trained weights and with other weights.

    Args:
        makers: The backends, by name.
        module: In eval mode, on the CPU.
        weights: The bundle's weights file.
        manifest: The bundle's manifest.
        golden: Its golden cases.
        signature: The module's input and outputs.
        progress: Called with the name of each step as it begins.

    Raises:
        ExportError: A backend cannot make a program from the module, or the program exceeds its tolerance.
        PluginError: A backend gives its file a wrong name.
    """
    if not makers:
        return
    owner = f"bundle to be: {WEIGHTS}"
    case = next(case for case in golden.golden.cases if case.batch == 2 and case.start is None)
    examples = golden.inputs(case)
    stored = stored_tensors(owner, weights)
    sets = [(load_tensors(owner, weights), golden), _other_weights(manifest.strategy, module, signature)]
    for name, maker in makers.items():
        progress(f"program {name}")
        source = Source(
            copy.deepcopy(module),
            examples[0],
            signature.input,
            signature.outputs,
            stored,
            manifest.describe(),
            lambda step, name=name: progress(f"program {name}: {step}"),  # type: ignore[misc]
            signature.more_inputs,
            examples[1:],
        )
        for program in maker.export(source):
            if not (program.file.startswith(f"program.{name}") and FILE_NAME.fullmatch(program.file)):
                raise PluginError(f"export backend {name!r}: expected a file program.{name}..., got {program.file!r}.")
            check_machine_paths(f"program {name!r}: {program.file}", program.data)
            loaded, record = _gate(name, maker, program, manifest, sets)
            _check_nan(name, loaded, module, signature)
            yield program, record


def _gate(
    name: str,
    maker: ExportBackend,
    program: Program,
    manifest: Manifest,
    sets: Sequence[tuple[Mapping[str, Tensor], GoldenSet]],
) -> tuple[LoadedProgram, ProgramRecord]:
    """Compare a program with eager for each set of weights, opened as a user opens it.

    Returns:
        The program with the first set, and its record for the manifest.
    """
    recorded: list[CaseError] = []
    opened: list[LoadedProgram] = []
    for state, golden in sets:
        try:
            program = replace(program, inputs=manifest.input_names)
            run = maker.emulate(f"bundle to be: {WEIGHTS}", program, state)
            if run is None:
                best_for_this_cpu(f"program {name!r}", [program], [program.properties])
                run = open_run(maker, "bundle to be", program, state)
            loaded = LoadedProgram(name, manifest, "", run)
            results = [compare(loaded.run_flat, golden, case, manifest.outputs) for case in golden.golden.cases]
        except (BundleError, ShapeError) as error:
            raise ExportError(f"program {name!r}: expected a program that runs, got: {error}") from error
        for result in results:
            if not result.ok:
                raise ExportError(
                    f"program {name!r}: case '{result.case}': error {result.error:.3g} is above the tolerance "
                    f"{result.tolerance:.3g}; nothing was written."
                )
        recorded = recorded or results
        opened.append(loaded)
    cases = {result.case: CaseResult(result.error, result.tolerance) for result in recorded}
    return opened[0], ProgramRecord(name, program.file, dict(program.properties), cases)


def _check_nan(name: str, loaded: LoadedProgram, module: nn.Module, signature: IOSignature) -> None:
    """Refuse a program that returns a number for a NaN: a broken input would go unnoticed."""
    names = [one.name for one in signature.inputs]
    others = plain_inputs(signature.inputs, NAN_BATCH, signature.lengths[0])
    for place, spec in enumerate(signature.inputs):
        if spec.dtype == "bool":
            continue
        for case, given in with_nan(others[place].shape[1:], torch_dtype(spec.dtype)):
            inputs = [*others[:place], given, *others[place + 1 :]]
            number = lost_nan(loaded.run_flat, partial(call_flat, module, names), inputs)
            if number is not None:
                raise ExportError(
                    f"program {name!r}: {spec.name} with {case}: expected NaN as eager gives, got {number:.3g}; "
                    "nothing was written."
                )


def _other_weights(owner: str, module: nn.Module, signature: IOSignature) -> tuple[Mapping[str, Tensor], GoldenSet]:
    """A second set of weights, and its golden cases: they detect a program with weights compiled in.

    They also make errors visible in a module with initial weights (a FiLM generator's last weight is zero). Each number
    moves away from zero, so that variances stay positive.
    """
    generator = torch.Generator().manual_seed(SEED)
    other = copy.deepcopy(module)
    moved = {
        key: value + _step(value, generator) if value.is_floating_point() else value
        for key, value in module.state_dict().items()
    }
    other.load_state_dict(moved)
    return moved, make_golden(owner, other, signature)


def _step(value: Tensor, generator: torch.Generator) -> Tensor:
    """How far each number moves: less in a wide matrix, because large sums saturate the next layers."""
    summed = value[0].numel() if value.dim() > 1 and len(value) > 1 else 1
    size = min(0.05, 0.4 / summed**0.5) if summed else 0.0
    drawn = size * torch.randn(value.shape, generator=generator, device="cpu").abs().to(value.dtype)
    return torch.where(value < 0, -drawn, drawn)

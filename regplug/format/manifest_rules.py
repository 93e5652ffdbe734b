"""Reads ``manifest.json``: checks every value against the schema, and that the values agree with each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from regplug.errors import BundleError, SpecError
from regplug.format.folder import MANIFEST
from regplug.format.limits import MAX_GOLDEN, MAX_PROGRAM, MAX_RANK, MAX_TENSORS, MAX_WEIGHTS
from regplug.format.manifest import (
    BUNDLE_FORMATS,
    CPU_FLAGS,
    GOLDEN,
    IMAGES,
    SMOKE_CASE,
    WEIGHTS,
    LayoutRecord,
    Manifest,
)
from regplug.format.more_inputs import check_more_inputs, check_parts, least_tokens
from regplug.format.strict_json import PLAIN_NAME, format_value, read_as, wrong
from regplug.registry.json_text import WrongValueError, parse_json
from regplug.registry.layout import TOKENS, TokenLayout
from regplug.registry.names import OWN


def parse_manifest(path: str, data: bytes) -> Manifest:
    """Read ``manifest.json`` and refuse what ``docs/bundle.md`` does not allow.

    Args:
        path: The bundle's folder, for messages.
        data: The file's bytes.

    Raises:
        BundleError: It has another format, or a key is missing, unknown, or has a wrong value.
    """
    try:
        values = parse_json(data)
        manifest = read_as(Manifest, values, newer=_format_of(values) != 1)
        _check_agreement(manifest)
    except WrongValueError as error:
        raise BundleError(f"bundle {path}: {MANIFEST}: {error}.") from None
    return manifest


def _format_of(values: Any) -> int | None:
    """The format, which is checked first: another one may have other keys; None if there is none."""
    if not (isinstance(values, dict) and "bundle_format" in values):
        return None
    found = format_value(values["bundle_format"])
    known = [one for one in BUNDLE_FORMATS if found == str(one)]
    if not known:
        raise WrongValueError(f"bundle_format: expected 1 or 2, got {found}; use a newer regplug")
    return known[0]


def _check_agreement(manifest: Manifest) -> None:
    """Refuse a manifest whose keys contradict each other."""
    conditioner = manifest.holds == "conditioner"
    if manifest.bundle_format == 1 and manifest.num_registers is None:
        raise wrong("num_registers", "an integer >= 1", None)
    if manifest.layout is not None:
        _check_layout(manifest, manifest.layout)
    elif conditioner or manifest.backbone is not None:
        raise wrong("layout", "an object", None)
    if conditioner != (manifest.film is not None):
        raise wrong("film", "an object" if conditioner else "null", manifest.film and asdict(manifest.film))
    check_parts(manifest)
    _check_input(manifest, conditioner)
    check_more_inputs(manifest)
    _check_outputs(manifest, conditioner)
    _check_cases(manifest)
    _check_programs(manifest)
    _check_files(manifest)
    _check_packages(manifest)


def _check_input(manifest: Manifest, conditioner: bool) -> None:
    shape = manifest.input.shape
    layout, backbone = manifest.token_layout, manifest.backbone
    name = "registers" if manifest.bundle_format == 1 else TOKENS
    least = None if manifest.num_registers else least_tokens(manifest.parts)
    wanted_shape: tuple[int | str, ...] = ("B", manifest.num_registers or "T", manifest.hidden_dim)
    if backbone is not None and layout is not None:
        if layout.normalized != backbone.normalized:
            raise wrong("layout.normalized", format_value(backbone.normalized), layout.normalized)
        name, wanted_shape, least = IMAGES, shape, None
        fixed = all(isinstance(size, int) for size in shape[1:])
        if not (2 <= len(shape) <= MAX_RANK and shape[0] == "B" and fixed):
            raise wrong("input.shape", '"B" and 1 to 7 sizes', list(shape))
    elif conditioner and layout is not None:
        free = None if layout.num_registers else least_tokens(manifest.parts) + (layout.start or 0)
        least = layout.num_tokens or free or layout.min_tokens
        name, wanted_shape = TOKENS, ("B", layout.num_tokens or "T", manifest.hidden_dim)
    for word, wanted, got in (
        ("input.name", name, manifest.input.name),
        ("input.shape", list(wanted_shape), list(shape)),
        ("input.min_tokens", least, manifest.input.min_tokens),
    ):
        if wanted != got:
            raise wrong(word, format_value(wanted), got)


def _check_layout(manifest: Manifest, layout: LayoutRecord) -> None:
    try:
        TokenLayout(**vars(layout))
    except SpecError:
        raise wrong("layout", "positions that agree with its sizes", asdict(layout)) from None
    if (layout.num_registers, layout.hidden_dim) != (manifest.num_registers, manifest.hidden_dim):
        raise wrong("layout", "the num_registers and hidden_dim of the manifest", asdict(layout))


def _check_outputs(manifest: Manifest, conditioner: bool) -> None:
    outputs = manifest.outputs
    if not outputs or len(outputs) % 2 if conditioner else len(outputs) != 1:
        raise wrong("outputs", "pairs of gamma and beta" if conditioner else "one output", len(outputs))
    for index, output in enumerate(outputs):
        name = f"{'beta' if index % 2 else 'gamma'}_{index // 2}" if conditioner else "conditioning"
        last = output.shape[-1] if conditioner and output.shape else None
        width = last if isinstance(last, int) else manifest.cond_dim
        for word, wanted, got in (
            ("name", name, output.name),
            ("dtype", manifest.input.dtype, output.dtype),
            ("shape", ["B", width], list(output.shape)),
        ):
            if wanted != got:
                raise wrong(f"outputs.{index}.{word}", format_value(wanted), got)


def _check_cases(manifest: Manifest) -> None:
    """Check that ``batch_1`` exists, and that each case fits the input: loaders rely on both."""
    cases = [case.case for case in manifest.golden.cases]
    if SMOKE_CASE not in cases or len(set(cases)) != len(cases):
        raise wrong("golden.cases", f"each case once and {SMOKE_CASE} among them", cases)
    tensors = len(cases) * (len(manifest.inputs) + len(manifest.outputs))
    if tensors > MAX_TENSORS:
        raise wrong("golden.cases", f"at most {MAX_TENSORS} tensors", tensors)
    least, length = manifest.input.min_batch, manifest.input.shape[1]
    for index, case in enumerate(manifest.golden.cases):
        where = f"golden.cases.{index}"
        if case.batch < least:
            raise wrong(f"{where}.batch", f"an integer >= {least}", case.batch)
        if case.case.startswith("batch_") and case.case != f"batch_{case.batch}":
            raise wrong(f"{where}.case", format_value(f"batch_{case.batch}"), case.case)
        if isinstance(length, int) and case.length != length:
            raise wrong(f"{where}.length", format_value(length), case.length)
        if case.length < (manifest.input.min_tokens or 0):
            raise wrong(f"{where}.length", f"an integer >= {manifest.input.min_tokens}", case.length)


def _check_programs(manifest: Manifest) -> None:
    """Check that each file is named after its backend, and each tolerance is that of the golden case."""
    tolerances = {case.case: case.tolerance for case in manifest.golden.cases}
    for index, program in enumerate(manifest.programs):
        where = f"programs.{index}"
        if not program.file.startswith(f"program.{program.backend}"):
            raise wrong(f"{where}.file", f"a name that begins with program.{program.backend}", program.file)
        flags = program.properties.get(CPU_FLAGS, "")
        if flags and not all(map(PLAIN_NAME.fullmatch, flags.split(" "))):
            raise wrong(f"{where}.properties.{CPU_FLAGS}", "words separated by single spaces", flags)
        if set(program.cases) != set(tolerances):
            raise wrong(f"{where}.cases", "the golden cases and no other", sorted(program.cases))
        for name, result in sorted(program.cases.items()):
            if result.tolerance != tolerances[name]:
                raise wrong(f"{where}.cases.{name}.tolerance", format_value(tolerances[name]), result.tolerance)
            if result.error > result.tolerance:
                raise wrong(f"{where}.cases.{name}.error", f"at most {format_value(result.tolerance)}", result.error)


def _check_files(manifest: Manifest) -> None:
    listed = [WEIGHTS, GOLDEN, *(program.file for program in manifest.programs)]
    if sorted(manifest.files) != sorted(listed):
        raise wrong("files", f"[{', '.join(listed)}]", sorted(manifest.files))
    for name, record in sorted(manifest.files.items()):
        most = {WEIGHTS: MAX_WEIGHTS, GOLDEN: MAX_GOLDEN}.get(name, MAX_PROGRAM)
        if record.size > most:
            raise wrong(f"files.{name}.size", f"at most {most}", record.size)


def _check_packages(manifest: Manifest) -> None:
    named = (manifest.strategy, manifest.film and manifest.film.generator, manifest.backbone and manifest.backbone.name)
    wanted = {OWN, *(name.partition(":")[0] for name in named if name)}
    packages = manifest.provenance.packages
    for distribution in sorted(wanted.difference(packages)):
        raise wrong("provenance.packages", f"{distribution} among them", sorted(packages))

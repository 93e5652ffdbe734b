"""The manifest: its schema as frozen data. ``docs/bundle.md`` specifies it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from regplug.entries import FILM_FORMS
from regplug.errors import BundleError, SpecError
from regplug.folder import FILE_NAME, MANIFEST
from regplug.layout import TokenLayout
from regplug.strict import WrongValueError, integer, matching, one_of, parse_json, read_as, shown, wrong

BUNDLE_FORMAT = 1
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
SMOKE_CASE = "batch_1"  # the case that every loader runs
IMAGES = "images"  # the input where the backbone is inside
MAX_RANK = 8

Positive = Annotated[int, integer(1)]
Natural = Annotated[int, integer(0)]
DType = Annotated[str, one_of("float32", "float64", "float16", "bfloat16")]
FullName = Annotated[str, matching(re.compile(r"[A-Za-z0-9._-]+:[A-Za-z0-9._-]+"), "distribution:name")]
FileName = Annotated[str, matching(FILE_NAME, "a file name, never a path")]
Sha256 = Annotated[str, matching(re.compile(r"[0-9a-f]{64}"), "64 lower-case hexadecimal digits")]


def _size(where: str, value: Any) -> int | str:
    return value if value in ("B", "T") else integer(1)(where, value)  # type: ignore[no-any-return]


Shape = tuple[Annotated[int | str, _size], ...]


@dataclass(frozen=True)
class LayoutRecord:
    """A ``TokenLayout`` as the manifest writes it."""

    num_registers: Positive
    hidden_dim: Positive
    start: Annotated[int, integer()] | None
    indices: tuple[Natural, ...] | None
    num_tokens: Positive | None
    normalized: bool | None


@dataclass(frozen=True)
class BackboneRecord:
    """The backbone in front of the readout, by registered name; ``normalized``: whether its final norm is applied."""

    name: FullName
    model: Annotated[str, matching(FILE_NAME, "a model's name, never a path or an address")] | None
    options: Mapping[str, Any]
    normalized: bool


@dataclass(frozen=True)
class Input:
    """What a bundle's module takes; ``shape`` has "B" and "T" where a size may vary."""

    name: Annotated[str, one_of("registers", "tokens", IMAGES)]
    dtype: DType
    shape: Shape
    min_batch: Natural
    min_tokens: Positive | None


@dataclass(frozen=True)
class Output:
    """One tensor that a bundle's module gives."""

    name: str
    dtype: DType
    shape: Shape


@dataclass(frozen=True)
class GoldenCase:
    """One input with known outputs; a slice of what is stored when ``start`` is not None."""

    case: str
    batch: Natural
    start: Natural | None
    length: Positive
    eager_error: float
    tolerance: float


@dataclass(frozen=True)
class Golden:
    """Where the expected outputs come from, and the cases."""

    truth: Annotated[str, one_of("float64", "eager")]
    cases: tuple[GoldenCase, ...]


@dataclass(frozen=True)
class FiLMRecord:
    """The FiLM generator of a conditioner, by registered name."""

    generator: FullName
    options: Mapping[str, Any]
    form: Annotated[str, one_of(*FILM_FORMS)]
    order: Annotated[str, one_of("gamma-first")]


@dataclass(frozen=True)
class CaseResult:
    """A program's error on a golden case, and the tolerance it was held to."""

    error: float
    tolerance: float


@dataclass(frozen=True)
class ProgramRecord:
    """One program: its backend, its file, what the backend noted, and its errors."""

    backend: str
    file: FileName
    properties: Mapping[str, str]
    cases: Mapping[str, CaseResult]


@dataclass(frozen=True)
class FileRecord:
    """A file's size in bytes and its sha256."""

    size: Natural
    sha256: Sha256


@dataclass(frozen=True)
class PluginVersion:
    """The distribution that offers the strategy."""

    distribution: str
    version: str


@dataclass(frozen=True)
class BundleProvenance:
    """Where a bundle was made; ``cpu`` is ATen's CPU capability there."""

    plugin: PluginVersion
    regplug: str
    torch: str
    python: str
    cpu: str


@dataclass(frozen=True)
class Manifest:
    """All that ``manifest.json`` says."""

    bundle_format: Natural
    holds: Annotated[str, one_of("readout", "conditioner")]
    strategy: FullName
    num_registers: Positive
    hidden_dim: Positive
    options: Mapping[str, Any]
    cond_dim: Positive
    layout: LayoutRecord | None
    film: FiLMRecord | None
    backbone: BackboneRecord | None
    input: Input
    outputs: tuple[Output, ...]
    golden: Golden
    programs: tuple[ProgramRecord, ...]
    files: Mapping[str, FileRecord]
    provenance: BundleProvenance

    @property
    def token_layout(self) -> TokenLayout | None:
        """The layout, if the manifest has one."""
        return None if self.layout is None else TokenLayout(**vars(self.layout))

    def to_bytes(self) -> bytes:
        """The file's bytes: sorted, indented, the same for the same content."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    def describe(self) -> dict[str, Any]:
        """What the weights file repeats of it, so that a lone one says what it is."""
        known = ("holds", "strategy", "num_registers", "hidden_dim", "options", "film", "layout", "backbone")
        return {key: value for key, value in asdict(self).items() if key in known}


def parse_manifest(path: str, data: bytes) -> Manifest:
    """Read ``manifest.json``, refusing all that the specification does not allow.

    Args:
        path: The bundle's folder, for messages.
        data: The file's bytes.

    Raises:
        BundleError: The format is another, or a key is missing, unknown, or has a value it may not have.
    """
    try:
        values = parse_json(data)
        _check_format(values)
        manifest = read_as(Manifest, values)
        _check_agreement(manifest)
    except WrongValueError as error:
        raise BundleError(f"bundle {path}: {MANIFEST}: {error}.") from None
    return manifest


def _check_format(values: Any) -> None:
    """Look at the format before anything else: another format may have other keys."""
    if isinstance(values, dict) and "bundle_format" in values:
        found = shown(values["bundle_format"])
        if found != str(BUNDLE_FORMAT):
            raise WrongValueError(f"bundle_format: expected {BUNDLE_FORMAT}, got {found}; use a newer regplug")


def _check_agreement(manifest: Manifest) -> None:
    """Refuse a manifest whose keys contradict each other."""
    conditioner = manifest.holds == "conditioner"
    if manifest.layout is not None:
        _check_layout(manifest, manifest.layout)
    elif conditioner or manifest.backbone is not None:
        raise wrong("layout", "an object", None)
    if conditioner != (manifest.film is not None):
        raise wrong("film", "an object" if conditioner else "null", manifest.film and asdict(manifest.film))
    _check_input(manifest, conditioner)
    _check_outputs(manifest, conditioner)
    _check_lists(manifest)


def _check_input(manifest: Manifest, conditioner: bool) -> None:
    shape = manifest.input.shape
    layout, backbone = manifest.token_layout, manifest.backbone
    name, least = "registers", None
    wanted_shape: tuple[int | str, ...] = ("B", manifest.num_registers, manifest.hidden_dim)
    if backbone is not None and layout is not None:
        if layout.normalized != backbone.normalized:
            raise wrong("layout.normalized", shown(backbone.normalized), layout.normalized)
        name, wanted_shape = IMAGES, shape
        fixed = all(isinstance(size, int) for size in shape[1:])
        if not (2 <= len(shape) <= MAX_RANK and shape[0] == "B" and fixed):
            raise wrong("input.shape", '"B" and 1 to 7 sizes', list(shape))
    elif conditioner and layout is not None:
        least = layout.num_tokens or layout.min_tokens
        name, wanted_shape = "tokens", ("B", layout.num_tokens or "T", manifest.hidden_dim)
    for word, wanted, got in (
        ("input.name", name, manifest.input.name),
        ("input.shape", list(wanted_shape), list(shape)),
        ("input.min_tokens", least, manifest.input.min_tokens),
    ):
        if wanted != got:
            raise wrong(word, shown(wanted), got)


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
        width = output.shape[-1] if conditioner and isinstance(output.shape[-1], int) else manifest.cond_dim
        for word, wanted, got in (
            ("name", name, output.name),
            ("dtype", manifest.input.dtype, output.dtype),
            ("shape", ["B", width], list(output.shape)),
        ):
            if wanted != got:
                raise wrong(f"outputs.{index}.{word}", shown(wanted), got)


def _check_lists(manifest: Manifest) -> None:
    cases = [case.case for case in manifest.golden.cases]
    if SMOKE_CASE not in cases or len(set(cases)) != len(cases):
        raise wrong("golden.cases", f"each case once and {SMOKE_CASE} among them", cases)
    for index, program in enumerate(manifest.programs):
        if not program.file.startswith(f"program.{program.backend}"):
            raise wrong(f"programs.{index}.file", f"a name that begins with program.{program.backend}", program.file)
        if set(program.cases) != set(cases):
            raise wrong(f"programs.{index}.cases", "the golden cases and no other", sorted(program.cases))
    listed = [WEIGHTS, GOLDEN, *(program.file for program in manifest.programs)]
    if sorted(manifest.files) != sorted(listed):
        raise wrong("files", f"[{', '.join(listed)}]", sorted(manifest.files))

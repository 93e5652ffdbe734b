"""The manifest as frozen dataclasses; ``docs/bundle.md`` specifies it.

A field with a default is a key of format 2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated, Any

from regplug.format.strict_json import PLAIN_NAME, integer, matching, one_of
from regplug.registry.dtypes import DTYPES
from regplug.registry.entries import FILE_NAME, FILM_FORMS
from regplug.registry.json_text import OPTION_NAME
from regplug.registry.layout import GROUP_NAME, TokenLayout

BUNDLE_FORMATS = (1, 2)
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
SMOKE_CASE = "batch_1"  # the golden case that every loader runs
CPU_FLAGS = "cpu_flags"  # the property of a program that lists the CPU flags it needs
NEEDS = "needs"  # the property that says what a program needs besides a runtime: "nothing", or "libtorch (functions)"
IMAGES = "images"  # the name of the input if the bundle includes the backbone

Positive = Annotated[int, integer(1)]
Natural = Annotated[int, integer(0)]
DType = Annotated[str, one_of(*DTYPES)]
InputName = Annotated[str, matching(GROUP_NAME, "lower-case letters, digits and underscores")]
Name = Annotated[str, matching(PLAIN_NAME, "a plain name")]
FullName = Annotated[str, matching(re.compile(r"[A-Za-z0-9._-]{1,128}:[A-Za-z0-9._-]{1,128}"), "distribution:name")]
Option = Annotated[str, matching(OPTION_NAME, "an option's name")]
Version = Annotated[str, matching(re.compile(r"[A-Za-z0-9._+!-]{1,128}"), "a version")]
Line = Annotated[str, matching(re.compile(r"[ -~]*"), "printable ASCII")]
FileName = Annotated[str, matching(FILE_NAME, "a file name, never a path")]
Sha256 = Annotated[str, matching(re.compile(r"[0-9a-f]{64}"), "64 lower-case hexadecimal digits")]


def _size(where: str, value: Any) -> int | str:
    return value if value in ("B", "T") else integer(1)(where, value)  # type: ignore[no-any-return]


Shape = tuple[Annotated[int | str, _size], ...]


@dataclass(frozen=True)
class LayoutRecord:
    """A ``TokenLayout`` in the manifest; ``num_registers`` is None only in format 2."""

    num_registers: Positive | None
    hidden_dim: Positive
    start: Annotated[int, integer()] | None
    indices: tuple[Natural, ...] | None
    num_tokens: Positive | None
    normalized: bool | None


@dataclass(frozen=True)
class BackboneRecord:
    """The backbone, by registered name; ``normalized`` says whether its final norm is applied."""

    name: FullName
    model: Annotated[str, matching(FILE_NAME, "a model's name, never a path or an address")] | None
    options: Mapping[Option, Any]
    normalized: bool


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that a bundle's module takes or returns; ``shape`` has "B" and "T" where a size may vary."""

    name: Name
    dtype: DType
    shape: Shape


@dataclass(frozen=True)
class InputSpec(TensorSpec):
    """The tensor that a bundle's module takes: ``registers``, ``tokens`` or ``images``, and its smallest sizes."""

    name: Annotated[str, one_of("registers", "tokens", IMAGES)]
    min_batch: Natural
    min_tokens: Positive | None


@dataclass(frozen=True)
class MoreInput(TensorSpec):
    """A tensor that the module takes besides its ``InputSpec``: ``mask``, or a vector by its part's name."""

    name: InputName
    dtype: Annotated[str, one_of(*DTYPES, "bool")]


@dataclass(frozen=True)
class PartRecord:
    """A part of a join: its width in the conditioning vector, and its tokens ``[start, stop]``; None for a vector."""

    name: InputName
    width: Positive
    tokens: tuple[Annotated[int, integer()] | None, ...] | None
    takes_mask: bool


@dataclass(frozen=True)
class GoldenCase:
    """Inputs with known outputs; with ``start``, the input, and a mask, is a slice of the stored tensor."""

    case: Name
    batch: Natural
    start: Natural | None
    length: Positive
    eager_error: float
    tolerance: float


@dataclass(frozen=True)
class Golden:
    """The golden cases, and which forward made their outputs."""

    truth: Annotated[str, one_of("float64", "eager")]
    cases: tuple[GoldenCase, ...]


@dataclass(frozen=True)
class FiLMRecord:
    """The FiLM generator of a conditioner, by registered name."""

    generator: FullName
    options: Mapping[Option, Any]
    form: Annotated[str, one_of(*FILM_FORMS)]
    order: Annotated[str, one_of("gamma-first")]


@dataclass(frozen=True)
class WeightsNote:
    """What a weights file says of itself, in its metadata: the keys of the manifest that tell what the weights are."""

    holds: Annotated[str, one_of("readout", "conditioner")]
    strategy: FullName
    num_registers: Positive | None
    hidden_dim: Positive
    options: Mapping[str, Any]
    film: FiLMRecord | None
    layout: LayoutRecord | None
    backbone: BackboneRecord | None

    def as_dict(self) -> dict[str, Any]:
        """The note as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


NOTE_KEYS = tuple(field.name for field in fields(WeightsNote))


@dataclass(frozen=True)
class CaseResult:
    """A program's error on a golden case, and the tolerance for it."""

    error: float
    tolerance: float


@dataclass(frozen=True)
class ProgramRecord:
    """One program: its backend, its file, the backend's properties, and its error on each golden case."""

    backend: Name
    file: FileName
    properties: Mapping[Name, Line]
    cases: Mapping[Name, CaseResult]

    @property
    def name(self) -> str:
        """Backend and instruction set: ``aotinductor x86-64-v3``."""
        return " ".join(filter(None, (self.backend, self.properties.get("isa"))))

    @property
    def needs(self) -> str | None:
        """``runs without libtorch``, or ``needs libtorch (function)``; None if the bundle does not say."""
        needs = self.properties.get(NEEDS)
        return needs and ("runs without libtorch" if needs == "nothing" else f"needs {needs}")


@dataclass(frozen=True)
class FileRecord:
    """A file's size in bytes and its sha256."""

    size: Natural
    sha256: Sha256


@dataclass(frozen=True)
class BundleProvenance:
    """What a bundle was made with: distributions and their versions, and ATen's CPU capability."""

    packages: Mapping[Name, Version]
    torch: Version
    python: Version
    cpu: Version


@dataclass(frozen=True)
class Manifest:
    """The whole ``manifest.json``; ``num_registers`` is None for any number of tokens, only in format 2."""

    bundle_format: Natural
    holds: Annotated[str, one_of("readout", "conditioner")]
    strategy: FullName
    num_registers: Positive | None
    hidden_dim: Positive
    options: Mapping[Option, Any]
    cond_dim: Positive
    layout: LayoutRecord | None
    film: FiLMRecord | None
    backbone: BackboneRecord | None
    input: InputSpec
    outputs: tuple[TensorSpec, ...]
    golden: Golden
    programs: tuple[ProgramRecord, ...]
    files: Mapping[FileName, FileRecord]
    provenance: BundleProvenance
    more_inputs: tuple[MoreInput, ...] = ()
    parts: tuple[PartRecord, ...] | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """All tensors that the module takes, in their order: ``input``, and ``more_inputs``."""
        return (self.input, *self.more_inputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of all inputs, in their order."""
        return tuple(one.name for one in self.inputs)

    @property
    def token_layout(self) -> TokenLayout | None:
        """The layout as a ``TokenLayout``; None without one."""
        return None if self.layout is None else TokenLayout(**vars(self.layout))

    @property
    def made_with(self) -> str:
        """``DIST VERSION`` for messages: the strategy's distribution, and the backbone's if it is another."""
        names = [self.strategy, *([self.backbone.name] if self.backbone else [])]
        distributions = dict.fromkeys(name.partition(":")[0] for name in names)
        return " and ".join(f"{one} {self.provenance.packages[one]}" for one in distributions)

    def to_bytes(self) -> bytes:
        """The file's bytes; equal manifests give equal bytes."""
        values = asdict(self)
        if self.bundle_format == 1:
            values = {one.name: values[one.name] for one in fields(self) if one.default is MISSING}
        return (json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    def describe(self) -> dict[str, Any]:
        """What the weights file repeats of it, so that a single weights file says what it is."""
        return {key: value for key, value in asdict(self).items() if key in NOTE_KEYS}

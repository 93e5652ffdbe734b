"""What ``effect`` found, as data and as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regplug.commands.effect.findings import ANY, INFO, SURE, Finding
from regplug.commands.effect.measure import ReadoutEffect, SiteEffect, Statistics
from regplug.commands.printing import print_columns, say

NOTHING = "nothing was measured: no FiLM site found"


@dataclass(frozen=True)
class EffectReport:
    """How much of a network's output depends on what it is conditioned on.

    Args:
        network: The network's class.
        inputs: "given" or "drawn".
        batch: The number of samples.
        noise: The effect of running twice; anything below it is rounding.
        state: "trained", "at-start" or "unknown".
        readouts: One for each readout.
        sites: One for each FiLM site.
        findings: What is wrong, and what is worth knowing.
        notes: What was not measured, and why.
    """

    network: str
    inputs: str
    batch: int
    noise: float
    state: str
    readouts: tuple[ReadoutEffect, ...]
    sites: tuple[SiteEffect, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def of(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(one for one in self.findings if one.kind == kind)

    @property
    def defects(self) -> tuple[Finding, ...]:
        """The findings of the grades "sure" and "maybe"."""
        return tuple(one for one in self.findings if one.grade != INFO)

    def failing(self, kinds: Sequence[str]) -> tuple[Finding, ...]:
        """The findings of these kinds, of the grades "sure" and "maybe"; ``"any"`` is all that are sure."""
        return tuple(one for one in self.defects if one.kind in kinds or (ANY in kinds and one.grade == SURE))

    def as_json(self, fail_on: Sequence[str] = ()) -> dict[str, Any]:
        """The report as JSON values: the format ``regplug.effect/1``. It is not ok either if nothing was measured."""
        failed = list(dict.fromkeys(one.kind for one in self.failing(fail_on)))
        is_empty = bool(fail_on) and not self.sites
        notes = [*self.notes, NOTHING] if is_empty else self.notes
        is_ok = not failed and not is_empty
        values: dict[str, Any] = _finite({**asdict(self), "notes": notes, "failed_on": failed, "ok": is_ok})
        return values


def print_report(report: EffectReport) -> None:
    """Print the sites, the readouts, then the findings."""
    say(f"{report.network}, {report.state}; {report.batch} {report.inputs} samples; noise {report.noise:.1g}")
    if report.sites:
        heads = ("FiLM site", "from", "swap", "mean", "zero", "gradient", "gamma", "beta", "left by norm", "state")
        print_columns(heads, [_site_row(one) for one in report.sites])
    else:
        say("no FiLM site found: see `regplug audit` for what counts as one")
    if report.readouts:
        say()
        print_columns(
            ("readout", "class", "swap", "mean", "zero", "reads tokens"), [_readout_row(one) for one in report.readouts]
        )
    if report.findings:
        say()
        alike: dict[tuple[str, str], list[Finding]] = {}
        for one in report.findings:
            alike.setdefault((one.kind, one.grade), []).append(one)
        for (kind, grade), some in alike.items():
            more = f" and {len(some) - 1} more" if len(some) > 1 else ""
            number = f"{_number(some[0].number)} {some[0].unit}".strip()
            say(f"{grade}: {kind}: {some[0].module or 'network'}{more}: {number}. {some[0].why}; {some[0].do}.")
    for note in report.notes:
        say(note)
    count = len(report.defects)
    say(f"{len(report.sites)} FiLM sites, {len(report.readouts)} readouts: {count} findings")


def _site_row(one: SiteEffect) -> tuple[str, ...]:
    left = [value for value in (one.gamma_transmission, one.beta_transmission) if value is not None]
    return (
        one.module,
        ", ".join(one.sources) or "?",
        *map(_number, (one.swap, one.mean, one.zero, one.gradient)),
        _range(one.gamma),
        _range(one.beta),
        _number(min(left)) if left else "-",
        one.state,
    )


def _readout_row(one: ReadoutEffect) -> tuple[str, ...]:
    reads = "?" if one.reads is None else " ".join(map(str, one.reads))
    return one.module, one.label, *map(_number, (one.swap, one.mean, one.zero)), reads


def _range(one: Statistics | None) -> str:
    return "-" if one is None else f"{one.mean:.2g} +- {one.std:.2g}"


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.0f}" if value == int(value) else f"{value:.2g}"


def _finite(value: Any) -> Any:
    """The value without NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value

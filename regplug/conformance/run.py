"""Runs all checks on one readout, with one result for each check."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from regplug.conformance import (
    compiled,
    extreme_inputs,
    light_import,
    masks,
    outputs,
    programs,
    rejections,
    storage,
    training,
)
from regplug.conformance.check import COMPILERS, Check, CheckResult, refuse_expectations, run_check
from regplug.conformance.subject import Subject, own_plugins, registry_for
from regplug.errors import SpecError
from regplug.registry.default import default_registry
from regplug.registry.entries import NAME_PATTERN
from regplug.registry.layout import TokenLayout
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec

ANY_BACKEND = "any"
CHECK_OF_BACKEND = re.compile(rf"([^\[\]]+)\[{NAME_PATTERN.pattern}\]")  # program[onnx]
FILM = "regplug.nn.film:KernelFiLMGenerator"
FILM_OPTIONS = {"kernel_hidden_dim": 8, "num_film_layers": 2}


def subject_of(
    spec: ReadoutSpec,
    *,
    layout: TokenLayout | None = None,
    film: Any = None,
    film_options: Mapping[str, Any] | None = None,
    backends: Sequence[str] | None = None,
    compiler: str = "inductor",
    registry: Registry | None = None,
) -> Subject:
    """A readout, ready to be checked.

    Args:
        spec: A spec from ``regplug.resolve``.
        layout: Where the registers are; after one other token when None.
        film: The FiLM generator to pair it with, a class or ``module:Class``; regplug's own when None.
        film_options: Its constructor's keywords, except the width; regplug's own generator needs none.
        backends: The export backends to try; regplug's own and those of the readout's distribution when None.
        compiler: ``torch.compile``'s backend: ``inductor``, or ``eager``, which only traces and is fast.
        registry: Where names are looked up; the installed plugins when None.

    Raises:
        SpecError: The readout cannot be built, the layout has other sizes than the spec, or the compiler is unknown.
        NameLookupError: An export backend is not installed.
    """
    registry = registry or default_registry()
    if layout is not None and not isinstance(layout, TokenLayout):
        raise SpecError(f"layout: expected a TokenLayout, got {layout!r}.")
    if isinstance(backends, str):
        raise SpecError(f"backends: expected a list of names, got {backends!r}; use [{backends!r}].")
    sizes = (spec.num_registers, spec.hidden_dim)
    layout = layout or TokenLayout(*sizes, start=1)
    if (layout.num_registers, layout.hidden_dim) != sizes:
        raise SpecError(
            f"layout: expected num_registers={sizes[0]} and hidden_dim={sizes[1]}, got {layout.num_registers} and "
            f"{layout.hidden_dim}."
        )
    if compiler not in COMPILERS:
        raise SpecError(f"compiler: expected one of {', '.join(COMPILERS)}, got {compiler!r}.")
    if backends is None:
        backends = [*dict.fromkeys(entry.name for entry in own_plugins(spec, registry).export_backend_entries())]
    else:
        for name in backends:
            registry_for(spec, registry, name).export_backend_entry(name)
    if film is None:
        film, film_options = FILM, {**FILM_OPTIONS, **(film_options or {})}
    subject = Subject(spec, layout, film, dict(film_options or {}), tuple(backends), compiler, registry)
    # a readout that cannot be built is one error, not a failure of every check
    _refuse_lazy(subject.name, subject.built())
    return subject


def _refuse_lazy(label: str, readout: nn.Module) -> None:
    for name, tensor in (*readout.named_parameters(), *readout.named_buffers()):
        if is_lazy(tensor):
            raise SpecError(
                f"{label}: expected weights that have shapes once built, got a lazy {name!r}; state its sizes."
            )


def all_checks(backends: Sequence[str]) -> list[Check[Subject]]:
    """All checks in the order in which they run; ``backends`` are the export backends to try."""
    return [
        *outputs.CHECKS,
        *rejections.CHECKS,
        *masks.CHECKS,
        *training.CHECKS,
        *light_import.CHECKS,
        *storage.CHECKS,
        *compiled.CHECKS,
        *programs.checks(backends),
        *extreme_inputs.checks(backends),
    ]


def check_readout(
    spec: ReadoutSpec,
    *,
    expected_failures: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **subject: Any,
) -> list[CheckResult]:
    """Run every check on a readout.

    Args:
        spec: A spec from ``regplug.resolve``.
        expected_failures: Checks that are known to fail on it, each with the reason; one that passes is a failure.
        progress: Called with each check's name.
        **subject: Arguments of ``subject_of``.

    Raises:
        SpecError: ``expected_failures`` names no check; the layout does not fit.

    Example:
        >>> import regplug
        >>> spec = regplug.resolve("mean", num_registers=4, hidden_dim=24)
        >>> all(result.ok for result in check_readout(spec, backends=[], compiler="eager"))
        True
    """
    return check_subject(subject_of(spec, **subject), expected_failures or {}, progress)


def check_subject(
    subject: Subject, expected_failures: Mapping[str, str], progress: Callable[[str], None] = lambda step: None
) -> list[CheckResult]:
    """As ``check_readout``, on a subject from ``subject_of``."""
    refuse_unknown_checks(subject.name, expected_failures)
    results = []
    for check in all_checks(subject.backends):
        progress(check.name)
        results.append(run_check(check, subject, expected_failures.get(check.name)))
    return results


def refuse_unknown_checks(label: str, expected: Mapping[str, str]) -> None:
    """Refuse an expected failure of a check that does not exist, or without a reason.

    A program's check may name an export backend that is not installed here.
    """
    known = [check.name for check in all_checks([ANY_BACKEND])]
    of_programs = {name.partition("[")[0] for name in known if name.endswith(f"[{ANY_BACKEND}]")}

    def is_known(name: str) -> bool:
        program = CHECK_OF_BACKEND.fullmatch(name)
        return name in known or (program is not None and program[1] in of_programs)

    refuse_expectations(label, expected, is_known, [one.replace(f"[{ANY_BACKEND}]", "[BACKEND]") for one in known])

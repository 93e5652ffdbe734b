"""Audits a network: builds it at several sizes, and compares what its FiLM generators want with what they are given."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from regplug.errors import SpecError, told
from regplug.formula import UNKNOWN, fit
from regplug.layout import is_int
from regplug.options import bind, parameters_of
from regplug.widths import construct
from regplug.wiring import Network, find_between, find_parts, nearest_readout

LETTERS = {"num_registers": "R", "hidden_dim": "D", "compressed_dim": "c"}
PERTURBED = 5
MOST_TRIES = 40  # of sizes changed together; a constructor may refuse most of them
HELD_OUT = 2
FOLLOWS, DIFFERS, OPEN = "ok", "does not follow", "cannot tell"
# how regplug, then torch's linear layers on the CPU and on the meta device, say that a width is wrong
WRONG_WIDTH = re.compile(r"conditioning of width \d+, got \d+|shapes cannot be multiplied|same reduction dim")


@dataclass(frozen=True)
class Refusal:
    """Sizes that the network refuses, what it says, and whether that is about a width."""

    sizes: Mapping[str, int]
    error: str
    wrong_width: bool


@dataclass(frozen=True)
class Finding:
    """One FiLM generator: the width it wants and the width it is given, at each size (None where not known).

    Args:
        module: Its path inside the network.
        generator: Its class, and its family where it is of a known one.
        readout: Path of the readout that gives to it; None where that is not known.
        wanted: At each of the audit's sizes.
        given: At each of the audit's sizes.
        wanted_formula: In the sizes that vary.
        given_formula: In the sizes that vary.
        verdict: ``"ok"``, ``"does not follow"`` or ``"cannot tell"``.
        reason: Why, where it is not ok.
    """

    module: str
    generator: str
    readout: str | None
    wanted: tuple[int | None, ...]
    given: tuple[int | None, ...]
    wanted_formula: str
    given_formula: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        device: Where the network was built.
        sizes: Those that were built, the starting ones first.
        fixed: Words of the sizes that kept their value.
        findings: One for each FiLM generator.
        refused: Sizes that did not build.
    """

    device: str
    sizes: tuple[Mapping[str, int], ...]
    fixed: tuple[str, ...]
    findings: tuple[Finding, ...]
    refused: tuple[Refusal, ...]

    @property
    def ok(self) -> bool:
        """Whether no width was found that does not follow."""
        found = any(one.verdict == DIFFERS for one in self.findings)
        return not found and not any(one.wrong_width for one in self.refused)


def audit_network(owner: str, build: Callable[..., Any], sizes: Mapping[str, Any], options: Mapping[str, Any]) -> Audit:
    """Build a network at its sizes and at five others, and compare widths generator by generator.

    It is built on the meta device; on the CPU where its constructor cannot there.

    Args:
        owner: The network, for messages.
        build: Its class, or a function that makes it; gets by keyword those of ``num_registers``, ``hidden_dim`` and
            ``compressed_dim`` that it names.
        sizes: Where to start; None for the constructor's default.
        options: Its other arguments.

    Raises:
        SpecError: The sizes are not known or not named, or the network does not build at them or at no others.
    """
    start, named = _start(owner, build, sizes)

    def attempt(at: Mapping[str, int], device: str) -> Network:
        arguments = bind(owner, build, {word: at[word] for word in named}, options)
        with torch.device(device), warnings.catch_warnings():  # a size that nobody asked for may draw a warning
            warnings.simplefilter("ignore")
            return Network(construct(owner, build, arguments), at, device)

    try:
        base = attempt(start, "meta")
    except SpecError:  # a constructor that reads numbers out of its tensors
        base = attempt(start, "cpu")
    networks, refused = _build_others(base, named, attempt)
    if len(networks) == 1 and not any(one.wrong_width for one in refused):
        raise SpecError(
            f"{owner}: expected to build at other sizes than {spell_sizes(start)}, got {len(refused)} refusals, "
            f"the last at {spell_sizes(refused[-1].sizes)}: {refused[-1].error}"
        )
    varied = [word for word in start if len({network.sizes[word] for network in networks}) > 1]
    return Audit(
        base.device,
        tuple(network.sizes for network in networks),
        tuple(word for word in start if word not in varied) if len(networks) > 1 else (),
        tuple(_findings(networks, varied)),
        tuple(refused),
    )


def spell_sizes(sizes: Mapping[str, int]) -> str:
    """The sizes as people read them.

    Example:
        >>> spell_sizes({"num_registers": 4, "hidden_dim": 384})
        'R=4, D=384'
    """
    return ", ".join(f"{LETTERS[word]}={size}" for word, size in sizes.items())


# ---- sizes


def _start(owner: str, build: Callable[..., Any], sizes: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """The sizes to start from, and those of them that the constructor names."""
    parameters = parameters_of(owner, build)
    named = [word for word in LETTERS if word in parameters]
    if not named:
        raise SpecError(
            f"{owner}: expected a constructor that names {' or '.join(LETTERS)}, got ({', '.join(parameters)}); "
            "use a function module:build that names them."
        )
    start: dict[str, int] = {}
    for word in LETTERS:
        default = parameters[word].default if word in named else None
        size: Any = default if sizes.get(word) is None else sizes[word]
        if is_int(size) and size >= 1 and (word in named or word != "compressed_dim"):
            start[word] = size
        elif sizes.get(word) is not None:
            wanted = (
                "a positive integer" if word in named or word != "compressed_dim" else "a constructor that names it"
            )
            raise SpecError(f"{owner}: {word}: expected {wanted}, got {size!r}.")
        elif word != "compressed_dim" or default is inspect.Parameter.empty:  # c may stay what the network makes it
            use = "-O compressed_dim=c" if word == "compressed_dim" else f"--{word.replace('_', '-')}"
            raise SpecError(f"{owner}: {word}: expected {use}, as its constructor has no size by default, got none.")
    return start, [word for word in named if word in start]


def _build_others(
    base: Network, named: Sequence[str], attempt: Callable[[Mapping[str, int], str], Network]
) -> tuple[list[Network], list[Refusal]]:
    """Five other sizes that build, or that refuse because of a width; other refusals are replaced."""
    networks, tried, answers = [base], [base.sizes], 0
    refused: list[Refusal] = []
    for turn, candidates in enumerate(_candidates(base, named)):
        for at in candidates:
            if answers == PERTURBED:
                return networks, refused
            if at in tried:
                continue
            tried.append(at)
            try:
                networks.append(attempt(at, base.device))
            except SpecError as error:
                text = told(error.__cause__ or error)
                refused.append(Refusal(at, text, bool(WRONG_WIDTH.search(text))))
                if not refused[-1].wrong_width:
                    continue
            answers += 1
            if turn < len(named):  # one of each size changed alone
                break
    return networks, refused


def _candidates(base: Network, named: Sequence[str]) -> Iterator[list[dict[str, int]]]:
    """Each size changed alone, then all of them together, then what is left of those changed alone."""
    others = {word: list(_others(word, base.sizes[word], base.device)) for word in named}
    alone = [[{**base.sizes, word: value} for value in values] for word, values in others.items()]
    yield from alone
    longest = max(map(len, others.values()))
    together = []
    for turn in range(MOST_TRIES):
        shift = turn // longest  # other pairs of values in each round
        picked = {w: v[(1 + turn + k * shift) % len(v)] for k, (w, v) in enumerate(others.items())}
        together.append({**base.sizes, **picked})
    yield together
    yield from alone


def _others(word: str, size: int, device: str) -> Iterator[int]:
    if word != "hidden_dim":
        yield from (size + 1, size + 3, 2 * size, size + 2, 2 * size + 1, 3 * size, 4 * size)
        yield from (size - 1,) if size > 1 else ()
    elif device == "meta":  # heads and ratios divide a multiple too
        yield from (factor * size for factor in (2, 3, 5, 4, 6))
    else:  # weights take memory there
        yield from (size * 3 // 2, 2 * size, size // 2, 3 * size) if size % 2 == 0 else (2 * size, 3 * size)


# ---- the verdict


def _findings(networks: Sequence[Network], varied: Sequence[str]) -> Iterator[Finding]:
    films, readouts = find_parts(networks[0])
    points = [tuple(network.sizes[word] for word in varied) for network in networks]
    letters = [LETTERS[word] for word in varied]

    @cache
    def formula(widths: tuple[int | None, ...]) -> str:
        known = {point: width for point, width in zip(points, widths, strict=True) if width is not None}
        if len(known) < len(points):
            return UNKNOWN
        held_out = {point: known.pop(point) for point in points[-HELD_OUT:]}
        return fit(letters, known, held_out)

    for path, label in films.items():
        wanted = tuple(network.wanted(path) for network in networks)
        readout, reason = nearest_readout(networks, readouts, path, wanted)
        given = tuple(None if readout is None else network.given(readout) for network in networks)
        if readout is None:
            verdict = OPEN
        else:
            verdict, reason = _judge(networks, path, readout, wanted, given, formula)
        yield Finding(path, label, readout, wanted, given, formula(wanted), formula(given), verdict, reason)


def _judge(
    networks: Sequence[Network],
    film: str,
    readout: str,
    wanted: tuple[int | None, ...],
    given: tuple[int | None, ...],
    formula: Callable[[tuple[int | None, ...]], str],
) -> tuple[str, str]:
    known_wanted = [width for width in wanted if width is not None]
    known_given = [width for width in given if width is not None]
    if len(known_wanted) < len(wanted):
        return OPEN, "it does not say at every size which width it wants"
    if len(known_given) < len(given):
        refusing = networks[given.index(None)]
        try:
            refusing.read(readout)
        except SpecError as error:
            return DIFFERS, f"its readout {readout} reads nothing at {spell_sizes(refusing.sizes)}: {error}"
    if len(networks) == 1:
        return OPEN, "no other size was built"
    if wanted == given:
        return FOLLOWS, ""
    reason = f"wants {_spell(wanted, formula)}, is given {_spell(given, formula)} by {readout}"
    between = find_between(networks, film, readout, known_wanted, known_given)
    if between is not None:
        return OPEN, f"{reason}; {between} may stand between them"
    more = tuple(want - give for want, give in zip(known_wanted, known_given, strict=True))
    if min(more) > 0 and "-" not in formula(more) and formula(more) != UNKNOWN:
        return OPEN, f"{reason}; {formula(more)} may come from elsewhere"
    # a mistake that anybody made runs at the network's own sizes, or writes D where the readout's width belongs
    wants_hidden = "D" in formula(wanted) or known_wanted[0] == networks[0].sizes["hidden_dim"]
    if wanted[0] != given[0] and not (wants_hidden and len(set(given)) > 1):
        return OPEN, f"{reason}; they differ at its own sizes too, so it may be fed by something else"
    return DIFFERS, reason


def _spell(widths: tuple[int | None, ...], formula: Callable[[tuple[int | None, ...]], str]) -> str:
    return str(list(widths)) if formula(widths) == UNKNOWN else formula(widths)

"""``regplug.rank``: checks what the user gave, and runs the ranking."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from regplug.bundle.export import export
from regplug.commands.rank.checked_samples import checked_samples
from regplug.commands.rank.choices import DEFAULT_RUNTIMES, RUNTIMES
from regplug.commands.rank.entrants import Entrant, Plan, Sources, digest_of, fit_on_all
from regplug.commands.rank.heads import Head
from regplug.commands.rank.probe import EPOCHS
from regplug.commands.rank.ranking import Ranking
from regplug.commands.rank.reading.samples import Samples
from regplug.commands.rank.run import names_of, rank_sources
from regplug.commands.rank.score_files import scores_folder
from regplug.errors import NameLookupError, SpecError
from regplug.registry.default import default_registry
from regplug.registry.integers import is_positive_int
from regplug.registry.references import Reference
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec

Strategy: TypeAlias = "str | tuple[str, Mapping[str, Any]] | ReadoutSpec"
# what is ranked if the user names nothing: one of each kind, those that are installed
DEFAULT = ("mean", "max", "mean-std", "pool", "concat", "gated-abmil", "simpool", "attention")


def rank(
    samples: Samples,
    strategies: Sequence[Strategy] | None = None,
    *,
    film: Reference | None = None,
    film_options: Mapping[str, Any] | None = None,
    seeds: int = 3,
    folds: int = 5,
    epochs: int = EPOCHS,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    margin: float | None = None,
    jobs: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    bundle: str | os.PathLike[str] | None = None,
    force: bool = False,
    registry: Registry | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Ranking:
    """Train each strategy as a probe on the same samples, and compare their scores.

    A probe is the readout and a head, trained together by AdamW on raw registers, with the learning rate chosen among
    the training samples. It is scored on samples that it was not trained on, for several splits into folds.
    docs/evidence.md says how to read the result. Each training's scores are kept in the cache folder: an interrupted
    ranking goes on where it ended.

    Args:
        samples: From ``read_samples``, or made of tensors.
        strategies: Names, names with options, or specs of the samples' sizes; eight of them when None.
        film: A FiLM generator, as ``pair`` takes it: then the head is an MLP over the mean of the patches that its
            pairs modulate. None for a linear head on the vector.
        film_options: The generator's options, without its width.
        seeds: Splits, each with other initial weights; with fewer than three, intervals hardly know of trainings.
        folds: Parts of a split.
        epochs: Passes over the training samples.
        runtimes: Where a call with 64 samples is timed: ``eager``, ``torchscript``, ``aotinductor``.
        margin: A difference of scores that does not matter: 0.01 for one point of accuracy.
        jobs: Processes; as many as cores when None.
        cache: The cache folder; regplug's own when None.
        bundle: Where to write the winner, trained on all samples; nothing is written without a winner.
        force: Replace an existing bundle.
        registry: Where names are looked up; the installed plugins when None. With another one, all is trained in this
            process.
        progress: Called with each step.

    Raises:
        SpecError: An argument, or the samples, cannot be used.
        NameLookupError: A strategy is not installed.
        ExportError: The bundle cannot be written.
    """
    for word, value, least in (("seeds", seeds, 1), ("folds", folds, 2), ("epochs", epochs, 1)):
        if not is_positive_int(value) or value < least:
            raise SpecError(f"rank: {word}: expected an integer of at least {least}, got {value!r}.")
    if jobs is not None and not is_positive_int(jobs):
        raise SpecError(f"rank: jobs: expected a positive integer, got {jobs!r}.")
    if margin is not None and not (isinstance(margin, (int, float)) and 0 < margin < math.inf):
        raise SpecError(f"rank: margin: expected a positive number, got {margin!r}.")
    if wrong := [one for one in runtimes if one not in RUNTIMES]:
        raise SpecError(f"rank: runtimes: expected some of {', '.join(RUNTIMES)}, got {wrong[0]!r}.")
    samples = checked_samples(samples, folds)
    own = default_registry() if registry is None else registry
    specs = _specs(samples, strategies, own)
    head = Head(film, film_options, registry)
    sources = _sources(samples, head)
    plan = Plan(head, seeds, folds, epochs)
    found = rank_sources(
        specs,
        sources,
        plan,
        facts=samples.facts,
        runtimes=tuple(dict.fromkeys(runtimes)),
        margin=margin,
        jobs=jobs,
        results=scores_folder(cache),
        registry=own,
        progress=progress,
    )
    if bundle is not None and found.winner is not None:
        progress(f"training {found.winner} on all samples")
        spec = dict(zip(names_of(specs), specs, strict=True))[found.winner]
        readout = fit_on_all(Entrant(found.winner, spec), plan, sources).readout
        export(spec, readout, bundle, force=force, registry=own, progress=progress)
    return found


def _specs(samples: Samples, strategies: Sequence[Strategy] | None, registry: Registry) -> list[ReadoutSpec]:
    _, count, width = samples.registers.shape
    if strategies is None:
        return [registry.resolve(name, num_registers=count, hidden_dim=width) for name in _installed(registry)]
    if isinstance(strategies, str) or not strategies:
        raise SpecError(f"rank: strategies: expected a list of at least one strategy, got {strategies!r}.")
    specs = []
    for one in strategies:
        if isinstance(one, ReadoutSpec):
            if (one.num_registers, one.hidden_dim) not in ((count, width), (None, width)):
                got = f"num_registers={one.num_registers}, hidden_dim={one.hidden_dim}"
                raise SpecError(f"strategy {one.entry.name!r}: expected a spec of R={count}, D={width}, got {got}.")
            specs.append(one)
            continue
        name, options = (one, {}) if isinstance(one, str) else one
        specs.append(registry.resolve(name, num_registers=count, hidden_dim=width, **options))
    return specs


def _installed(registry: Registry) -> list[str]:
    names = []
    for name in DEFAULT:
        try:
            registry.readout_entry(name)
        except NameLookupError:
            continue
        names.append(name)
    return names


def _sources(samples: Samples, head: Head) -> Sources:
    if head.film is not None and "patches" not in samples.references:
        raise SpecError("rank: film: expected samples with a mean of patches, which a FiLM head modulates, got none.")
    tokens = {"registers": samples.registers, **{name: one.unsqueeze(1) for name, one in samples.references.items()}}
    outputs = samples.targets.shape[1] if samples.classes is None else len(samples.classes)
    targets = samples.targets
    if samples.classes is None:  # scores do not depend on scale and origin, but float32 would on a large origin
        targets = ((targets - targets.mean(0)) / targets.std(0)).float()
    return Sources(tokens, targets, outputs, samples.groups, digest_of(tokens, targets, samples.groups))

"""Checks samples that a user made of tensors, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from regplug.commands.rank.choices import CLASSIFICATION, REGRESSION
from regplug.commands.rank.reading.samples import Samples
from regplug.commands.rank.reading.targets import group_numbers, make_targets
from regplug.errors import SpecError

OWNER = "samples"
REFERENCES = ("cls", "patches")
ROWS = 4096


def checked_samples(samples: Samples, folds: int) -> Samples:
    """The samples, their registers and references as float32.

    Args:
        samples: From ``read_samples``, or made by hand.
        folds: Parts of a split.

    Raises:
        SpecError: Shapes, dtypes or numbers do not fit, or there are too few samples, groups or samples of a class.
    """
    if not isinstance(samples, Samples):
        raise SpecError(f"{OWNER}: expected regplug.Samples, got {type(samples).__name__}; use regplug.read_samples.")
    registers = _tokens("registers", samples.registers, 3)
    count, _, width = registers.shape
    if not isinstance(samples.references, Mapping) or set(samples.references) - set(REFERENCES):
        got = list(samples.references) if isinstance(samples.references, Mapping) else samples.references
        raise SpecError(
            f"{OWNER}: references: expected a mapping with {' and '.join(REFERENCES)} at most, got {got!r}."
        )
    references = {name: _tokens(name, one, 2) for name, one in samples.references.items()}
    for name, one in references.items():
        if list(one.shape) != [count, width]:
            raise SpecError(f"{OWNER}: {name}: expected [{count}, {width}], got {list(one.shape)}.")
    groups = _groups(samples.groups, count)
    return replace(
        samples,
        registers=registers,
        references=references,
        targets=_targets(samples, count, folds, groups),
        groups=groups,
    )


def _tokens(name: str, given: object, rank: int) -> Tensor:
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.dim() != rank or not given.numel():
        shape = "[n, R, D]" if rank == 3 else "[n, D]"
        got = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise SpecError(f"{OWNER}: {name}: expected a floating-point tensor {shape}, got {got}.")
    given = given.detach().cpu()
    for start in range(0, len(given), ROWS):
        finite = given[start : start + ROWS].flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            row = start + int((~finite).nonzero()[0])
            raise SpecError(f"{OWNER}: {name}: expected finite numbers, got NaN or infinity in sample {row}.")
    return given.float()


def _targets(samples: Samples, count: int, folds: int, groups: Tensor | None) -> Tensor:
    targets, classes = samples.targets, samples.classes
    if not isinstance(targets, Tensor) or targets.shape[:1] != (count,):
        got = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise SpecError(f"{OWNER}: targets: expected a tensor [{count}] or [{count}, K], got {got}.")
    if classes is None:
        if not targets.is_floating_point():
            raise SpecError(
                f"{OWNER}: targets: expected floats without classes, got {targets.dtype}; name the classes."
            )
        return make_targets(OWNER, targets, REGRESSION, folds, None, groups).values
    if targets.is_floating_point() or targets.dim() != 1:
        raise SpecError(f"{OWNER}: targets: expected integers [{count}] with classes, got {targets.dtype}.")
    make_targets(OWNER, targets, CLASSIFICATION, folds, None, groups)
    if int(targets.min()) < 0 or int(targets.max()) >= len(classes):
        ends = f"{int(targets.min())} to {int(targets.max())}"
        raise SpecError(f"{OWNER}: targets: expected 0 to {len(classes) - 1}, an index of the classes, got {ends}.")
    return targets.detach().cpu().long()


def _groups(groups: object, count: int) -> Tensor | None:
    if groups is None:
        return None
    if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.dim() != 1:
        got = f"{groups.dtype} {list(groups.shape)}" if isinstance(groups, Tensor) else type(groups).__name__
        raise SpecError(f"{OWNER}: groups: expected integers [{count}], got {got}.")
    return group_numbers(OWNER, groups, count)

"""What is ranked: strategies on the registers, and single vectors of the backbone for reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from regplug.commands.rank import probe
from regplug.commands.rank.heads import Head
from regplug.commands.rank.probe import Data, Fitted, Scored
from regplug.commands.rank.source_code import code_of
from regplug.commands.rank.splits import folds_of
from regplug.registry.layout import REGISTERS
from regplug.registry.spec import ReadoutSpec
from regplug.registry.version import own_version


@dataclass(frozen=True)
class Entrant:
    """A row of the ranking.

    Args:
        name: Its name in tables.
        spec: How the vector is read; None for a constant prediction.
        source: Which tokens are read: ``registers``, ``cls`` or ``patches``, their mean.
    """

    name: str
    spec: ReadoutSpec | None
    source: str = REGISTERS

    @property
    def width(self) -> int:
        """Of the vector."""
        return 1 if self.spec is None else self.spec.cond_dim


@dataclass(frozen=True)
class Plan:
    """How every entrant is trained and scored.

    Args:
        head: What predicts from the vector.
        seeds: How many splits, each with other initial weights and orders.
        folds: Parts of a split.
        epochs: Passes over the training samples.
    """

    head: Head
    seeds: int = 3
    folds: int = 5
    epochs: int = probe.EPOCHS

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, with the constants of the training."""
        return {
            **self.head.as_dict(),
            "seeds": self.seeds,
            "folds": self.folds,
            "epochs": self.epochs,
            "optimizer": "AdamW",
            "learning_rates": list(probe.RATES),
            "weight_decay": probe.WEIGHT_DECAY,
            "batch": [probe.LEAST_BATCH, probe.LARGEST_BATCH],
        }


@dataclass(frozen=True)
class Task:
    """One training: an entrant in one fold of one split."""

    entrant: Entrant
    seed: int
    fold: int


@dataclass(frozen=True)
class Sources:
    """The tensors that tasks are run on.

    Args:
        tokens: ``registers`` ``[n, R, D]``, and ``cls`` and ``patches`` ``[n, 1, D]`` if the backbone has them.
        targets: As for ``Data``.
        outputs: As for ``Data``.
        groups: As for ``Data``.
        digest: Of all of them.
    """

    tokens: Mapping[str, Tensor]
    targets: Tensor
    outputs: int
    groups: Tensor | None
    digest: str

    def data(self, source: str, head: Head) -> Data:
        """What a probe of these tokens is trained on."""
        patches = self.tokens["patches"][:, 0] if head.film is not None else None
        return Data(self.tokens[source], patches, self.targets, self.outputs, self.groups)


def digest_of(tokens: Mapping[str, Tensor], targets: Tensor, groups: Tensor | None) -> str:
    """A digest of what probes are trained on."""
    found = sha256()
    named = {**tokens, "targets": targets, **({} if groups is None else {"groups": groups})}
    for name, tensor in named.items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        for part in tensor.split(4096):
            found.update(part.contiguous().numpy())
    return found.hexdigest()


def key_of(task: Task, plan: Plan, sources: Sources) -> str | None:
    """A digest of all that decides a task's result; None if that is not known, as for a class inside a function."""
    spec = task.entrant.spec
    code = [code_of(f"strategy {spec.entry.name!r}", spec.entry.build)] if spec is not None else []
    code += [code_of("FiLM generator", plan.head.code)] if plan.head.code is not None else []
    if None in code:
        return None
    provenance = spec and spec.entry.provenance
    what = {
        "samples": sources.digest,
        "source": task.entrant.source,
        "spec": spec and spec.as_dict(),
        "version": provenance and provenance.version,
        "code": code,
        "regplug": own_version(),
        "plan": plan.as_dict(),
        "seed": task.seed,
        "fold": task.fold,
        "torch": torch.__version__,
    }
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def run(task: Task, plan: Plan, sources: Sources) -> tuple[Scored, Tensor]:
    """Train and score an entrant in one fold; the scores, and the places of the samples that were scored."""
    fold = folds_of(sources.targets, sources.groups, plan.folds, task.seed)
    train, test = (fold != task.fold).nonzero()[:, 0], (fold == task.fold).nonzero()[:, 0]
    data = sources.data(task.entrant.source, plan.head)
    if task.entrant.spec is None:
        return Scored(probe.constant_scores(data, test, train)), test
    seed = task.seed * plan.folds + task.fold
    fitted = probe.fit(task.entrant.spec, plan.head, data, train, seed, plan.epochs)
    return probe.score(fitted, data, test, train, seed), test


def fit_on_all(entrant: Entrant, plan: Plan, sources: Sources) -> Fitted:
    """The readout, trained as in the ranking, on all samples."""
    if entrant.spec is None:
        raise ValueError("a constant has no readout")
    everything = torch.arange(len(sources.targets))
    return probe.fit(entrant.spec, plan.head, sources.data(entrant.source, plan.head), everything, 0, plan.epochs)

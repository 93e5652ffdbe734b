"""Trains one readout with a head on some samples, and scores it on others; the same way for every strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regplug.commands.rank.heads import Head
from regplug.commands.rank.splits import derangement, inner_split
from regplug.errors import SpecError
from regplug.nn.weight_decay import param_groups
from regplug.registry.spec import ReadoutSpec

RATES = (2e-3, 1e-2, 5e-2)  # AdamW's learning rates to choose from
EPOCHS = 30
SEARCH_SHARE = 3  # a rate is chosen by a training of a third of the epochs
LARGEST_BATCH, LEAST_BATCH = 256, 16
LEAST_STEPS = 32  # for an epoch: a small data set gets smaller batches, and more passes
WEIGHT_DECAY = 0.01
WARM_UP = 0.1
EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class Data:
    """What probes are trained on.

    Args:
        registers: ``[n, R, D]``, float32.
        patches: ``[n, D]``, for a FiLM head; None without.
        targets: ``[n]`` of integers for classes, ``[n, K]`` for numbers.
        outputs: Classes, or K.
        groups: ``[n]``, or None.
    """

    registers: Tensor
    patches: Tensor | None
    targets: Tensor
    outputs: int
    groups: Tensor | None = None

    @property
    def is_classes(self) -> bool:
        """Whether classes are predicted, not numbers."""
        return not self.targets.is_floating_point()


@dataclass(frozen=True)
class Fitted:
    """A trained probe.

    Args:
        readout: In eval mode.
        head: In eval mode.
        rate: The learning rate that was chosen.
        center: Of the numbers to predict, over the training samples; None for classes.
        scale: Likewise their deviation.
    """

    readout: nn.Module
    head: nn.Module
    rate: float
    center: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True)
class Scored:
    """The scores of a fold's test samples.

    Args:
        scores: ``[m]``: 1 for the right class and 0 for another one; or, for numbers, one minus the squared error in
            units of the numbers' variance, whose mean is R^2.
        controls: The same with other registers in place of the sample's own.
        rate: The learning rate that was chosen.
    """

    scores: Tensor
    controls: Mapping[str, Tensor] = field(default_factory=dict)
    rate: float = math.nan


def fit(spec: ReadoutSpec, head: Head, data: Data, train: Tensor, seed: int, epochs: int = EPOCHS) -> Fitted:
    """Train a new readout and head: AdamW, one cycle, the learning rate chosen among the training samples.

    Args:
        spec: The readout.
        head: The head.
        data: The samples.
        train: The places of the training samples.
        seed: Of initial weights, order and inner split.
        epochs: Passes over the training samples.

    Raises:
        SpecError: No learning rate gave a finite loss.
    """
    fitted_to, chosen_by = inner_split(train, data.targets, data.groups, seed)
    losses: dict[float, float] = {}
    for rate in RATES:
        trained = _train(spec, head, data, fitted_to, seed, max(1, epochs // SEARCH_SHARE), rate)
        losses[rate] = _loss(trained, data, chosen_by)
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        raise SpecError(
            f"strategy {spec.entry.name!r}: expected a finite loss, got none at {', '.join(map(str, RATES))}."
        )
    return _train(spec, head, data, train, seed, epochs, min(finite, key=finite.__getitem__))


def score(fitted: Fitted, data: Data, test: Tensor, train: Tensor, seed: int) -> Scored:
    """Score a probe on test samples, with their own registers and with others.

    Args:
        fitted: From ``fit``.
        data: The samples.
        test: The places of the test samples.
        train: The places of the training samples; a control is the mean of their registers.
        seed: Of the other samples' order.
    """
    other = test[derangement(len(test), seed)]
    mean = _mean_of(data.registers, train)
    sources = {
        "": lambda part: data.registers[test[part]],
        "swapped": lambda part: data.registers[other[part]],
        "mean": lambda part: mean.expand(len(test[part]), -1, -1),
        "zeros": lambda part: torch.zeros_like(mean).expand(len(test[part]), -1, -1),
    }
    found = {name: _scores(fitted, data, test, source) for name, source in sources.items()}
    if not bool(found[""].isfinite().all()):
        raise SpecError("scores: expected finite numbers, got NaN or infinity.")
    return Scored(found.pop(""), found, fitted.rate)


def constant_scores(data: Data, test: Tensor, train: Tensor) -> Tensor:
    """The scores of the largest class, or of the mean, of the training samples."""
    if data.is_classes:
        return (data.targets[test] == data.targets[train].bincount().argmax()).double()
    return _regression_scores(data, test, data.targets[train].mean(0).expand(len(test), -1))


def _train(spec: ReadoutSpec, head: Head, data: Data, train: Tensor, seed: int, epochs: int, rate: float) -> Fitted:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        readout = spec.build().float()
        probe = nn.ModuleList([readout, head.build(spec, data.outputs)]).train()
        center, scale = _scale_of(data, train)
        batch = min(LARGEST_BATCH, max(LEAST_BATCH, len(train) // LEAST_STEPS))
        total = epochs * max(LEAST_STEPS, len(train) // batch)
        optimizer = torch.optim.AdamW(param_groups(probe, weight_decay=WEIGHT_DECAY), lr=rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_share_of_rate, total=total))
        for places in islice(_batches(train, batch), total):
            optimizer.zero_grad()
            given = None if data.patches is None else data.patches[places]
            predicted = probe[1](readout(data.registers[places]), given)
            wanted = data.targets[places]
            if center is None or scale is None:
                loss = F.cross_entropy(predicted, wanted)
            else:
                loss = F.mse_loss(predicted, (wanted - center) / scale)
            loss.backward()
            optimizer.step()
            schedule.step()
    return Fitted(readout.eval(), probe[1].eval(), rate, center, scale)


def _batches(train: Tensor, batch: int) -> Iterator[Tensor]:
    """Batches without end, in a new order each time; the shorter one at the end of an order is left out."""
    batch = min(batch, len(train))
    while True:
        yield from train[torch.randperm(len(train))].split(batch)[: len(train) // batch]


def _share_of_rate(step: int, total: int) -> float:
    """Up in a line, then down along a cosine."""
    return min(1.0, (step + 1) / (WARM_UP * total)) * 0.5 * (1 + math.cos(math.pi * step / total))


def _scale_of(data: Data, train: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if data.is_classes:
        return None, None
    targets = data.targets[train]
    return targets.mean(0), targets.std(0).clamp(min=torch.finfo(targets.dtype).eps)


def _loss(fitted: Fitted, data: Data, places: Tensor) -> float:
    predicted = _predict(fitted, data, places, data.registers[places])
    if fitted.center is None or fitted.scale is None:
        return F.cross_entropy(predicted, data.targets[places]).item()
    return F.mse_loss(predicted, (data.targets[places] - fitted.center) / fitted.scale).item()


def _scores(fitted: Fitted, data: Data, test: Tensor, registers_of: Callable[[slice], Tensor]) -> Tensor:
    parts = [slice(start, start + EVALUATION_BATCH) for start in range(0, len(test), EVALUATION_BATCH)]
    predicted = torch.cat([_predict(fitted, data, test[part], registers_of(part)) for part in parts])
    if fitted.center is None or fitted.scale is None:
        return (predicted.argmax(1) == data.targets[test]).double()
    return _regression_scores(data, test, predicted * fitted.scale + fitted.center)


def _regression_scores(data: Data, test: Tensor, predicted: Tensor) -> Tensor:
    """One minus the squared error in units of the variance over all samples, which is fixed: a mean over samples."""
    variance = data.targets.double().var(0, correction=0)
    return (1 - (data.targets[test].double() - predicted.double()).square() / variance).mean(1)


def _mean_of(registers: Tensor, places: Tensor) -> Tensor:
    """The mean registers ``[1, R, D]``, a batch at a time: the registers may be a file."""
    total = torch.zeros(registers.shape[1:], dtype=torch.float64)
    for part in places.split(EVALUATION_BATCH):
        total += registers[part].sum(0, dtype=torch.float64)
    return (total / len(places)).to(registers.dtype).unsqueeze(0)


def _predict(fitted: Fitted, data: Data, places: Tensor, registers: Tensor) -> Tensor:
    with torch.inference_mode():
        patches = None if data.patches is None else data.patches[places]
        predicted: Tensor = fitted.head(fitted.readout(registers), patches)
    return predicted

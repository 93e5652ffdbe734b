"""Records: the network that an audit runs, what it follows, and what one forward pass showed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from regplug.commands.audit.origins import Application, Break, Origin, Part, Taken
from regplug.commands.audit.vector_pieces import Cut


@dataclass
class Sources:
    """Where the conditioning of a FiLM input comes from: paths of readouts, and inputs of the network by name."""

    readouts: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)

    def add(self, origin: Origin) -> None:
        """Add what a tensor was computed from."""
        self.readouts |= origin.readouts
        self.inputs |= origin.inputs

    def names(self) -> list[str]:
        """All of them, sorted, as people read them."""
        return sorted(self.readouts | {f"input {name}" for name in self.inputs})


@dataclass(frozen=True)
class Network:
    """A network that was built, and its sizes.

    Args:
        module: The network, on the meta device.
        sizes: ``num_registers``, ``hidden_dim`` and any other size that varies.
        args: The arguments of its forward.
        kwargs: The keyword arguments of its forward.
    """

    module: nn.Module
    sizes: Mapping[str, int]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrival:
    """A conditioning tensor that reached a FiLM input: its width, its first size, where it comes from, its parts."""

    width: int
    rows: int
    origin: Origin
    parts: tuple[Part, ...] = ()


@dataclass
class Plan:
    """What is followed, as the forward pass at the network's own sizes showed it.

    Args:
        films: Paths of the FiLM inputs, each with its class and family.
        readouts: Paths of the readouts.
        declared: Paths of the modules whose class says that they are FiLM inputs.
        conditioning: Which of a FiLM input's tensors are the conditioning; filled in by the first forward pass.
        weights: The weights that take an argument of a FiLM input unchanged, each with the axis of the width.
        sources: Where the conditioning of each FiLM input comes from.
        whole: Slices that take all of a conditioning vector.
    """

    films: Mapping[str, str]
    readouts: Sequence[str]
    declared: Sequence[str]
    conditioning: dict[str, list[int]] = field(default_factory=dict)
    weights: dict[tuple[str, int], list[tuple[str, int]]] = field(default_factory=dict)
    sources: dict[str, Sources] = field(default_factory=dict)
    whole: frozenset[tuple[str, int]] = frozenset()


@dataclass
class Trace:
    """What one forward pass showed.

    Args:
        error: Why it ended early; None if it did not.
        failed_in: Paths of the modules that were running then, the innermost last.
        failed: Where the arguments of the call that raised came from, if it was a call of torch.
        readouts: Paths of the modules that turned registers ``[B, R, D]`` into ``[B, n]``.
        called: Paths of the modules that ran.
        scripted: Paths of scripted modules that took a readout's output, each with the name of its class.
        arrivals: The conditioning tensors that reached each FiLM input.
        applications: Features that were scaled or shifted.
        taken: What the weights inside the FiLM inputs took.
        breaks: Layers that a conditioning vector did not fit.
        modulating: The breaks whose output scaled or shifted features.
        slices: Slices of conditioning vectors, each with whether it takes all of it.
        cuts: Conditioning vectors that were used in pieces.
        joined: The parts of each vector that was joined.
        calls: How many torch functions ran.
        fits: How many of them ran before a vector of the network's inputs did not fit.
    """

    error: str | None = None
    failed_in: tuple[str, ...] = ()
    failed: Origin | None = None
    readouts: dict[str, None] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    scripted: dict[str, str] = field(default_factory=dict)
    arrivals: dict[str, list[Arrival]] = field(default_factory=dict)
    applications: frozenset[Application] = frozenset()
    taken: list[Taken] = field(default_factory=list)
    breaks: Sequence[Break] = ()
    modulating: frozenset[Break] = frozenset()
    slices: Mapping[tuple[str, int], bool] = field(default_factory=dict)
    cuts: Sequence[Cut] = ()
    joined: Sequence[tuple[Part, ...]] = ()
    calls: int = 0
    fits: int = 0

"""What a tensor of a forward was computed from: records, and how they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from regplug.commands.audit.tensor_trees import is_vector


@dataclass(frozen=True)
class Part:
    """One vector inside a joined one: the names of what it comes from, and its width."""

    name: str
    width: int


@dataclass(frozen=True)
class Break:
    """A weight that takes another width than the conditioning vector that reaches it has.

    Args:
        where: Path of the module that has the weight.
        wanted: The width that the weight takes.
        given: The width that reached it.
        of_registers: Whether the vector was read from registers.
        parts: What the vector was joined from, if it was.
    """

    where: str
    wanted: int
    given: int
    of_registers: bool = False
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Origin:
    """What a tensor was computed from.

    Args:
        readouts: Paths of the readouts that it comes from, or of the modules that averaged registers without one.
        inputs: Names of the network's inputs that are one vector per sample: a time step, a class, a state.
        generators: Paths of the modules that computed it from a conditioning vector, with their weights.
        arguments: FiLM inputs that it is an argument of, with the argument's position, until a weight takes it.
        broken: The layers on the way that did not fit.
        is_registers: Whether it holds the R registers.
    """

    readouts: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    generators: frozenset[str] = frozenset()
    arguments: frozenset[tuple[str, int]] = frozenset()
    broken: frozenset[Break] = frozenset()
    is_registers: bool = False

    def __or__(self, other: Origin) -> Origin:
        return Origin(
            self.readouts | other.readouts,
            self.inputs | other.inputs,
            self.generators | other.generators,
            self.arguments | other.arguments,
            self.broken | other.broken,
        )


@dataclass(frozen=True)
class Application:
    """Features that were scaled or shifted.

    Args:
        generator: Path of the module that made the scale or the shift; the weight's own name if that module did not
            run (another forward used its weight) or is the network itself.
        where: Path of the module in whose forward it happened.
    """

    generator: str
    where: str


@dataclass(frozen=True)
class Taken:
    """A weight that took an argument of a FiLM input: both widths, and the weight's name if it has one."""

    film: str
    argument: int
    wanted: int
    given: int
    weight: str | None
    axis: int


def is_inside(path: str, scope: str) -> bool:
    """Whether ``path`` is ``scope`` or inside it; everything is inside the network itself, ``""``."""
    return not scope or path == scope or path.startswith(f"{scope}.")


def merged(origins: Sequence[Origin], result: Tensor) -> Origin:
    """The origin of a result: joined vectors keep all their sources; features that meet a vector stay features."""
    if len(origins) > 1 and not is_vector(result) and not all(origin.readouts for origin in origins):
        return Origin(arguments=union(origins).arguments)
    return origins[0] if len(origins) == 1 else union(origins)


def union(origins: Sequence[Origin]) -> Origin:
    """The origins together."""
    found = Origin()
    for origin in origins:
        found |= origin
    return found

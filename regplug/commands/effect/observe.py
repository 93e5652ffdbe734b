"""One forward pass of a network, watched: its FiLM sites, what reaches them, and what they scale and shift by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regplug.commands.audit.dataflow import MULTIPLIES, Flow
from regplug.commands.audit.film_inputs import declared_films, plan_of
from regplug.commands.audit.forward import follow
from regplug.commands.audit.origins import Origin, is_inside
from regplug.commands.audit.tensor_trees import is_vector, tensors_in
from regplug.commands.audit.trace import Network, Plan, Trace
from regplug.commands.effect.subject import Subject
from regplug.registry.layout import TokenLayout

CUTS = {"split", "chunk", "tensor_split", "unbind", "split_with_sizes"}
BOUNDED = {"tanh", "sigmoid", "hardtanh", "hardsigmoid", "clamp", "clip", "softsign"}
AT_BOUND = 1e-3  # this near to its bound, a function's slope is below 0.2 % of its largest
SAMPLES_TO_MATCH = 2


@dataclass
class Modulation:
    """One call that scales or shifts features by a vector.

    Args:
        number: Which of the forward's calls that may scale or shift.
        place: Which of the call's tensors is the vector.
        film: The FiLM input that the vector comes from.
        where: Path of the module in whose forward it happens.
        scales: Whether it scales; else it shifts.
        vector: The vector, one row for each sample.
        output: Which of the FiLM input's output tensors it is; None if it is none, or if that is not known.
        result: The scaled or shifted features.
    """

    number: int
    place: int
    film: str
    where: str
    scales: bool
    vector: Tensor
    output: int | None = None
    result: Tensor | None = None


@dataclass
class Reading:
    """What one readout read in one forward pass.

    Args:
        tokens: Its input ``[B, R, D]``.
        output: Its output, one vector for each sample.
        positions: For each of its tokens, where in the whole sequence the same token is; None if not found.
        length: The length of that sequence.
    """

    tokens: Tensor | None = None
    output: Tensor | None = None
    positions: list[list[int]] | None = None
    length: int = 0


@dataclass
class Observation:
    """What a forward pass showed, with values.

    Args:
        plan: The FiLM sites and the readouts.
        trace: As audit records it.
        modulations: The calls that scale or shift features, in order.
        conditioning: The vectors that reached each FiLM site.
        readings: What each readout read.
        unused: Pieces of a generator's output that nothing uses: the FiLM site, and how many of how many.
        saturated: Functions with bounds on the way to a site: the module, and the share of numbers at a bound.
    """

    plan: Plan
    trace: Trace
    modulations: list[Modulation] = field(default_factory=list)
    conditioning: dict[str, list[Tensor]] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)
    unused: dict[str, tuple[int, int]] = field(default_factory=dict)
    saturated: dict[str, float] = field(default_factory=dict)

    def of(self, film: str) -> list[Modulation]:
        """The modulations of one FiLM site."""
        return [one for one in self.modulations if one.film == film]

    def in_all_calls(self, film: str, holds: Callable[[Modulation], bool]) -> list[Modulation]:
        """The modulations of one FiLM site for which something holds in every call of the site.

        A site that is called several times, as with guidance, may get no conditioning in some of its calls.
        """
        modulations, width = self.of(film), max(1, len(self.plan.conditioning.get(film, ())))
        calls = max(1, len(self.conditioning.get(film, ())) // width)
        of_call = len(modulations) // calls if modulations and len(modulations) % calls == 0 else 1
        keys = [(index % of_call, one.scales) for index, one in enumerate(modulations)]
        others = {key for key, one in zip(keys, modulations, strict=True) if not holds(one)}
        return [one for key, one in zip(keys, modulations, strict=True) if key not in others]


def observe(
    subject: Subject, sizes: Mapping[str, int], layout: TokenLayout | None, plan: Plan | None = None
) -> Observation:
    """Watch one forward pass.

    Args:
        subject: The network and its inputs.
        sizes: R and D, if they are known.
        layout: Where the registers sit, to find which tokens a readout reads.
        plan: What is followed; found by two more forward passes when None.
    """
    network = Network(subject.module, sizes, subject.args, subject.kwargs)

    def run(plan: Plan, watch: _Watch | None = None) -> Trace:
        subject.forget()  # a vector that a module keeps comes from nowhere in a later forward
        torch.manual_seed(subject.seed)
        return follow(network, plan, watch)

    if plan is None:
        plan = plan_of(subject.module, run(Plan({}, (), list(declared_films(subject.module)))))
        run(plan)
    watch = _Watch(plan, layout)
    handles: list[Any] = []
    for path in plan.readouts:
        if (part := subject.hooked(path)) is not None:
            handles.append(part.register_forward_pre_hook(watch.enter_readout(path), with_kwargs=True))
            handles.append(part.register_forward_hook(watch.leave_readout(path)))
    for path in plan.films:
        if (part := subject.hooked(path)) is not None:
            handles.append(part.register_forward_pre_hook(watch.enter_film(path), with_kwargs=True))
            handles.append(part.register_forward_hook(watch.leave_film(path)))
    handles.append(subject.module.register_forward_hook(watch.leave_network))
    try:
        trace = run(plan, watch)
    finally:
        for handle in handles:
            handle.remove()
    found = watch.found
    found.trace = trace
    found.unused = watch.unused()
    return found


class _Watch:
    """Keeps the tensors that matter while a ``Flow`` runs."""

    def __init__(self, plan: Plan, layout: TokenLayout | None) -> None:
        self.found = Observation(plan, Trace())
        self.layout = layout
        self._pending: list[Modulation] = []
        self._sequences: list[Tensor] = []
        self._pieces: dict[int, tuple[Tensor, str]] = {}  # holds the tensors: no id is used again
        self._used: set[int] = set()
        self._outputs: dict[str, list[Tensor]] = {}
        self._is_looking = False

    # ---- calls of torch

    def called(self, name: str, operands: Sequence[Tensor], result: object, flow: Flow) -> None:
        made = list(tensors_in(result))
        if self._is_looking or not made:  # not a call of the network's, or only a size
            return
        for one in self._pending:
            one.result = made[0].detach().clone()
        self.found.modulations += self._pending
        self._pending = []
        self._used |= {id(one) for one in operands}
        if not operands:
            return
        origin = flow.origin(operands[0])
        if name in CUTS and origin is not None and origin.generators and is_vector(operands[0]):
            for generator in sorted(origin.generators)[:1]:
                film = self._film_of(generator)
                self._pieces |= {id(piece): (piece, film) for piece in made}
        is_number = operands[0].is_floating_point() and is_vector(operands[0])
        if name in BOUNDED and is_number and origin is not None and (origin.readouts or origin.inputs):
            self.found.saturated[flow.stack[-1]] = _share_at_bound(name, operands[0], made[0])
        if self.layout is not None:
            self._sequences += [one for one in made if one.dim() == 3]

    def modulated(
        self, name: str, vector: Tensor, origin: Origin, features: Tensor, operands: Sequence[Tensor], flow: Flow
    ) -> None:
        place = next(index for index, one in enumerate(operands) if one is vector)
        if any((one.number, one.place) == (flow.scaling_calls, place) for one in self._pending):
            return
        film = self._film_of(min(origin.generators))
        numbers = vector.detach().clone()
        made = Modulation(flow.scaling_calls, place, film, flow.stack[-1], name in MULTIPLIES, numbers)
        made.output = self._output_index(film, numbers)
        self._pending.append(made)

    def _film_of(self, generator: str) -> str:
        return next((film for film in self.found.plan.films if is_inside(generator, film)), generator)

    def _output_index(self, film: str, vector: Tensor) -> int | None:
        same = [
            index
            for index, one in enumerate(self._outputs.get(film, ()))
            if one.numel() == vector.numel() and torch.equal(one.flatten(), vector.flatten())
        ]
        return same[0] if len(same) == 1 else None

    def unused(self) -> dict[str, tuple[int, int]]:
        """Pieces that no call took: of each FiLM site how many, of how many."""
        lost: dict[str, tuple[int, int]] = {}
        for key, (_, film) in self._pieces.items():
            missing, total = lost.get(film, (0, 0))
            lost[film] = missing + (key not in self._used), total + 1
        return {film: numbers for film, numbers in lost.items() if numbers[0]}

    # ---- modules

    def enter_readout(self, path: str) -> Any:
        def look(args: Any, kwargs: Any) -> None:
            tokens = next((one for one in tensors_in((args, kwargs)) if one.dim() == 3), None)
            reading = self.found.readings.setdefault(path, Reading())
            if tokens is not None and reading.tokens is None:
                reading.tokens = tokens.detach().clone()
                if self.layout is not None:
                    reading.positions, reading.length = self._positions(tokens)

        return self._hook(look)

    def leave_readout(self, path: str) -> Any:
        def look(args: Any, output: Any) -> None:
            reading = self.found.readings.setdefault(path, Reading())
            vectors = [one for one in tensors_in(output) if one.is_floating_point()]
            if vectors and reading.output is None:
                reading.output = vectors[0].detach().clone()

        return self._hook(look)

    def enter_film(self, path: str) -> Any:
        def look(args: Any, kwargs: Any) -> None:
            tensors = list(tensors_in((args, kwargs)))
            chosen = [i for i in self.found.plan.conditioning.get(path, ()) if i < len(tensors)]
            kept = self.found.conditioning.setdefault(path, [])
            kept += [tensors[index].detach().clone() for index in chosen]

        return self._hook(look)

    def leave_film(self, path: str) -> Any:
        def look(args: Any, output: Any) -> None:
            self._outputs[path] = [one.detach().clone() for one in tensors_in(output)]

        return self._hook(look)

    def leave_network(self, module: nn.Module, args: Any, output: Any) -> None:
        """Pieces that the network returns are used."""
        self._used |= {id(one) for one in tensors_in(output)}

    def _hook(self, look: Callable[[Any, Any], None]) -> Callable[..., None]:
        """A hook during which calls of torch are not the network's."""

        def hook(module: nn.Module, first: Any, second: Any) -> None:
            self._is_looking = True
            try:
                look(first, second)
            finally:
                self._is_looking = False

        return hook

    def _positions(self, tokens: Tensor) -> tuple[list[list[int]] | None, int]:
        """Where the tokens are in the latest longer sequence that has them all."""
        few = tokens[:SAMPLES_TO_MATCH]
        for sequence in reversed(self._sequences):
            fits = sequence.shape[0] == tokens.shape[0] and sequence.shape[2] == tokens.shape[2]
            if not fits or sequence.shape[1] <= tokens.shape[1]:
                continue
            part = sequence[:SAMPLES_TO_MATCH]
            rows = [torch.eq(part, few[:, r : r + 1]).all(dim=2).all(dim=0) for r in range(few.shape[1])]
            if all(bool(row.any()) for row in rows):
                return [row.nonzero().flatten().tolist() for row in rows], int(sequence.shape[1])
        return None, 0


def _share_at_bound(name: str, given: Tensor, result: Tensor) -> float:
    """The share of numbers at a bound of a bounded function."""
    if name in ("clamp", "clip", "hardtanh"):
        at = result != given
    elif name in ("sigmoid", "hardsigmoid"):
        at = (result < AT_BOUND) | (result > 1 - AT_BOUND)
    else:
        at = result.abs() > 1 - AT_BOUND
    return float(at.double().mean())

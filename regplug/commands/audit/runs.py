"""Builds a network at several sizes, and follows a forward pass at each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.nn.parameter import is_lazy

from regplug.commands.audit.film_inputs import class_at, declared_films, plan_of
from regplug.commands.audit.forward import follow
from regplug.commands.audit.inputs import Inputs, describe_parameters, find_inputs
from regplug.commands.audit.meta_device import build_on_meta
from regplug.commands.audit.trace import Network, Plan, Trace
from regplug.errors import SpecError, one_line
from regplug.nn.pairing import FilmWidthError
from regplug.registry.options import bind

MAX_CALLS = 2_000_000  # of torch functions, in all forward passes together: a few minutes
# torch has no exception class for a wrong width: what its linear layers say on the CPU and on the meta device
MISFIT_IN_TORCH = re.compile(r"shapes cannot be multiplied|same reduction dim")


@dataclass(frozen=True)
class Run:
    """A forward pass at some sizes, and what it showed."""

    sizes: Mapping[str, int]
    trace: Trace


@dataclass(frozen=True)
class Refusal:
    """Sizes at which the network was not built, or its forward raised, and why.

    Args:
        sizes: The sizes.
        error: The reason, on one line.
        word: The size that was changed alone; None if several were.
        films: The FiLM inputs that the error is about: it came from them, or on the way to them.
    """

    sizes: Mapping[str, int]
    error: str
    word: str | None
    films: tuple[str, ...]


class Runs:
    """Builds one network at several sizes, and follows a forward pass at each.

    Args:
        owner: The network, for messages.
        build: Its constructor.
        named: The sizes that the constructor takes.
        options: Its other arguments.
        words: The constructor's own names for sizes, each with ours.
    """

    def __init__(
        self,
        owner: str,
        build: Callable[..., Any],
        named: Sequence[str],
        options: Mapping[str, Any],
        words: Mapping[str, str],
    ) -> None:
        self.owner, self.build, self.named, self.options, self.words = owner, build, named, options, words
        self.device = "meta"
        self.guessed = False
        self.calls = 0
        self.inputs: Inputs = lambda sizes: ((), {})
        self.plan = Plan({}, (), ())
        self._classes: dict[str, str] = {}  # of the FiLM inputs

    def make(self, at: Mapping[str, int]) -> Network:
        """Build the network at these sizes."""
        arguments = bind(self.owner, self.build, {w: at[w] for w in self.named}, self.options, self.words)
        module, self.device = build_on_meta(self.owner, self.build, arguments)
        return Network(module, at)

    def run_first(
        self, at: Mapping[str, int], inputs: Inputs | None, shape: Sequence[int] | None
    ) -> tuple[Network, Trace]:
        """Find inputs that work, the readouts and the FiLM inputs; then follow a forward pass to the FiLM inputs.

        Args:
            at: The network's own sizes.
            inputs: What the forward takes; found by trying when None.
            shape: ``(C, H, W)`` of its images, for trying.
        """
        network = self.make(at)
        self.plan = Plan({}, (), list(declared_films(network.module)))
        self.guessed = inputs is None
        tried = self._try_inputs(network, at, inputs, shape)
        # a vector of another width that does not fit shows a wrong guess; one made of registers, a wrong network
        fitting = [one for one in tried if one[1].error is None and all(cut.of_registers for cut in one[1].breaks)]
        if not fitting and self.guessed:
            furthest = max((trace for _, trace in tried), key=lambda trace: trace.fits, default=Trace())
            error = furthest.error or "a layer takes another width"
            takes = describe_parameters(network.module)
            hint = f" (no inputs that were tried fit forward({takes}): use --input)" if takes else ""
            failed = Trace(error=error + hint)
            self._set_plan(network, failed)
            return network, failed
        self.inputs, best = min(fitting or tried, key=lambda one: len(one[1].breaks))
        self._set_plan(network, best)
        network = self.make(at)  # a forward may have cached what it made
        args, kwargs = self.inputs(at)
        network = replace(network, args=args, kwargs=kwargs)
        trace = follow(network, self.plan)
        self.plan.whole = frozenset(key for key, is_whole in trace.slices.items() if is_whole)
        self.calls += trace.calls
        self._note_weights(network, trace)
        return network, trace

    def run(self, at: Mapping[str, int], word: str | None) -> Run | Refusal:
        """A forward pass at other sizes, or why there is none."""
        try:
            network = self.make(at)
            args, kwargs = self.inputs(at)
        except SpecError as error:
            return Refusal(at, one_line(error.__cause__ or error), word, tuple(self._refused_by(error)))
        trace = follow(replace(network, args=args, kwargs=kwargs), self.plan)
        self.calls += trace.calls
        if trace.error is None:
            return Run(at, trace)
        return Refusal(at, trace.error, word, tuple(self._stopped(trace)))

    def _try_inputs(
        self, network: Network, at: Mapping[str, int], inputs: Inputs | None, shape: Sequence[int] | None
    ) -> list[tuple[Inputs, Trace]]:
        """The inputs that were tried, each with its forward pass."""
        tried: list[tuple[Inputs, Trace]] = []

        def attempt(made: Inputs) -> int | None:
            # lazy weights keep the widths of the first try
            fresh = self.make(at) if any(map(is_lazy, network.module.parameters())) else network
            args, kwargs = made(at)
            trace = follow(replace(fresh, args=args, kwargs=kwargs), self.plan)
            tried.append((made, trace))
            self.calls += trace.calls
            if self.calls > MAX_CALLS:
                return None
            return trace.fits if trace.error is not None or trace.breaks else None

        if inputs is None:
            find_inputs(network.module, at, shape, attempt)
        else:
            attempt(inputs)
        return tried

    def _set_plan(self, network: Network, trace: Trace) -> None:
        self.plan = plan_of(network.module, trace)
        self._classes = {path: class_at(network.module, path) for path in self.plan.films}

    def _note_weights(self, network: Network, trace: Trace) -> None:
        """Add to the plan the weights that take a FiLM input's argument unchanged."""
        parameters = dict(network.module.named_parameters())
        for one in trace.taken:
            widths = [arrival.width for arrival in trace.arrivals.get(one.film, ())]
            is_whole = one.weight in parameters and parameters[one.weight].shape[one.axis] == one.wanted
            if is_whole and one.given in widths and one.weight is not None:
                places = self.plan.weights.setdefault((one.film, one.argument), [])
                places.append((one.weight, one.axis))

    def _refused_by(self, error: SpecError) -> list[str]:
        """The FiLM inputs that made the constructor refuse its sizes; none for another reason."""
        films = list(self.plan.films)
        for cause in _causes(error):
            if isinstance(cause, FilmWidthError):
                return [film for film in films if self._classes[film] == cause.film] or films
            if MISFIT_IN_TORCH.search(one_line(cause)):
                return films
        return []

    def _stopped(self, trace: Trace) -> list[str]:
        """The FiLM inputs in which a forward raised, or on the way to which it did."""
        films = [film for film in self.plan.films if film in trace.failed_in]
        readouts = {path for path in self.plan.readouts if path in trace.failed_in}
        if trace.failed is not None:
            readouts |= trace.failed.readouts
        for film, sources in self.plan.sources.items():
            if readouts & sources.readouts and film not in films:
                films.append(film)
        return films


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""Follows tensors through a forward pass on the meta device, from registers and inputs to the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regplug.commands.audit.joined_parts import JoinedParts
from regplug.commands.audit.origins import Application, Break, Origin, Taken, is_inside, merged, union
from regplug.commands.audit.projections import Projection, find_projection
from regplug.commands.audit.tensor_trees import is_vector, on_one_device, tensors_in
from regplug.commands.audit.vector_pieces import VectorPieces
from regplug.errors import SpecError

MAX_CALLS = 200_000  # of torch functions in one forward pass
SLICES = {"__getitem__", "narrow"}
MULTIPLIES = {"mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__", "addcmul", "lerp", "einsum"}
MODULATES = MULTIPLIES | {"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__"}
JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack"}


class Watcher(Protocol):
    """Gets the tensors that a ``Flow`` sees, with their values."""

    def called(self, name: str, operands: Sequence[Tensor], result: object, flow: Flow) -> None:
        """A torch function of this name was called with tensors that come from the network's inputs."""

    def modulated(
        self, name: str, vector: Tensor, origin: Origin, features: Tensor, operands: Sequence[Tensor], flow: Flow
    ) -> None:
        """Features are being scaled or shifted by a vector."""


class Flow(TorchFunctionMode):
    """Records for each tensor what it was computed from, while a forward pass runs.

    A layer that a conditioning vector does not fit is recorded as a break, and the forward continues as if it had
    fitted, so that one pass finds all such layers. Any other error is raised as usual.

    Args:
        network: The network; its weights are named.
        num_registers: R.
        hidden_dim: D.
        whole: Slices that took all of a conditioning vector at the network's own sizes.
        watch: Gets the tensors of each call.
    """

    def __init__(
        self,
        network: nn.Module,
        num_registers: int,
        hidden_dim: int,
        whole: frozenset[tuple[str, int]] = frozenset(),
        watch: Watcher | None = None,
    ) -> None:
        super().__init__()
        self.watch = watch
        self.scaling_calls = 0  # calls that may scale or shift, so that another forward finds the same ones by number
        self.network = network
        self.num_registers, self.hidden_dim = num_registers, hidden_dim
        self.stack: list[str] = [""]  # paths of the modules that are running
        self.applications: set[Application] = set()
        self.taken: list[Taken] = []
        self.breaks: list[Break] = []
        self.modulating: set[Break] = set()  # layers that did not fit and then scaled or shifted features
        self.whole = whole
        self.slices: dict[tuple[str, int], bool] = {}  # module and number -> whether it took all
        self.pieces = VectorPieces()
        self.parts = JoinedParts(self.origin)
        self.weights: list[tuple[str, Projection, Origin]] = []  # projections of vectors, by the weight's name
        self.calls = 0
        self.fits: int | None = None  # the number of calls before an input did not fit
        self.failed: Origin | None = None  # of the arguments of the call that raised
        self._origins: dict[int, tuple[Tensor, Origin]] = {}  # holds the tensors, so that no id is used again
        self._names: dict[int, tuple[Tensor, str]] = {}

    def origin(self, tensor: Tensor) -> Origin | None:
        """What a tensor was computed from; None if no input reaches it."""
        found = self._origins.get(id(tensor))
        return None if found is None else found[1]

    def set_origin(self, tensor: Tensor, origin: Origin) -> None:
        """Record what a tensor was computed from."""
        self._origins[id(tensor)] = (tensor, origin)

    def join(self, tensors: Sequence[Tensor], result: object) -> None:
        """Give a module's output, where it is not known yet, the origin of the module's input."""
        live = [origin for one in tensors if (origin := self.origin(one)) is not None]
        for one in tensors_in(result):
            if live and self.origin(one) is None:
                self.set_origin(one, merged(live, one))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise SpecError(f"forward: expected at most {MAX_CALLS} calls of torch, got more.")
        args, kwargs = on_one_device(args), on_one_device(kwargs or {})
        operands = list(tensors_in((args, kwargs)))
        live = [one for one in operands if id(one) in self._origins]
        self.scaling_calls += getattr(func, "__name__", "") in MODULATES
        self.pieces.use(live)
        if not live:
            result = func(*args, **kwargs)
            self._name_views(operands, result)
            return result
        name = getattr(func, "__name__", "")
        projection = find_projection(name, args, kwargs, lambda one: id(one) in self._origins)
        misfit = None
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.failed = union([origin for one in live if (origin := self.origin(one)) is not None])
            if projection is None or not self._may_repair(projection):
                raise
            origin = self.origin(projection.tensor) or Origin()
            parts = self.parts.of(projection.tensor)
            misfit = Break(self._owner(projection), projection.wanted, projection.given, bool(origin.readouts), parts)
            args, kwargs = projection.repaired(args, kwargs)
            result = func(*args, **kwargs)
            self.failed = None
            self.breaks.append(misfit)
            if self.fits is None and not misfit.of_registers:
                self.fits = self.calls
        if projection is not None:
            self._take(projection, misfit, result)
        elif name == "__setitem__":
            self.set_origin(args[0], merged([o for one in live if (o := self.origin(one)) is not None], args[0]))
        else:
            self._compute(name, operands, live, result)
        self.parts.record(name, args, kwargs, live, result)
        if self.watch is not None:
            self.watch.called(name, operands, result, self)
        return result

    # ---- weights

    def _name_views(self, operands: Sequence[Tensor], result: object) -> None:
        """A view or a transpose of a weight has the weight's name."""
        if len(operands) == 1 and isinstance(result, Tensor) and (name := self._name(operands[0])):
            self._names.setdefault(id(result), (result, name))

    def _name(self, weight: Tensor) -> str | None:
        if id(weight) not in self._names and isinstance(weight, nn.Parameter):  # lazy ones appear in the forward
            for name, parameter in self.network.named_parameters():
                self._names[id(parameter)] = (parameter, name)
        found = self._names.get(id(weight))
        return None if found is None else found[1]

    def _owner(self, projection: Projection) -> str:
        """The module that has the weight; the weight's name if that is the network itself."""
        name = None if projection.weight is None else self._name(projection.weight)
        return self.stack[-1] if name is None else name.rpartition(".")[0] or name

    def _may_repair(self, projection: Projection) -> bool:
        if projection.wanted == projection.given:
            return False
        origin = self.origin(projection.tensor) or Origin()
        return is_vector(projection.tensor) or bool(origin.readouts or origin.arguments)

    def _take(self, projection: Projection, misfit: Break | None, result: object) -> None:
        origin = self.origin(projection.tensor) or Origin()
        owner = self._owner(projection)
        name = None if projection.weight is None else self._name(projection.weight)
        for film, argument in origin.arguments:
            if is_inside(owner, film) or any(is_inside(path, film) for path in self.stack):
                exact = name if isinstance(projection.weight, nn.Parameter) else None
                self.taken.append(
                    Taken(film, argument, projection.wanted, projection.given, exact, projection.weight_axis)
                )
        if name is not None and (origin.readouts or origin.inputs):
            self.weights.append((name, projection, origin))
        if projection.makes_features:
            ran = owner in self.stack or name is None
            origin = replace(origin, arguments=frozenset(), generators=frozenset({owner if ran else name or owner}))
        if misfit is not None:
            origin = replace(origin, broken=origin.broken | {misfit})
        for one in tensors_in(result):
            self.set_origin(one, self._with_registers([origin], one, "linear"))

    # ---- everything else

    def _compute(self, name: str, operands: Sequence[Tensor], live: Sequence[Tensor], result: object) -> None:
        origins = [origin for one in live if (origin := self.origin(one)) is not None]
        self.pieces.cut(name, self.stack[-1], live[0], list(tensors_in(result)), origins[0].readouts)
        for one in tensors_in(result):
            if any(one is operand for operand in live) and len(live) == 1:
                continue  # in place, or a view that is the tensor itself
            if name in MODULATES and self._modulates(name, operands, one):
                arguments = union(origins).arguments
                kept = Origin(arguments=arguments, is_registers=any(o.is_registers for o in origins))
                self.set_origin(one, kept)
            else:
                origin = self._with_registers(origins, one, name)
                if name in SLICES and origin.readouts and is_vector(live[0]):
                    origin = self._slice(live[0], one, origin)
                self.set_origin(one, origin)

    def _slice(self, vector: Tensor, part: Tensor, origin: Origin) -> Origin:
        """Find a slice with hard-coded bounds: it takes all of a vector at the own sizes, and a part at others."""
        where = self.stack[-1]
        key = (where, sum(one[0] == where for one in self.slices))
        self.slices[key] = part.numel() == vector.numel()
        if key in self.whole and not self.slices[key]:
            cut = Break(where, int(part.shape[-1]), int(vector.shape[-1]), True)
            return replace(origin, broken=origin.broken | {cut})
        return origin

    def _modulates(self, name: str, operands: Sequence[Tensor], result: Tensor) -> bool:
        found = False
        for vector in operands:
            origin = self.origin(vector)
            if origin is None or not origin.generators:
                continue
            if is_vector(vector) and not is_vector(result):
                self.modulating |= origin.broken
            for features in operands:
                if features is vector or isinstance(features, nn.Parameter) or features.numel() <= 1:
                    continue
                if self._is_modulation(name, vector, origin, features, result):
                    if self.watch is not None:
                        self.watch.modulated(name, vector, origin, features, operands, self)
                    found = True
                    self.applications |= {Application(one, self.stack[-1]) for one in origin.generators}
        return found

    def _is_modulation(self, name: str, vector: Tensor, origin: Origin, features: Tensor, result: Tensor) -> bool:
        other = self.origin(features)
        if origin.readouts:
            if other is not None and other.readouts:
                return False
            if not is_vector(result):
                return True
            # vectors are added to join two conditions, multiplied to modulate features, which may be shifted after that
            scales = origin.generators & {one.generator for one in self.applications}
            return other is not None and (name in MULTIPLIES or bool(scales))
        sources = other is not None and bool(other.readouts or other.inputs)
        return bool(origin.inputs) and is_vector(vector) and not is_vector(result) and not sources

    def _with_registers(self, origins: Sequence[Origin], result: Tensor, name: str) -> Origin:
        """The merged origin; records where registers are taken out of tokens and where they become one vector."""
        origin = merged(origins, result)
        had = any(origin.is_registers for origin in origins)
        registers, hidden = self.num_registers, self.hidden_dim
        if had and name not in JOINS and not is_vector(result) and registers in result.shape[1:]:
            return replace(origin, is_registers=True)
        if result.dim() == 3 and tuple(result.shape[1:]) == (registers, hidden):
            return replace(origin, is_registers=True)
        if had and is_vector(result) and result.dim() == 2 and not origin.readouts:
            where = self.stack[-1]
            return replace(origin, readouts=frozenset({f"registers read in {where or 'forward'}"}))
        return replace(origin, is_registers=False)

"""Follows one forward pass of a network, by hooks, to its FiLM inputs."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from regplug.commands.audit.dataflow import Flow, Watcher
from regplug.commands.audit.origins import Origin, Taken, is_inside
from regplug.commands.audit.tensor_trees import is_vector, map_tensors, of_width, tensors_in, width_axis
from regplug.commands.audit.trace import Arrival, Network, Plan, Sources, Trace
from regplug.errors import with_class
from regplug.nn.pairing import film_family, wanted_width
from regplug.registry.default import default_registry
from regplug.registry.references import reference_of
from regplug.torch_private import as_written

VALUES = re.compile(r"\bmeta tensors?\b|\bregister_meta\b|meta device")  # how torch says that a tensor has no values
NO_SIZE = -1  # for a size that the network does not have: no tensor has it


def follow(network: Network, plan: Plan, watch: Watcher | None = None) -> Trace:
    """Run one forward pass in eval mode, and record what reaches the plan's FiLM inputs. Never raises.

    Args:
        network: The network and its inputs.
        plan: What is followed.
        watch: Gets the tensors of each call, with their values if the network is not on the meta device.
    """
    walk = _Walk(network, plan, watch)
    handles: list[Any] = []
    scripted: dict[int, str] = {}
    for path, module in network.module.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            scripted[id(module)] = path  # it takes no hooks itself
            continue
        handles.append(module.register_forward_pre_hook(partial(walk.enter, path), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(walk.leave, path), with_kwargs=True))
    if scripted:
        handles += walk.hook_all(scripted)
    try:
        network.module.eval()
        with torch.no_grad(), warnings.catch_warnings(), as_written(), walk.flow:
            warnings.simplefilter("ignore")  # inputs that are only tried may draw some
            network.module(*network.args, **network.kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a forward may raise anything, SystemExit too
        walk.trace.error = _reason(error)
        walk.trace.failed_in = tuple(walk.flow.stack)
        walk.trace.failed = walk.flow.failed
    finally:
        for handle in handles:
            handle.remove()
    walk.trace.applications = frozenset(walk.flow.applications)
    walk.trace.breaks, walk.trace.slices, walk.trace.calls = walk.flow.breaks, walk.flow.slices, walk.flow.calls
    walk.trace.cuts, walk.trace.joined = walk.flow.pieces.cuts(), walk.flow.parts.all()
    walk.trace.fits = walk.flow.calls if walk.flow.fits is None else walk.flow.fits
    walk.trace.modulating = frozenset(walk.flow.modulating)
    walk.finish()
    return walk.trace


class _Walk:
    """The hooks of one forward pass."""

    def __init__(self, network: Network, plan: Plan, watch: Watcher | None = None) -> None:
        self.network, self.plan = network, plan
        self.registers = network.sizes.get("num_registers", NO_SIZE), network.sizes.get("hidden_dim", NO_SIZE)
        self.flow = Flow(network.module, *self.registers, whole=plan.whole, watch=watch)
        self.trace = Trace()
        self._learning = not plan.conditioning
        self._inputs: dict[str, list[Tensor]] = {}
        self._declared = plan.declared
        named: list[tuple[int | str, Any]] = [*enumerate(network.args), *network.kwargs.items()]
        for name, value in named:
            for tensor in tensors_in(value):
                is_registers = tuple(tensor.shape[1:]) == self.registers
                inputs = frozenset({self._word(name)}) if is_vector(tensor) else frozenset()
                self.flow.set_origin(tensor, Origin(inputs=inputs, is_registers=is_registers))

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if path:
            self.flow.stack.append(path)
        self.trace.called.add(path)
        if path in self.plan.films:
            args, kwargs = self._arrive(path, module, args, kwargs)
        self._inputs[path] = list(tensors_in((args, kwargs)))
        return args, kwargs

    def hook_all(self, paths: Mapping[int, str]) -> list[Any]:
        """Hooks on all modules of the process, which act on the modules with these ids."""

        def enter(module: nn.Module, args: Any) -> Any:
            return self.enter(paths[id(module)], module, args, {})[0] if id(module) in paths else None

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if id(module) in paths:
                self.leave(paths[id(module)], module, args, {}, output)

        return [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]

    def leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while len(self.flow.stack) > 1 and self.flow.stack.pop() != path:
            pass  # a module inside raised, and this one went on
        given = self._inputs.pop(path, [])
        if isinstance(module, torch.jit.ScriptModule) and any(o.readouts for o in map(self.flow.origin, given) if o):
            self.trace.scripted[path] = str(getattr(module, "original_name", "module"))
        self.flow.join(given, output)
        if self._reads_registers(path, module, given, output):
            self.trace.readouts[path] = None
            old = self.flow.origin(output) or Origin()
            made = Origin(readouts=frozenset({path}), generators=old.generators, broken=old.broken)
            self.flow.set_origin(output, made)
        elif path in self.plan.films and len(given) > 1:
            for one in tensors_in(output):
                self.flow.set_origin(one, Origin())  # features, no conditioning

    def finish(self) -> None:
        """Record what reached weights of FiLM inputs whose own forward did not run."""
        self.trace.taken = list(self.flow.taken)
        for name, projection, origin in self.flow.weights:
            for film in self.plan.films:
                if film in self.trace.called or not is_inside(name, film):
                    continue
                if any(is_inside(one, film) for one in origin.generators):
                    continue  # a layer inside it
                if self._learning:
                    self.plan.sources.setdefault(film, Sources()).add(origin)
                rows = int(projection.tensor.shape[0])
                self.trace.arrivals.setdefault(film, []).append(
                    Arrival(projection.given, rows, origin, self.flow.parts.of(projection.tensor))
                )
                self.trace.taken.append(Taken(film, 0, projection.wanted, projection.given, None, 0))

    def _word(self, name: int | str) -> str:
        if isinstance(name, str):
            return name
        try:
            return list(inspect.signature(self.network.module.forward).parameters)[name]
        except (TypeError, ValueError, IndexError):
            return str(name)

    def _reads_registers(self, path: str, module: nn.Module, given: Sequence[Tensor], output: object) -> bool:
        if not path or not isinstance(output, Tensor) or output.dim() != 2:
            return False
        if path in self.plan.readouts:
            return True
        reads = any(one.dim() == 3 and tuple(one.shape[1:]) == self.registers for one in given)
        # nn.Flatten and the like are steps of a readout that a forward writes out
        is_plain = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)
        around_film = any(is_inside(film, path) for film in self._declared)
        return (reads and not is_plain and not around_film) or _is_registered(module)

    def _arrive(self, film: str, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Record the conditioning; a generator that would refuse it gets the width that it wants."""
        tensors = list(tensors_in((args, kwargs)))
        if self._learning and film not in self.plan.conditioning:
            self.plan.conditioning[film] = self._choose(tensors)
        changed: dict[int, Tensor] = {}
        for index in self.plan.conditioning.get(film, []):
            if index >= len(tensors):
                continue
            tensor = tensors[index]
            axis = width_axis(tensor)
            width = int(tensor.shape[axis]) if tensor.dim() else 1
            origin = self.flow.origin(tensor) or Origin()
            if self._learning:
                self.plan.sources.setdefault(film, Sources()).add(origin)
            rows = int(tensor.shape[0]) if tensor.dim() else 1
            self.trace.arrivals.setdefault(film, []).append(Arrival(width, rows, origin, self.flow.parts.of(tensor)))
            origin = origin | Origin(arguments=frozenset({(film, index)}))
            wanted = self._wanted(film, index, module) if tensor.is_floating_point() else None
            if wanted is not None and wanted != width and tensor.dim():
                self.flow.taken.append(Taken(film, index, wanted, width, None, axis))
                changed[id(tensor)] = of_width(tensor, axis, wanted)
                tensor = changed[id(tensor)]
            self.flow.set_origin(tensor, origin)
        if changed:
            args, kwargs = map_tensors(lambda one: changed.get(id(one), one), (args, kwargs))
        return args, kwargs

    def _choose(self, tensors: Sequence[Tensor]) -> list[int]:
        """Which tensors are the conditioning: a readout's output, else vectors of one sample each, else steps."""
        origins = [self.flow.origin(one) or Origin() for one in tensors]
        numbers = [index for index, one in enumerate(tensors) if one.is_floating_point()]
        of_readout = [index for index in numbers if origins[index].readouts]
        vectors = [index for index in numbers if is_vector(tensors[index])]
        of_inputs = [index for index in vectors if origins[index].inputs]
        steps = [index for index in range(len(tensors)) if index not in numbers and origins[index].inputs]
        return of_readout or of_inputs or vectors or steps or numbers

    def _wanted(self, film: str, index: int, module: nn.Module) -> int | None:
        """The width of the generator's own weight, else the width that its family states."""
        for name, axis in self.plan.weights.get((film, index), []):
            owner, _, word = name.rpartition(".")
            weight = getattr(self.network.module.get_submodule(owner), word, None)
            if isinstance(weight, Tensor) and not is_lazy(weight):
                return int(weight.shape[axis])
        is_only = len(self.plan.conditioning[film]) == 1
        return wanted_width(module) if is_only and film_family(module) is not None else None


def _reason(error: BaseException) -> str:
    text = with_class(error)
    if VALUES.search(text):
        return f"it reads values of its tensors, which have none here: {text}"
    return text


def _is_registered(module: nn.Module) -> bool:
    names = {reference_of(base) for base in type(module).__mro__}
    return any(reference_of(entry.build) in names for entry in default_registry().readout_entries())

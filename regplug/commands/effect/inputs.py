"""One batch of a network's inputs: as the user gives it, from a file, or drawn at random."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regplug.commands.audit.film_inputs import declared_films
from regplug.commands.audit.forward import follow
from regplug.commands.audit.inputs import BATCH, Inputs, describe_parameters, find_inputs
from regplug.commands.audit.tensor_trees import map_tensors, tensors_in
from regplug.commands.audit.trace import Network, Plan
from regplug.commands.effect.outputs import varies
from regplug.errors import SpecError, class_name, with_class
from regplug.nn.backbone import ask_tokens, recognise

MAX_NUMBER = 10  # drawn integers are below it where no embedding has fewer rows
MIN_BATCH = 4  # with fewer samples the spread over a batch means little
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def given_inputs(network: nn.Module, inputs: Any) -> tuple[Arguments, int]:
    """The arguments of the forward, on the network's device, and the number of samples.

    Args:
        network: The network.
        inputs: A tensor, a tuple of arguments, or a mapping: of arguments by name, else the one argument itself.

    Raises:
        SpecError: They hold no tensors, too few samples, or tensors of different numbers of samples.
    """
    args, kwargs = _as_arguments(network, inputs)
    tensors = list(tensors_in((args, kwargs)))
    if not tensors:
        raise SpecError(f"effect: inputs: expected tensors of the network's forward, got {class_name(inputs)}.")
    sizes = {int(one.shape[0]) for one in tensors if one.dim()} - {1}
    if len(sizes) != 1 or min(sizes) < MIN_BATCH:
        raise SpecError(
            f"effect: inputs: expected the same number of samples, at least {MIN_BATCH}, first in every tensor, got "
            f"{sorted(sizes) or [1]}."
        )
    bad = next((one for one in tensors if one.is_floating_point() and not bool(torch.isfinite(one).all())), None)
    if bad is not None:
        raise SpecError(f"effect: inputs: expected finite numbers, got NaN or infinity in a {list(bad.shape)}.")
    if not any(varies(one, max(sizes)) for one in tensors):
        raise SpecError("effect: inputs: expected samples that differ, got the same sample in every row.")
    device = _device(network)
    moved = map_tensors(lambda one: one.detach().to(device), (args, kwargs))
    return moved, sizes.pop()


def drawn_inputs(
    network: nn.Module, sizes: Mapping[str, int], batch: int, seed: int, made: Inputs | None = None
) -> Arguments:
    """Random inputs of shapes that the network takes.

    Args:
        network: The network.
        sizes: R, D and c if they are known, for trying.
        batch: The number of samples.
        seed: Of the numbers.
        made: Gives the shapes; found by trying on the meta device when None.

    Raises:
        SpecError: No inputs that were tried fit, or the batch is too small.
    """
    if batch < MIN_BATCH:
        raise SpecError(f"effect: batch: expected at least {MIN_BATCH} samples, got {batch}.")
    shapes = made(sizes) if made is not None else _tried(network, sizes)
    generator = torch.Generator().manual_seed(seed)
    rows = [one.num_embeddings for one in network.modules() if isinstance(one, nn.Embedding)]
    below = max(1, min([MAX_NUMBER, *rows]))
    device, dtype = _device(network), _dtype(network)

    def draw(one: Tensor) -> Tensor:
        shape = list(one.shape)
        if shape and shape[0] == BATCH:
            shape[0] = batch
        if one.dtype == torch.bool:
            return torch.ones(shape, dtype=torch.bool, device=device)
        if one.is_floating_point():
            numbers = torch.randn(shape, generator=generator)
            return numbers.to(device, dtype if one.dtype == torch.float32 else one.dtype)
        return torch.randint(0, below, shape, generator=generator).to(device, one.dtype)

    args, kwargs = map_tensors(draw, shapes)
    return args, dict(kwargs)


def read_inputs(path: str | Path) -> dict[str, Any]:
    """The arrays of an ``.npz`` or ``.safetensors`` file by name; ``batch.image`` is a key of a dict.

    Raises:
        SpecError: It is no such file, or holds something else than arrays of numbers.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        found = _of_safetensors(path)
    elif path.suffix == ".npz":
        found = _of_npz(path)
    else:
        raise SpecError(f"--inputs: expected a file .npz or .safetensors, got {path.name!r}.")
    nested: dict[str, Any] = {}
    for name, tensor in found.items():
        word, dot, key = name.partition(".")
        if dot and isinstance(nested.setdefault(word, {}), dict):
            nested[word][key] = tensor
        else:
            nested[name] = tensor
    return nested


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except Exception as error:  # safetensors has its own class
        raise SpecError(f"--inputs: {path.name}: expected a safetensors file, got {with_class(error)}.") from error


def _of_npz(path: Path) -> dict[str, Tensor]:
    from regplug.commands.npz_archive import NpzArchive

    owner = f"--inputs: {path.name}"
    archive = NpzArchive(path, owner)
    found = {}
    for name in archive.members:
        values = archive.whole(name)
        try:
            found[name] = torch.from_numpy(values.astype(values.dtype.newbyteorder("="), order="C"))  # a copy: writable
        except TypeError as error:  # texts, times, long doubles
            raise SpecError(f"{owner}: {name}: expected numbers of a dtype of torch, got {values.dtype}.") from error
    return found


def sizes_of(network: nn.Module) -> dict[str, int]:
    """R and D as the network, one of its modules or its backbone's plugin states them; empty if none does."""
    for part in network.modules():
        found = {word: getattr(part, word, None) for word in ("num_registers", "hidden_dim")}
        if all(type(size) is int and size > 0 for size in found.values()):
            return found  # type: ignore[return-value]
    return {}


def _as_arguments(network: nn.Module, inputs: Any) -> Arguments:
    if isinstance(inputs, tuple):
        return inputs, {}
    if not isinstance(inputs, Mapping):
        return (inputs,), {}
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return (dict(inputs),), {}
    names = {one.name for one in parameters}
    if set(inputs) <= names or any(one.kind is one.VAR_KEYWORD for one in parameters):
        return (), dict(inputs)
    required = [one for one in parameters if one.default is one.empty]
    if len(inputs) == 1 and len(required) == 1 and not _takes_mapping(required[0]):
        return tuple(inputs.values()), {}
    return (dict(inputs),), {}


def _takes_mapping(parameter: inspect.Parameter) -> bool:
    text = str(parameter.annotation).lower()
    return any(word in text for word in ("dict", "mapping"))


def _tried(network: nn.Module, sizes: Mapping[str, int]) -> Arguments:
    meta = copy.deepcopy(network).to("meta")
    plan = Plan({}, (), list(declared_films(meta)))
    fits: list[tuple[Inputs, Any]] = []
    errors: list[str] = []

    def attempt(made: Inputs) -> int | None:
        args, kwargs = made(sizes)
        trace = follow(Network(meta, sizes, args, kwargs), plan)
        if trace.error is None and not trace.breaks:
            fits.append((made, trace))
            return None
        errors.append(trace.error or "a layer takes another width")
        return trace.fits

    find_inputs(meta, sizes, _image_shape(network), attempt)
    if not fits:
        reason = f": {errors[-1]}" if errors else ""
        raise SpecError(
            f"effect: {type(network).__name__}: expected inputs that fit forward({describe_parameters(network)}), got "
            f"none by trying{reason}; give them by inputs= (--inputs FILE) or --input NAME=SHAPE."
        )
    return fits[0][0](sizes)


def _image_shape(network: nn.Module) -> Sequence[int] | None:
    from regplug.errors import RegplugError

    try:
        entry = recognise(network)
        return getattr(ask_tokens(entry, network, False), "input_shape", None)
    except RegplugError:  # no plugin knows it, or it has no tokens to read
        return None


def _device(network: nn.Module) -> torch.device:
    return next((one.device for one in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def _dtype(network: nn.Module) -> torch.dtype:
    floats: Callable[[Tensor], bool] = lambda one: one.is_floating_point()  # noqa: E731
    return next((one.dtype for one in network.parameters() if floats(one)), torch.float32)

"""The arguments of a network's forward in an audit: as the user gives them, or found by trying."""

from __future__ import annotations

import ast
import inspect
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regplug.commands.audit.tensor_trees import map_tensors
from regplug.errors import SpecError, class_name, one_line
from regplug.registry.dtypes import find_dtype
from regplug.registry.integers import is_int
from regplug.registry.options import parameters_of
from regplug.registry.references import REFERENCE_PATTERN

BATCH = 2  # with one sample, a batch that is mistaken for another axis would not show
OTHER_TOKENS = 16  # next to the registers, in a sequence that is tried
OTHER_STEPS = 16  # in a sequence that is not of tokens
MAX_WIDTHS = 8
ROUNDS = 3
IMAGE_SIZES = (224, 64, 32, 28, 16, 8)
SHAPE = re.compile(r"[\w+*/() -]+(,[\w+*/() -]+)*,?")
LETTERS = {"R": "num_registers", "D": "hidden_dim", "c": "compressed_dim"}
OPERATIONS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}

# sizes -> the arguments of a forward
Inputs = Callable[[Mapping[str, int]], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class InputSpec:
    """One ``--input``: ``[NAME=]SHAPE[:DTYPE]``.

    Args:
        name: The forward's argument; ``batch.image`` is a key of a dict. Empty for the next argument in order.
        shape: Each size as text, in ``B``, ``R``, ``D``, ``c`` and numbers.
        dtype: Name of a dtype of torch.
    """

    name: str
    shape: tuple[str, ...]
    dtype: str

    def tensor(self, sizes: Mapping[str, int]) -> torch.Tensor:
        """The tensor at these sizes."""
        known = {letter: sizes[word] for letter, word in LETTERS.items() if word in sizes} | {"B": BATCH}
        shape = [_number(one, known) for one in self.shape]
        try:
            return torch.empty(shape, dtype=_dtype(self.dtype), device="meta")
        except (RuntimeError, TypeError, OverflowError) as error:  # more than a tensor may hold
            raise SpecError(f"--input: expected the sizes of a tensor, got {','.join(self.shape)}.") from error


def parse_inputs(texts: Sequence[str], load: Callable[[str], Callable[..., Any]]) -> Inputs | None:
    """The inputs as the user gives them; None if not given.

    Args:
        texts: Each ``[NAME=]SHAPE[:DTYPE]``, or one ``module:function``.
        load: Imports a ``module:function``.

    Raises:
        SpecError: A text is neither.
    """
    if not texts:
        return None
    specs = []
    for text in texts:
        name, equals, shape = text.partition("=")
        shape, _, dtype = (shape if equals else text).partition(":")
        if dtype and find_dtype(dtype) is None:
            if len(texts) > 1 or not REFERENCE_PATTERN.fullmatch(text):
                raise SpecError(f"--input: expected SHAPE:DTYPE or one module:function, got {text!r}.")
            return _of_function(load(text))
        if not SHAPE.fullmatch(shape):
            raise SpecError(f"--input: expected [NAME=]SHAPE[:DTYPE] such as tokens=B,R+16,D, got {text!r}.")
        spec = InputSpec(name.strip() if equals else "", tuple(filter(None, shape.split(","))), dtype or "float32")
        for one in spec.shape:  # now, and not in the middle of the audit
            _number(one, dict.fromkeys([*LETTERS, "B"], 1), check=False)
        specs.append(spec)
    return lambda sizes: _arguments([(spec.name, spec.tensor(sizes)) for spec in specs])


def find_inputs(
    module: nn.Module,
    sizes: Mapping[str, int],
    shape: Sequence[int] | None,
    attempt: Callable[[Inputs], int | None],
) -> None:
    """Try inputs if the user gives none: the likeliest first, one argument of the forward after the other.

    Args:
        module: The network.
        sizes: The sizes that it has; inputs are in these sizes only.
        shape: ``(C, H, W)`` of its images, if its plugin states it.
        attempt: Runs a forward pass; gives how far it came, or None for inputs that fit, which ends the search.
    """
    example = getattr(module, "example_input_array", None)  # as Lightning calls it
    if example is not None:
        given = map_tensors(lambda one: one.to("meta"), example)
        if attempt(lambda sizes: (given if isinstance(given, tuple) else (given,), {})) is None:
            return
    parameters = _required(module)
    kinds = [list(_kinds(one.name, module, sizes, shape)) for one in parameters]
    if not all(kinds):
        return
    chosen, furthest = [0] * len(kinds), -1
    seen: set[tuple[int, ...]] = set()
    for _ in range(ROUNDS):
        before = list(chosen)
        for place, index in [(place, index) for place, some in enumerate(kinds) for index in range(len(some))] or [
            (0, 0)
        ]:
            tried = tuple(index if at == place else kind for at, kind in enumerate(chosen))
            if tried in seen:
                continue
            seen.add(tried)
            far = attempt(_of_kinds(parameters, [kinds[at][kind] for at, kind in enumerate(tried)]))
            if far is None:
                return
            if far > furthest:
                chosen, furthest = list(tried), far
        if chosen == before:
            return


def describe_parameters(module: nn.Module) -> str:
    """The required arguments of a forward, for messages: ``images, step``; empty if there are none, or no forward."""
    return ", ".join(one.name for one in _required(module))


Kind = Callable[[Mapping[str, int]], Any]


def _of_kinds(parameters: Sequence[inspect.Parameter], chosen: Sequence[Kind]) -> Inputs:
    def made(sizes: Mapping[str, int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = [(one, kind(sizes)) for one, kind in zip(parameters, chosen, strict=True)]
        args = tuple(value for one, value in given if one.kind is not one.KEYWORD_ONLY)
        return args, {one.name: value for one, value in given if one.kind is one.KEYWORD_ONLY}

    return made


def _required(module: nn.Module) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a scripted module
        return [inspect.Parameter("inputs", inspect.Parameter.POSITIONAL_ONLY)]
    known = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY)
    return [one for one in parameters if one.default is one.empty and one.kind in known]


def _kinds(name: str, module: nn.Module, sizes: Mapping[str, int], shape: Sequence[int] | None) -> Iterator[Kind]:
    """What an argument of a forward may be, judging by its name and by the network's images."""
    word = name.lower()
    steps, classes = _tensor(lambda s: (BATCH,)), _tensor(lambda s: (BATCH,), torch.int64)
    tokens = [_tensor(lambda s: (BATCH, s.get("num_registers", 0) + OTHER_TOKENS, s["hidden_dim"]))]
    registers = [_tensor(lambda s: (BATCH, s["num_registers"], s["hidden_dim"]))]
    vectors = [_tensor(lambda s: (BATCH, s["hidden_dim"]))]
    if "num_registers" not in sizes:
        registers = []
    if "hidden_dim" not in sizes:
        tokens, registers, vectors = [], [], []
    if "reg" in word:
        yield from (*registers, *tokens)
    elif word in ("t", "time", "times") or "step" in word or "sigma" in word:
        yield from (steps, classes)
    elif word in ("y", "label", "labels") or "class" in word:
        yield from (classes, *vectors)
    else:
        is_image = shape is not None or any(part in word for part in ("image", "img", "pixel"))
        first = [*tokens, *registers, *vectors, *_of_layers(module, sizes)]
        images = list(_images(module, shape))
        yield from (*images, *first) if is_image else (*first, *images)
        yield from (steps, classes)


def _of_layers(module: nn.Module, sizes: Mapping[str, int]) -> Iterator[Kind]:
    """Sequences and vectors of a width that one of the network's layers takes."""
    linear = {one.in_features: None for one in module.modules() if isinstance(one, nn.Linear)}
    channels = {one.in_channels: None for one in module.modules() if isinstance(one, nn.Conv1d)}
    for width in list({**linear, **channels})[:MAX_WIDTHS]:
        if width and width != sizes.get("hidden_dim"):
            yield _fixed(BATCH, OTHER_STEPS, width)
            yield _fixed(BATCH, width)
            if width in channels:
                yield _fixed(BATCH, width, OTHER_STEPS)


def _fixed(*sizes: int) -> Kind:
    return _tensor(lambda _: sizes)


def _images(module: nn.Module, shape: Sequence[int] | None) -> Iterator[Kind]:
    stated = shape or getattr(module, "input_shape", None)
    if isinstance(stated, (tuple, list)) and stated and all(map(is_int, stated)):
        yield _fixed(BATCH, *stated)
    taken = sorted({part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)})
    own = [size for word in ("image_size", "img_size") if (size := _side(getattr(module, word, None)))]
    for side in dict.fromkeys((*own, *IMAGE_SIZES)):
        for channels in taken[:2] or [3]:  # the first layer is among those that take the fewest
            yield _fixed(BATCH, channels, side, side)
            yield _fixed(BATCH, side, side, channels)
            yield _in_dict(_fixed(BATCH, side, side, channels))
        yield _fixed(BATCH, side, side)


def _side(size: object) -> int | None:
    size = size[-1] if isinstance(size, (tuple, list)) and size else size
    return size if is_int(size) else None


def _tensor(shape: Callable[[Mapping[str, int]], tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Kind:
    return lambda sizes: torch.empty(shape(sizes), dtype=dtype, device="meta")


def _in_dict(kind: Kind) -> Kind:
    return lambda sizes: {"input": kind(sizes)}  # as nvSubquadratic's networks take it


def _of_function(function: Callable[..., Any]) -> Inputs:
    def made(sizes: Mapping[str, int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = parameters_of("--input", function)
        given = {word: size for word, size in {**sizes, "batch_size": BATCH}.items() if word in named}
        try:
            with torch.device("meta"):
                found = function(**given)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            name = getattr(function, "__name__", "function")
            raise SpecError(
                f"--input: expected {name} to give inputs, got {class_name(error)}: {one_line(error)}"
            ) from error
        found = map_tensors(lambda one: one.to("meta"), found)
        if isinstance(found, tuple):
            return found, {}
        return ((), found) if type(found) is dict else ((found,), {})

    return made


def _arguments(tensors: Sequence[tuple[str, torch.Tensor]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, tensor in tensors:
        word, dot, key = name.partition(".")
        if not name:
            args.append(tensor)
        elif dot:
            kwargs.setdefault(word, {})[key] = tensor
        else:
            kwargs[word] = tensor
    return tuple(args), kwargs


def _number(text: str, known: Mapping[str, int], check: bool = True) -> int:
    """The value of a size such as ``R*c+16``."""
    wrong = SpecError(f"--input: expected sizes of numbers and {', '.join(known)}, got {text!r}.")

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and is_int(node.value):
            return int(node.value)
        if isinstance(node, ast.Name) and node.id in known:
            return known[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        raise wrong

    try:
        size = value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError):
        raise wrong from None
    if check and size < 0:
        raise wrong
    return size


def _dtype(name: str) -> torch.dtype:
    found = find_dtype(name)
    if found is None:
        raise SpecError(f"--input: expected a dtype of torch, got {name!r}.")
    return found

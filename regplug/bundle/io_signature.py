"""Finds a module's input and outputs by running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from regplug.backends.interface import call_flat
from regplug.bundle.mask_rules import MaskRules
from regplug.errors import ExportError, class_name, one_line
from regplug.format.manifest import IMAGES, InputSpec, MoreInput, PartRecord, TensorSpec
from regplug.format.more_inputs import least_tokens
from regplug.format.weights import dtype_name
from regplug.nn.readouts.join_parts import PartWidth
from regplug.registry.dtypes import torch_dtype
from regplug.registry.layout import REGISTERS, TOKENS, TokenLayout
from regplug.registry.readout_inputs import MASK

FREE_LENGTHS = (2, 6, 0, 4, 1, 8)  # tokens more than the least, in the golden cases in turn


@dataclass(frozen=True)
class Besides:
    """What a module takes besides its tokens or images, and what decides how many tokens.

    Args:
        mask: Whether it takes a mask.
        vectors: The name and the width of each vector.
        parts: The parts, if its readout is a join.
    """

    mask: bool = False
    vectors: tuple[tuple[str, int], ...] = ()
    parts: tuple[PartRecord, ...] | None = None

    def inputs(self, dtype: str, length: int | str) -> tuple[MoreInput, ...]:
        """The manifest's ``more_inputs``."""
        masks = (MoreInput(MASK, "bool", ("B", length)),) if self.mask else ()
        return (*masks, *(MoreInput(name, dtype, ("B", width)) for name, width in self.vectors))


NOTHING = Besides()


def part_record(one: PartWidth) -> PartRecord:
    """A part of a join as the manifest has it."""
    tokens = None if one.part.width else (one.part.start, one.part.stop)
    return PartRecord(one.part.name, one.width, tokens, one.takes_mask)


@dataclass(frozen=True)
class IOSignature:
    """A module's inputs and outputs, and the values of the input's second size that its golden cases use in turn."""

    input: InputSpec
    outputs: tuple[TensorSpec, ...]
    lengths: Sequence[int]
    more_inputs: tuple[MoreInput, ...] = ()
    mask_rules: MaskRules | None = None
    parts: tuple[PartRecord, ...] | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """All inputs, in their order."""
        return (self.input, *self.more_inputs)


def signature_of_readout(
    owner: str,
    module: nn.Module,
    sizes: Sequence[int | None],
    cond_dim: int,
    name: str = TOKENS,
    besides: Besides = NOTHING,
) -> IOSignature:
    """The signature of a readout, ``[B, R, D] -> [B, cond_dim]``, or of one with its backbone.

    Args:
        owner: The strategy, for messages.
        module: In eval mode, on the CPU.
        sizes: The input's sizes without the batch: ``(R, D)``, R being None for any number, or ``(C, H, W)``.
        cond_dim: The width that its output must have.
        name: The input's name: ``images`` with a backbone.
        besides: What it takes besides.

    Raises:
        ExportError: It does not run, or returns something else.
    """
    dtype = _dtype_of(owner, module)
    first, *rest = sizes
    free = first is None
    least = least_tokens(besides.parts) if first is None else first
    more = besides.inputs(dtype, "T" if free else least)
    if name == TOKENS and not (free or more):
        name = REGISTERS  # as in format 1
    given = InputSpec(name, dtype, ("B", "T" if free else least, *map(int, rest)), 1, least if free else None)  # type: ignore[arg-type]
    shapes, min_batch = _run(owner, module, (given, *more), least)
    if shapes != [(dtype, [cond_dim])]:
        raise ExportError(f"{owner}: expected {dtype} [B, {cond_dim}], got {_format(shapes)}.")
    return IOSignature(
        replace(given, min_batch=min_batch),
        (TensorSpec("conditioning", dtype, ("B", cond_dim)),),
        [least + more for more in FREE_LENGTHS] if free else [least],
        more,
        MaskRules(None, besides.parts) if besides.mask else None,
        besides.parts,
    )


def signature_of_conditioner(
    owner: str,
    module: nn.Module,
    layout: TokenLayout,
    images: Sequence[int] | None = None,
    besides: Besides = NOTHING,
) -> IOSignature:
    """The signature of a conditioner, ``[B, T, D] -> [(gamma, beta), ...]``, or of one with its backbone.

    Args:
        owner: The strategy, for messages.
        module: In eval mode, on the CPU.
        layout: Where the registers are.
        images: With a backbone, the sizes of its input without the batch, ``(C, H, W)``.
        besides: What it takes besides.

    Raises:
        ExportError: It does not run, or returns something else.
    """
    dtype = _dtype_of(owner, module)
    least = layout.num_tokens or layout.min_tokens
    if layout.num_registers is None:
        least = least_tokens(besides.parts) + (layout.start or 0)
    middle: int | str = layout.num_tokens or "T"
    more = besides.inputs(dtype, middle)
    given = InputSpec(TOKENS, dtype, ("B", middle, layout.hidden_dim), 1, least)
    if images:
        given = InputSpec(IMAGES, dtype, ("B", *images), 1, None)
        least = images[0]
    shapes, min_batch = _run(owner, module, (given, *more), least)
    gammas, betas = shapes[0::2], shapes[1::2]
    if not shapes or gammas != betas or any(found != dtype or len(shape) != 1 for found, shape in shapes):
        raise ExportError(f"{owner}: expected pairs of {dtype} [B, width], got {_format(shapes)}.")
    outputs = [
        TensorSpec(f"{word}_{layer}", dtype, ("B", shape[0]))
        for layer, (_, shape) in enumerate(gammas)
        for word in ("gamma", "beta")
    ]
    lengths = [least] if images or layout.num_tokens else [least, least + 1, least + 4]
    if not images and layout.num_registers is None:
        lengths = [least + more for more in FREE_LENGTHS]
    rules = MaskRules(layout, besides.parts) if besides.mask else None
    return IOSignature(replace(given, min_batch=min_batch), tuple(outputs), lengths, more, rules, besides.parts)


def _dtype_of(owner: str, module: nn.Module) -> str:
    # a backbone keeps its rotary tables in float32, whatever dtype it computes in
    weights = [tensor for name, tensor in module.named_buffers() if not name.startswith("tokens.")]
    found = {dtype_name(tensor) for tensor in (*module.parameters(), *weights) if tensor.is_floating_point()}
    if len(found) > 1:
        got = " and ".join(sorted(found))
        raise ExportError(f"{owner}: expected weights of one dtype, got {got}; use module.to(dtype) on the whole.")
    return found.pop() if found else "float32"


def _run(
    owner: str, module: nn.Module, inputs: Sequence[TensorSpec], length: int
) -> tuple[list[tuple[str, list[int]]], int]:
    """Dtype and shape without batch of each output, and the smallest batch that runs."""

    def forward(batch: int) -> list[tuple[str, list[int]]]:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            outputs = call_flat(module, [one.name for one in inputs], plain_inputs(inputs, batch, length))
        if any(output.dim() < 1 or output.shape[0] != batch for output in outputs):
            raise ExportError(
                f"{owner}: expected outputs with {batch} samples, got {[list(output.shape) for output in outputs]}."
            )
        return [(dtype_name(output), list(output.shape[1:])) for output in outputs]

    try:
        given = forward(1)
    except ExportError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any exception means that it does not take this input
        shape = list(plain_inputs(inputs[:1], 1, length)[0].shape)
        raise ExportError(
            f"{owner}: expected a forward of {shape} in {inputs[0].dtype}, got {class_name(error)}: {one_line(error)}"
        ) from error
    try:
        min_batch = 0 if forward(0) == given else 1
    except (Exception, SystemExit):  # a module may refuse an empty batch, also by an assert
        min_batch = 1
    return given, min_batch


def _format(shapes: list[tuple[str, list[int]]]) -> str:
    return ", ".join(f"{dtype} [B, {', '.join(map(str, shape))}]" for dtype, shape in shapes) or "nothing"


def plain_inputs(
    inputs: Sequence[TensorSpec], batch: int, length: int, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Zeros for each input, and a mask that leaves nothing out.

    Args:
        inputs: The inputs.
        batch: B.
        length: The first input's second size.
        dtype: Instead of that of the inputs; a mask stays bool.
    """
    return [
        torch.ones(sizes_of(one, batch, length), dtype=torch.bool, device="cpu")
        if one.dtype == "bool"
        else torch.zeros(sizes_of(one, batch, length), dtype=dtype or torch_dtype(one.dtype), device="cpu")
        for one in inputs
    ]


def sizes_of(spec: TensorSpec, batch: int, length: int) -> list[int]:
    """The shape with B and T; the first input's second size is ``length`` also where it is fixed."""
    sizes = [batch if size == "B" else length if size == "T" else int(size) for size in spec.shape]
    if isinstance(spec, InputSpec) or spec.dtype == "bool":
        sizes[1] = length
    return sizes

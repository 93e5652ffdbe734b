"""Finds a module's input and outputs by running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from regplug.backends.interface import flatten
from regplug.errors import ExportError, class_name, one_line
from regplug.format.manifest import IMAGES, InputSpec, TensorSpec
from regplug.format.weights import dtype_name
from regplug.registry.dtypes import torch_dtype
from regplug.registry.layout import TokenLayout


@dataclass(frozen=True)
class IOSignature:
    """A module's input and outputs, and the values of the input's second size that its golden cases use in turn."""

    input: InputSpec
    outputs: tuple[TensorSpec, ...]
    lengths: Sequence[int]


def signature_of_readout(
    owner: str, module: nn.Module, sizes: Sequence[int], cond_dim: int, name: str = "registers"
) -> IOSignature:
    """The signature of a readout, ``[B, R, D] -> [B, cond_dim]``, or of one with its backbone.

    Args:
        owner: The strategy, for messages.
        module: In eval mode, on the CPU.
        sizes: The input's sizes without the batch: ``(R, D)``, or ``(C, H, W)``.
        cond_dim: The width that its output must have.
        name: The input's name: ``images`` with a backbone.

    Raises:
        ExportError: It does not run, or returns something else.
    """
    dtype = _dtype_of(owner, module)
    shapes, min_batch = _run(owner, module, dtype, sizes)
    if shapes != [(dtype, [cond_dim])]:
        raise ExportError(f"{owner}: expected {dtype} [B, {cond_dim}], got {_format(shapes)}.")
    return IOSignature(
        InputSpec(name, dtype, ("B", *sizes), min_batch, None),
        (TensorSpec("conditioning", dtype, ("B", cond_dim)),),
        [sizes[0]],
    )


def signature_of_conditioner(
    owner: str, module: nn.Module, layout: TokenLayout, images: Sequence[int] | None = None
) -> IOSignature:
    """The signature of a conditioner, ``[B, T, D] -> [(gamma, beta), ...]``, or of one with its backbone.

    Args:
        owner: The strategy, for messages.
        module: In eval mode, on the CPU.
        layout: Where the registers are.
        images: With a backbone, the sizes of its input without the batch, ``(C, H, W)``.

    Raises:
        ExportError: It does not run, or returns something else.
    """
    dtype = _dtype_of(owner, module)
    least = layout.num_tokens or layout.min_tokens
    shapes, min_batch = _run(owner, module, dtype, images or (least, layout.hidden_dim))
    gammas, betas = shapes[0::2], shapes[1::2]
    if not shapes or gammas != betas or any(found != dtype or len(shape) != 1 for found, shape in shapes):
        raise ExportError(f"{owner}: expected pairs of {dtype} [B, width], got {_format(shapes)}.")
    outputs = [
        TensorSpec(f"{word}_{layer}", dtype, ("B", shape[0]))
        for layer, (_, shape) in enumerate(gammas)
        for word in ("gamma", "beta")
    ]
    if images:
        return IOSignature(InputSpec(IMAGES, dtype, ("B", *images), min_batch, None), tuple(outputs), [images[0]])
    middle: int | str = layout.num_tokens or "T"
    lengths = [least] if layout.num_tokens else [least, least + 1, least + 4]
    return IOSignature(
        InputSpec("tokens", dtype, ("B", middle, layout.hidden_dim), min_batch, least), tuple(outputs), lengths
    )


def _dtype_of(owner: str, module: nn.Module) -> str:
    # a backbone keeps its rotary tables in float32, whatever dtype it computes in
    weights = [tensor for name, tensor in module.named_buffers() if not name.startswith("tokens.")]
    found = {dtype_name(tensor) for tensor in (*module.parameters(), *weights) if tensor.is_floating_point()}
    if len(found) > 1:
        got = " and ".join(sorted(found))
        raise ExportError(f"{owner}: expected weights of one dtype, got {got}; use module.to(dtype) on the whole.")
    return found.pop() if found else "float32"


def _run(owner: str, module: nn.Module, dtype: str, sizes: Sequence[int]) -> tuple[list[tuple[str, list[int]]], int]:
    """Dtype and shape without batch of each output, and the smallest batch that runs."""

    def forward(batch: int) -> list[tuple[str, list[int]]]:
        given = torch.zeros(batch, *sizes, dtype=torch_dtype(dtype), device="cpu")
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            outputs = flatten(module(given))
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
        raise ExportError(
            f"{owner}: expected a forward of {[1, *sizes]} in {dtype}, got {class_name(error)}: {one_line(error)}"
        ) from error
    try:
        min_batch = 0 if forward(0) == given else 1
    except (Exception, SystemExit):  # a module may refuse an empty batch, also by an assert
        min_batch = 1
    return given, min_batch


def _format(shapes: list[tuple[str, list[int]]]) -> str:
    return ", ".join(f"{dtype} [B, {', '.join(map(str, shape))}]" for dtype, shape in shapes) or "nothing"

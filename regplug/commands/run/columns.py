"""From a column of data, an Arrow array, an array or a tensor, to a bundle's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from regplug.commands.extras import import_extra
from regplug.errors import SpecError, class_name, one_line
from regplug.format.manifest import TensorSpec
from regplug.registry.dtypes import torch_dtype


def as_input(owner: str, column: Any, spec: TensorSpec, cast: bool, first: int = 0) -> Tensor:
    """A column as the input that a spec describes, without a copy where that is possible.

    Args:
        owner: The column, for messages.
        column: An Arrow array of lists, tensors or bytes of one size; a NumPy array, also of arrays; or a tensor.
        spec: The input. Rows may be flat, ``[n, R * D]`` for ``[B, R, D]``.
        cast: Whether values may be rounded to the spec's dtype.
        first: The row of the first sample, for messages.

    Raises:
        SpecError: It has another shape or dtype, or rows without a value.
    """
    dtype = torch_dtype(spec.dtype)
    if isinstance(column, Tensor):
        values = column
    elif not isinstance(column, np.ndarray) and (
        hasattr(column, "__arrow_c_array__") or hasattr(column, "__arrow_c_stream__")
    ):
        values = from_arrow(owner, _arrow_array(owner, column), dtype, lambda index: first + index)
    else:
        values = _from_numpy(owner, column)
    return _cast(owner, _shaped(owner, values, spec), dtype, cast, first)


def as_padded(owner: str, column: Any, spec: TensorSpec, cast: bool, first: int = 0) -> tuple[Tensor, Tensor]:
    """Lists of different lengths as the input ``[n, T, D]``, padded with zeros, and its mask ``[n, T]``.

    Args:
        owner: The column, for messages.
        column: An Arrow array of lists of lists of D numbers.
        spec: The input, ``[B, T, D]``.
        cast: As for ``as_input``.
        first: As for ``as_input``.

    Raises:
        SpecError: It is no such array, or has rows without a value.
    """
    arrow = import_extra("run", "pyarrow")
    column = column.combine_chunks() if isinstance(column, arrow.ChunkedArray) else column
    types = arrow.types
    if not (isinstance(column, arrow.Array) and (types.is_list(column.type) or types.is_large_list(column.type))):
        got = column.type if isinstance(column, arrow.Array) else class_name(column)
        raise SpecError(f"{owner}: expected a column 'mask' too, or lists of any length, list<list<float>>, got {got}.")
    _check_nulls(owner, column, lambda index: first + index, len(column))
    lengths = import_extra("run", "pyarrow.compute").list_value_length(column).to_numpy(zero_copy_only=False)
    width, values = int(spec.shape[-1]), column.flatten()
    if types.is_floating(values.type):  # flat rows
        if (lengths % width).any():
            row = first + int((lengths % width).argmax())
            raise SpecError(f"{owner}: row {row}: expected a multiple of {width} numbers, got {lengths[row - first]}.")
        lengths, values = lengths // width, arrow.FixedSizeListArray.from_arrays(values, width)
    if not lengths.all():
        raise SpecError(f"{owner}: row {first + int(lengths.argmin())}: expected at least one token, got none.")
    ends, dtype = np.cumsum(lengths), torch_dtype(spec.dtype)
    values = from_arrow(owner, values, dtype, lambda token: first + int(np.searchsorted(ends, token, "right")))
    tokens = _shaped(owner, values, TensorSpec(spec.name, spec.dtype, ("B", width)))
    mask = torch.arange(int(lengths.max(initial=1))) < torch.tensor(lengths)[:, None]
    padded = tokens.new_zeros(*mask.shape, tokens.shape[-1])
    padded[mask] = tokens
    return _cast(owner, padded, dtype, cast, first), mask


def from_arrow(owner: str, column: Any, dtype: torch.dtype = torch.uint8, row_of: Callable[[int], int] = int) -> Tensor:
    """The numbers of an Arrow array, without a copy: ``[n]``, or ``[n, ...]`` of lists of equal lengths.

    Args:
        owner: The column, for messages.
        column: The array; chunks are joined.
        dtype: What rows of bytes are.
        row_of: From the index of an element to its sample's row, for messages.

    Raises:
        SpecError: It holds something else, or rows without a value.
    """
    arrow = import_extra("run", "pyarrow")
    if isinstance(column, arrow.ChunkedArray):
        column = column.combine_chunks()
    count, sizes, values = len(column), [], column
    if isinstance(values, arrow.ExtensionArray):
        if isinstance(values, arrow.FixedShapeTensorArray):
            sizes = list(values.type.shape)
            order = list(values.type.permutation or sorted(range(len(sizes))))
            if order != sorted(order):
                raise SpecError(f"{owner}: expected tensors in the order of their axes, got {column.type}.")
        values = values.storage
    types = arrow.types
    _check_nulls(owner, values, row_of, count)
    if types.is_fixed_size_binary(values.type):
        width = values.type.byte_width
        if width % dtype.itemsize:
            raise SpecError(f"{owner}: expected bytes of {dtype}, got {width} bytes a row.")
        data = values.buffers()[1][values.offset * width : (values.offset + count) * width]
        numbers = from_dlpack(arrow.Array.from_buffers(arrow.uint8(), len(data), [None, data]))
        return numbers.view(dtype).reshape(count, width // dtype.itemsize)
    shape = [count]
    while types.is_fixed_size_list(values.type) or types.is_list(values.type) or types.is_large_list(values.type):
        if not types.is_fixed_size_list(values.type):
            _check_even(owner, values, row_of, count)
        rows, values = len(values), values.flatten()
        _check_nulls(owner, values, row_of, count)
        shape.append(len(values) // rows if rows else 0)
    shape = [count, *sizes] if sizes else shape
    if types.is_boolean(values.type):
        return torch.from_numpy(values.to_numpy(zero_copy_only=False)).reshape(shape)
    if not (types.is_floating(values.type) or types.is_integer(values.type)):
        raise SpecError(f"{owner}: expected lists of numbers, or bytes of a fixed number, got {column.type}.")
    return (from_dlpack(values) if count else torch.from_numpy(values.to_numpy().copy())).reshape(shape)


def _check_nulls(owner: str, values: Any, row_of: Callable[[int], int], count: int) -> None:
    if values.null_count:
        place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        row = row_of(place * count // len(values))
        raise SpecError(f"{owner}: row {row}: expected values, got null.")


def _check_even(owner: str, values: Any, row_of: Callable[[int], int], count: int) -> None:
    lengths = import_extra("run", "pyarrow.compute").list_value_length(values).to_numpy(zero_copy_only=False)
    if len(lengths) and (lengths != lengths[0]).any():
        wrong = int((lengths != lengths[0]).argmax())
        row = row_of(wrong * count // len(values))
        raise SpecError(f"{owner}: row {row}: expected a list of {lengths[0]}, as those before, got {lengths[wrong]}.")


def _arrow_array(owner: str, column: Any) -> Any:
    """The column of another library, as of pandas or polars, as one of pyarrow."""
    arrow = import_extra("run", "pyarrow")
    if isinstance(column, arrow.Array | arrow.ChunkedArray):
        return column
    try:
        return arrow.chunked_array(column)
    except (arrow.ArrowException, TypeError, ValueError) as error:
        raise SpecError(f"{owner}: expected an Arrow array, got {class_name(column)}: {one_line(error)}") from error


def _from_numpy(owner: str, column: Any) -> Tensor:
    if isinstance(column, np.ma.MaskedArray) and np.ma.is_masked(column):
        raise SpecError(f"{owner}: expected a value in every row, got a masked array.")
    try:
        array = _stacked(np.asarray(column))
        # torch has no negative strides, no other byte order, and no memory that cannot be written
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"{owner}: expected numbers of one shape in every row, got others: {one_line(error)}"
        ) from error


def _stacked(array: np.ndarray) -> np.ndarray:
    """An array of arrays, as pandas has for lists, as one array."""
    if array.dtype != object:
        return array
    return np.stack([_stacked(np.asarray(one)) for one in array]) if len(array) else np.empty(0, np.float32)


def _shaped(owner: str, values: Tensor, spec: TensorSpec) -> Tensor:
    sizes: Sequence[int | str] = spec.shape[1:]
    count = values.shape[0] if values.ndim else 0
    if values.ndim == 1 and tuple(sizes) == (1,):
        return values[:, None]
    if values.ndim == 2 and len(sizes) > 1:  # flat rows
        known = prod(size for size in sizes if isinstance(size, int))
        width, free = values.shape[1], any(isinstance(size, str) for size in sizes)
        if (width == known) if not free else (known and width % known == 0):
            shape = [width // known if isinstance(size, str) else size for size in sizes]
            return values.reshape(count, *shape)
    if values.ndim != len(spec.shape) or any(
        isinstance(want, int) and want != got for want, got in zip(sizes, values.shape[1:], strict=True)
    ):
        if count == 0 and values.numel() == 0:
            return values.reshape(0, *(1 if isinstance(size, str) else size for size in sizes))
        wanted = ", ".join(["n", *map(str, sizes)])
        raise SpecError(f"{owner}: expected [{wanted}], got [{', '.join(['n', *map(str, values.shape[1:])])}].")
    return values


def _cast(owner: str, values: Tensor, dtype: torch.dtype, cast: bool, first: int) -> Tensor:
    if values.dtype == dtype:
        return values
    if dtype == torch.bool and _is_integer(values.dtype):
        return _as_mask(owner, values, first)
    numbers = dtype.is_floating_point and not values.is_complex() and values.dtype != torch.bool
    if not (numbers and (cast or _is_exact(values.dtype, dtype))):
        hint = "; allow rounding, with --cast or cast=True" if numbers else ""
        raise SpecError(f"{owner}: expected {_name(dtype)}, got {_name(values.dtype)}{hint}.")
    rounded = values.to(dtype)
    infinite = rounded.isinf()
    if bool(infinite.any()) and bool((lost := infinite & values.double().isfinite()).any()):
        row = _first_row(lost)
        raise SpecError(
            f"{owner}: row {first + row}: expected numbers up to {torch.finfo(dtype).max:.4g}, the largest of "
            f"{_name(dtype)}, got {values[row][lost[row]].flatten()[0].item():.4g}."
        )
    return rounded


def _as_mask(owner: str, values: Tensor, first: int) -> Tensor:
    """Integers as a mask, as tokenizers write an attention mask."""
    wrong = (values != 0) & (values != 1)
    if bool(wrong.any()):
        row = _first_row(wrong)
        got = values[row][wrong[row]].flatten()[0].item()
        raise SpecError(f"{owner}: row {first + row}: expected a mask, bool or 0 and 1, got {got}.")
    return values.bool()


def _first_row(wrong: Tensor) -> int:
    return int(wrong.flatten(1).any(1).nonzero()[0])


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _is_exact(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether every value of one dtype is one of the other."""
    if source.is_floating_point:
        given, wanted = torch.finfo(source), torch.finfo(target)
        return wanted.eps <= given.eps and wanted.max >= given.max
    return 2 / torch.finfo(target).eps >= torch.iinfo(source).max


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Tensors as Arrow columns."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regplug.commands.extras import import_extra


def plain(values: Tensor) -> Tensor:
    """Values of a dtype that NumPy and Arrow have: bfloat16 becomes float32, which is exact."""
    return (values.float() if values.dtype == torch.bfloat16 else values).contiguous()


def list_column(values: Tensor) -> Any:
    """``[n, width]`` as lists of any length, for readers that know no lists of a fixed size, as Spark."""
    arrow = import_extra("run", "pyarrow")
    column = arrow_column(values)
    return column.cast(arrow.list_(column.type.value_type))


def arrow_column(values: Tensor) -> Any:
    """``[n]`` as numbers, ``[n, width]`` as lists of a fixed size, and more axes as tensors of a fixed shape."""
    arrow = import_extra("run", "pyarrow")
    flat = _flat(plain(values).numpy().reshape(-1))
    if values.ndim == 1:
        return flat
    lists = arrow.FixedSizeListArray.from_arrays(flat, prod(values.shape[1:]))
    if values.ndim == 2:
        return lists
    return arrow.ExtensionArray.from_storage(arrow.fixed_shape_tensor(flat.type, values.shape[1:]), lists)


def _flat(numbers: np.ndarray) -> Any:
    """Numbers as an Arrow array without a copy. ``pyarrow.array`` would import pandas, which takes half a second."""
    arrow = import_extra("run", "pyarrow")
    if numbers.dtype == bool:  # a bit each
        return arrow.array(numbers)
    kind = arrow.from_numpy_dtype(numbers.dtype)
    return arrow.Array.from_buffers(kind, len(numbers), [None, arrow.py_buffer(numbers)])

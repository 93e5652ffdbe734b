"""NumPy arrays as the tensors of libregplug, and its tensors as NumPy arrays."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from regplug_runtime.errors import BundleError
from regplug_runtime.library import Outputs, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

OWNER = "program 'aotinductor'"
BFLOAT16 = "bfloat16"
NAMES = ("float64", "float32", "float16", BFLOAT16, "int64", "int32", "int16", "int8", "uint8", "bool")
CODES = {np.dtype(name): code for code, name in enumerate(NAMES) if name != BFLOAT16}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of arrays for a dtype of a bundle.

    Raises:
        ImportError: It is bfloat16, and ml_dtypes is not installed.
    """
    if name != BFLOAT16:
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def to_tensor(given: object, wanted: str, owner: str = OWNER, name: bytes | None = None) -> tuple[Tensor, NDArray[Any]]:
    """An input as the library takes it, and the array that must be kept while the tensor is used.

    The library compares rank, sizes and dtype, and copies an array that is not in C order.

    Args:
        given: The caller's input.
        wanted: The name of the dtype that the bundle takes, for messages.
        owner: What messages begin with.
        name: The input's name; None: it is the only one.

    Raises:
        BundleError: It is no plain array, or has a dtype that the library does not know.
    """
    array = given if type(given) is np.ndarray else _plain(given, owner)
    code = CODES.get(array.dtype)
    if code is None:
        code = _other_code(array.dtype, wanted, owner)
    item = array.itemsize
    if any(step % item for step in array.strides):  # a field of a structured array
        array = np.array(array, order="C")
    numbers = ctypes.c_int64 * array.ndim
    strides = numbers(*(step // item for step in array.strides))
    return Tensor(name, code, array.ndim, numbers(*array.shape), strides, array.ctypes.data), array


def _plain(given: object, owner: str) -> NDArray[Any]:
    if isinstance(given, np.ma.MaskedArray):
        raise BundleError(f"{owner}: expected an array without a mask, got a masked one; use array.filled(value).")
    if isinstance(given, np.ndarray):
        return given.view(np.ndarray)
    raise BundleError(f"{owner}: expected a NumPy array, got {type(given).__name__}; use numpy.asarray.")


def _other_code(dtype: np.dtype[Any], wanted: str, owner: str) -> int:
    if not dtype.isnative:
        raise BundleError(
            f"{owner}: expected dtype {wanted} in this machine's byte order, got {dtype.str}; use "
            "array.astype(array.dtype.newbyteorder('='))."
        )
    if dtype.name != BFLOAT16:
        raise BundleError(f"{owner}: expected dtype {wanted}, got {dtype.name}.")
    return NAMES.index(BFLOAT16)


class _Memory:
    """One output, in NumPy's array interface. The array made of it keeps it, and with it the outputs."""

    def __init__(self, tensor: Tensor, dtype: str, outputs: Outputs) -> None:
        shape = tuple(tensor.sizes[: tensor.rank])
        self.__array_interface__ = {"version": 3, "data": (tensor.data, False), "shape": shape, "typestr": dtype}
        self.outputs = outputs


def to_arrays(outputs: Outputs) -> list[NDArray[Any]]:
    """The outputs of a call as arrays, without a copy. They may be written to, and outlive the bundle."""
    arrays = []
    for tensor in outputs.tensors():
        dtype = numpy_dtype(NAMES[tensor.dtype])
        # NumPy's array interface has no bfloat16
        stored = np.asarray(_Memory(tensor, f"<u{dtype.itemsize}" if dtype.kind == "V" else dtype.str, outputs))
        arrays.append(stored.view(dtype))
    return arrays

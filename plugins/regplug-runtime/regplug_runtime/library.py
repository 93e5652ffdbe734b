"""The functions of libregplug, declared as in regplug.h."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from regplug_runtime.errors import BundleError

if TYPE_CHECKING:
    from ctypes import Array

FOLLOW_LINKS = 1


class Tensor(ctypes.Structure):
    """A tensor in CPU memory that somebody else owns."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_uint32),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_void_p),
    )


_library = ctypes.CDLL(f"{__file__.rpartition('/')[0]}/libregplug.so.1")
_pointer = ctypes.c_void_p
_text = ctypes.c_char_p
for _name, _result, _arguments in (
    ("version", _text, ()),
    ("last_error", _text, ()),
    ("open", _pointer, (_text, _text, ctypes.c_uint32)),
    ("close", None, (_pointer,)),
    ("describe", _text, (_pointer,)),
    ("run", _pointer, (_pointer, ctypes.POINTER(Tensor), ctypes.c_size_t)),
    ("num_outputs", ctypes.c_size_t, (_pointer,)),
    ("output", ctypes.c_int32, (_pointer, ctypes.c_size_t, ctypes.POINTER(Tensor))),
    ("free_outputs", None, (_pointer,)),
    ("reload", ctypes.c_int32, (_pointer, _text)),
):
    _function = getattr(_library, f"regplug_{_name}")
    _function.restype, _function.argtypes = _result, _arguments

VERSION: str = _library.regplug_version().decode()


def _error() -> BundleError:
    return BundleError(_library.regplug_last_error().decode())


class Outputs:
    """The outputs of one call. Their memory is freed with this object."""

    def __init__(self, address: int) -> None:
        self._as_parameter_ = _pointer(address)

    # a default argument: when the process ends, the module may be gone before the object
    def __del__(self, free=_library.regplug_free_outputs) -> None:  # type: ignore[no-untyped-def]
        free(self)

    def tensors(self) -> list[Tensor]:
        """Every output, in the manifest's order; valid as long as this object."""
        made = []
        for index in range(_library.regplug_num_outputs(self)):
            made.append(Tensor())
            if _library.regplug_output(self, index, made[-1]):
                raise _error()
        return made


class Handle:
    """A bundle that the library holds open.

    The last reference to this object closes it. A call that runs holds one, so that closing waits for its end.

    Args:
        path: The bundle's folder.
        digest: The digest that it must have; None: any.
        follow_links: Allow symbolic links to files.

    Raises:
        BundleError: The library refuses the bundle.
    """

    def __init__(self, path: bytes, digest: bytes | None, follow_links: bool) -> None:
        self._as_parameter_ = _pointer(_library.regplug_open(path, digest, FOLLOW_LINKS if follow_links else 0))
        if not self._as_parameter_:
            raise _error()

    def __del__(self, close=_library.regplug_close) -> None:  # type: ignore[no-untyped-def]
        close(self)

    def describe(self) -> bytes:
        """The JSON text of what the bundle holds.

        Raises:
            BundleError: There is no memory.
        """
        text: bytes | None = _library.regplug_describe(self)
        if text is None:
            raise _error()
        return text

    def run(self, given: Tensor | Array[Tensor], count: int = 1) -> Outputs:
        """Run the program.

        Args:
            given: The only input, or an array of all of them, by name.
            count: How many there are.

        Raises:
            BundleError: An input does not fit, or the program fails.
        """
        outputs: int | None = _library.regplug_run(self, given, count)
        if outputs is None:
            raise _error()
        return Outputs(outputs)

    def reload(self, weights: bytes) -> None:
        """Load the weights of a safetensors file.

        Raises:
            BundleError: They do not fit; the old ones stay.
        """
        if _library.regplug_reload(self, weights):
            raise _error()

"""An open bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from regplug_runtime.arrays import OWNER, numpy_dtype, to_arrays, to_tensor
from regplug_runtime.errors import BundleError
from regplug_runtime.library import Handle, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from numpy.typing import NDArray

    Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]  # the only input, or all of them by name


class TensorSpec(NamedTuple):
    """An input or output of a bundle."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]  # "B" and "T" may differ between calls


class Bundle:
    """An open bundle; ``regplug_runtime.open`` makes one. Its arguments and errors are there.

    Any number of threads may use it. It is pickled as its path and digest: to unpickle it, the same bundle is opened
    again.

    Attributes:
        path: The bundle's folder, as it was given.
        digest: The sha256 of its manifest.
        holds: ``"readout"`` or ``"conditioner"``.
        strategy: The strategy's full name, such as ``regplug:mean``.
        cond_dim: Width of the conditioning vector.
        isa: The instruction set of the program that runs.
        inputs: What ``run`` or ``run_film`` takes.
        outputs: What it returns; for a conditioner gamma_0, beta_0, gamma_1 and so on.
    """

    def __init__(self, path: str | os.PathLike[str], *, digest: str | None = None, follow_links: bool = False) -> None:
        self.path = os.fsdecode(path)
        self._label = f"bundle {_shown(self.path)}"
        self._handle: Handle | None = Handle(_encoded(self._label, self.path), _utf8(digest), follow_links)
        said = json.loads(self._handle.describe())
        self.digest: str = said["digest"]
        self.holds: str = said["holds"]
        self.strategy: str = said["strategy"]
        self.cond_dim: int = said["cond_dim"]
        self.isa: str = said["isa"]
        self.inputs = _specs(said["inputs"])
        self.outputs = _specs(said["outputs"])
        self._check_dtypes()
        # pathlib is not imported: it takes longer than all of this package
        is_whole = os.path.isabs(self.path)  # noqa: PTH117
        whole = self.path if is_whole else os.path.join(os.getcwd(), self.path)  # noqa: PTH109, PTH118
        self._reopened = (whole, self.digest, follow_links)
        self._reloaded = False

    def run(self, inputs: Inputs) -> NDArray[Any]:
        """Run a readout: registers ``[B, R, D]``, or images with a backbone inside -> ``[B, cond_dim]``.

        Args:
            inputs: The array, or, if the bundle has several ``inputs``, all of them by name:
                ``bundle.run({"tokens": tokens, "mask": mask})``. A mask, ``[B, T]`` of bool, is true where a token
                counts.

        Raises:
            BundleError: An array does not fit, the bundle holds a conditioner or is closed, or the program fails.
        """
        handle = self._open_handle()
        if self.holds == "conditioner":
            raise BundleError(f"{self._label}: holds a conditioner; use run_film.")
        return self._run(handle, inputs)[0]

    def run_film(self, inputs: Inputs) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Run a conditioner: tokens ``[B, T, D]``, or images -> (gamma, beta) for every FiLM layer in order.

        Args:
            inputs: As for ``run``.

        Raises:
            BundleError: An array does not fit, the bundle holds a readout or is closed, or the program fails.
        """
        handle = self._open_handle()
        if self.holds == "readout":
            raise BundleError(f"{self._label}: holds a readout; use run.")
        flat = self._run(handle, inputs)
        return list(zip(flat[0::2], flat[1::2], strict=True))

    def reload(self, path: str | os.PathLike[str]) -> None:
        """Load the weights of a safetensors file. Calls that are running end with the old ones.

        Raises:
            BundleError: They do not fit, and the old ones stay; or the bundle is closed.
        """
        text = os.fsdecode(path)
        self._open_handle().reload(_encoded(f"weights {_shown(text)}", text))
        self._reloaded = True

    def close(self) -> None:
        """Free the program and the weights, after the calls that are running. Arrays stay valid."""
        self._handle = None

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._handle is None

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.isa
        inputs = ", ".join(f"{one.name} [{', '.join(map(str, one.shape))}]" for one in self.inputs)
        return f"<Bundle {self.path!r}: {self.holds} {self.strategy}, {inputs}, {self.inputs[0].dtype}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        self._open_handle()
        if self._reloaded:  # the weights are not those of the folder
            raise BundleError(
                f"{self._label}: expected to be pickled with its own weights, got a bundle that was reloaded; open it "
                "in the worker, and reload it there."
            )
        return _reopen, self._reopened

    def _run(self, handle: Handle, inputs: Inputs) -> list[NDArray[Any]]:
        if not isinstance(inputs, Mapping):
            if len(self.inputs) > 1:
                raise self._other_names([self.inputs[0].name])
            given, _kept = to_tensor(inputs, self.inputs[0].dtype)
            return to_arrays(handle.run(given))
        if set(inputs) != {one.name for one in self.inputs}:
            raise self._other_names(inputs)
        converted = [
            to_tensor(inputs[one.name], one.dtype, f"{OWNER}: {one.name}" if place else OWNER, one.name.encode())
            for place, one in enumerate(self.inputs)
        ]
        tensors = (Tensor * len(converted))(*(tensor for tensor, _ in converted))
        return to_arrays(handle.run(tensors, len(converted)))

    def _other_names(self, got: Iterable[object]) -> BundleError:
        wanted = ", ".join(one.name for one in self.inputs)
        names = ", ".join(_shown(str(name)) for name in got)
        return BundleError(f"{OWNER}: expected inputs [{wanted}], got [{names}].")

    def _open_handle(self) -> Handle:
        handle = self._handle
        if handle is None:
            raise BundleError(f"{self._label}: expected an open bundle, got a closed one; open it again.")
        return handle

    def _check_dtypes(self) -> None:
        for spec in (*self.inputs, *self.outputs):
            try:
                numpy_dtype(spec.dtype)
            except ImportError as error:
                raise BundleError(
                    f"{self._label}: expected ml_dtypes for arrays of {spec.dtype}, got none; pip install ml_dtypes."
                ) from error


def _reopen(path: str, digest: str, follow_links: bool) -> Bundle:
    return Bundle(path, digest=digest, follow_links=follow_links)


def _specs(said: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in said)


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)[1:-1]


def _encoded(label: str, path: str) -> bytes:
    if "\0" in path:  # C would read the part before it
        raise BundleError(f"{label}: expected a path without NUL, got one with NUL.")
    try:
        return os.fsencode(path)
    except UnicodeEncodeError as error:
        raise BundleError(f"{label}: expected a path that a file can have, got one with half a character.") from error


def _utf8(digest: str | None) -> bytes | None:
    if digest is None:
        return None
    if not isinstance(digest, str):
        raise BundleError(f"digest: expected text of 64 hexadecimal digits, got {type(digest).__name__}.")
    try:
        data = digest.encode()
    except UnicodeEncodeError:
        data = b"\0"
    if b"\0" in data:  # C would read the part before it
        raise BundleError(f"digest: expected 64 hexadecimal digits, got '{json.dumps(digest)[1:-1]}'.")
    return data

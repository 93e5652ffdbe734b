"""The checks of a program's inputs, before every run: compiled code reads memory and checks nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regplug.bundle.mask_rules import MaskRules
from regplug.errors import ShapeError
from regplug.format.manifest import InputSpec, Manifest, TensorSpec
from regplug.format.weights import dtype_name
from regplug.registry.dtypes import DTYPES, torch_dtype
from regplug.registry.readout_inputs import MASK
from regplug.torch_private import is_plain, without_subclass

# looked up once: each call needs it
TORCH_DTYPES = {"bool": torch.bool, **{name: torch_dtype(name) for name in DTYPES}}


class InputChecks:
    """What a bundle's program demands of its inputs.

    Args:
        owner: The program, for messages.
        manifest: The bundle's manifest.
    """

    def __init__(self, owner: str, manifest: Manifest) -> None:
        self._owner = owner
        self._input = manifest.input
        self._more = manifest.more_inputs
        self._mask_rules = MaskRules.of(manifest)

    def in_order(self, mask: Tensor | None, vectors: Mapping[str, Tensor]) -> list[Tensor]:
        """The mask and the vectors in the manifest's order.

        Raises:
            ShapeError: One is missing or unknown.
        """
        if not isinstance(vectors, Mapping):
            raise ShapeError(f"{self._owner}: vectors: expected a tensor by each name, got {type(vectors).__name__}.")
        given = {**({} if mask is None else {MASK: mask}), **{str(name): one for name, one in vectors.items()}}
        names = [one.name for one in self._more]
        if sorted(given) != sorted(names):
            raise self._other_names([self._input.name, *map(str, given)])
        return [given[name] for name in names]

    def checked(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The inputs as plain tensors, all checked.

        Raises:
            ShapeError: Rank, sizes, batch, dtype, device or number of one of them do not fit, or the mask leaves a
                sample without tokens.
        """
        if len(inputs) != 1 + len(self._more):
            names = [self._input.name, *(one.name for one in self._more)]
            raise self._other_names(names[: len(inputs)] + ["another"] * (len(inputs) - len(names)))
        given = inputs[0]
        if type(given) is not Tensor or not is_plain(given):
            given = _plain(self._owner, self._input, given)
        check_input(self._owner, self._input, given)
        if not self._more:
            return (given,)
        more = [self._checked(spec, one, given) for spec, one in zip(self._more, inputs[1:], strict=True)]
        if self._mask_rules is not None:
            self._mask_rules.check(self._owner, more[0])
        return (given, *more)

    def _checked(self, spec: TensorSpec, one: Tensor, given: Tensor) -> Tensor:
        owner = f"{self._owner}: {spec.name}"
        if type(one) is not Tensor or not is_plain(one):
            one = _plain(owner, spec, one)
        batch, length = given.shape[:2]
        if list(one.shape) != [batch, length if spec.shape[1] == "T" else spec.shape[1]]:
            free = f" and T={length}" if spec.shape[1] == "T" else ""
            raise ShapeError(
                f"{self._owner}: expected {spec.name} [B, {spec.shape[1]}] with B={batch}{free}, got {list(one.shape)}."
            )
        _check_kind(owner, spec, one)
        return one

    def _other_names(self, got: Sequence[str]) -> ShapeError:
        wanted = ", ".join([self._input.name, *(one.name for one in self._more)])
        return ShapeError(f"{self._owner}: expected inputs [{wanted}], got [{', '.join(got)}].")


def _plain(owner: str, signature: TensorSpec, given: Tensor) -> Tensor:
    """Copy a tensor of another kind into a plain tensor: compiled code only reads memory.

    Raises:
        ShapeError: Its numbers are not in CPU memory, or it is not a tensor.
    """
    if not isinstance(given, Tensor):
        raise ShapeError(f"{owner}: expected a tensor, got {type(given).__name__}.")
    if type(given).__torch_dispatch__ is Tensor.__torch_dispatch__ and not given.is_nested:
        if given.layout == torch.strided and given.device.type == "cpu":
            plain = without_subclass(given).resolve_neg().resolve_conj()
            if is_plain(plain):
                return plain
        if isinstance(signature, InputSpec):
            check_input(owner, signature, given)  # its message names a wrong dtype, layout or device
        _check_kind(owner, signature, given)
    raise ShapeError(
        f"{owner}: expected a plain tensor, got {_kind_of(given)}; call the program with plain tensors, outside of "
        "torch.func's transforms."
    )


def _kind_of(given: Tensor) -> str:
    if given.is_nested:
        return "a nested one"
    return type(given).__name__ if type(given) is not Tensor else "one that holds no numbers of its own"


def check_input(owner: str, signature: InputSpec, given: Tensor) -> None:
    """Refuse an input that the program would read out of bounds, or answer wrongly.

    Raises:
        ShapeError: Rank, sizes, batch, dtype or device do not fit the signature.
    """
    sizes, least, wanted = list(given.shape), "", signature.shape
    fits = len(sizes) == len(wanted) and all(w in ("B", "T", size) for w, size in zip(wanted, sizes, strict=True))
    if fits and sizes[0] < signature.min_batch:
        least = f" with B >= {signature.min_batch}"
    elif fits and sizes[1] < (signature.min_tokens or 0):
        least = f" with T >= {signature.min_tokens}"
    if not fits or least:
        wanted_shape = ", ".join(map(str, wanted))
        raise ShapeError(f"{owner}: expected {signature.name} [{wanted_shape}]{least}, got {sizes}.")
    _check_kind(owner, signature, given)


def _check_kind(owner: str, signature: TensorSpec, given: Tensor) -> None:
    if given.dtype != TORCH_DTYPES[signature.dtype]:
        raise ShapeError(f"{owner}: expected dtype {signature.dtype}, got {dtype_name(given)}.")
    if given.device.type != "cpu":
        raise ShapeError(f"{owner}: expected device cpu, got {given.device}.")
    if given.layout != torch.strided:
        raise ShapeError(f"{owner}: expected a dense tensor, got another layout.")

"""Several readouts of one token sequence, each of a group of its tokens, and vectors, concatenated."""

# TorchScript reads Final[...] only when annotations are not postponed
from collections.abc import Callable, Mapping
from typing import Any, Final, Optional

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from regplug.errors import ShapeError, SpecError
from regplug.nn.readouts.checks import check_registers
from regplug.nn.readouts.join_cuts import Cuts, cuts_of
from regplug.nn.readouts.join_modules import JoinedReadout, JoinedVector, Mask, Vectors
from regplug.nn.readouts.join_parts import OWNER, JoinPart, PlacedPart, place_parts
from regplug.nn.readouts.masking import name_of_dtype
from regplug.nn.readouts.sizes import check_sizes
from regplug.registry.spec import ReadoutSpec, specify


class Parts(nn.ModuleDict):
    """The parts by their names. TorchScript gives two dictionaries of the same keys one type, and with it one order."""

    in_order: Final[list[str]]

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__(parts)
        self.in_order = list(parts)


class TokenJoin(nn.Module):
    """Readouts of several groups of tokens, and vectors, concatenated: ``c = [c_1 || ... || c_k]``.

    It reads a whole token sequence: its "registers" are all T tokens. DINOv2's linear input is such a join, of the
    class token and the mean of the patches. A vector is an input of its own, as a robot's state or a time. Keys are
    ``parts.NAME.readout.*``.
    Source: DINOv2's linear input (Oquab et al., 2023, arXiv:2304.07193); the vectors are those of a diffusion policy's
    ``global_cond`` (Chi et al., 2023, arXiv:2303.04137).

    Args:
        num_registers: Tokens per sample, T >= 1; None for any number.
        hidden_dim: Width of a token, D.
        parts: The parts, in the order of their vectors; ``cond_dim`` is the sum of their widths.

    Raises:
        SpecError: A size is not a positive integer; there are no parts that read tokens; a part has no tokens, the name
            of another one, or options that its strategy refuses; or T is None, and a strategy needs a fixed number.
        NameLookupError: A part's strategy is not installed.

    Example:
        >>> from regplug.nn.readouts.join_parts import JoinPart
        >>> parts = (JoinPart("cls", "mean", 0, 1), JoinPart("patches", "mean", 5), JoinPart("state", width=7))
        >>> TokenJoin(201, 384, parts)(torch.zeros(2, 201, 384), vectors={"state": torch.zeros(2, 7)}).shape
        torch.Size([2, 775])
    """

    num_registers: Final[Optional[int]]  # noqa: UP045
    hidden_dim: Final[int]
    out_dim: Final[int]
    lead: Final[int]
    min_tokens: Final[int]
    takes_mask: Final[bool]
    is_cut: Final[bool]
    sizes: Final[list[int]]
    rest: Final[Optional[int]]  # noqa: UP045
    vector_widths: dict[str, int]
    __jit_unused_properties__ = ("flop_count",)

    def __init__(self, num_registers: int | None, hidden_dim: int, parts: tuple[JoinPart, ...]) -> None:
        check_sizes(OWNER, **({} if num_registers is None else {"num_registers": num_registers}), hidden_dim=hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.min_tokens = num_registers or max(map(_least, parts))
        found = place_parts(num_registers, parts)
        spans = [(placed.first, _stop(placed)) for placed in found if placed.part.width is None]
        cuts = cuts_of(spans, num_registers, self.min_tokens)
        self.is_cut = cuts is not None
        self.sizes, self.rest, places = cuts or Cuts([], None, list(range(len(spans))))
        built: dict[str, nn.Module] = {}
        width = 0
        for placed in found:
            name = placed.part.name
            if hasattr(nn.ModuleDict, name) or name == "in_order":
                raise SpecError(f"{OWNER}: part {name!r}: expected a name that nn.ModuleDict does not use itself.")
            place = 0 if placed.part.width else places.pop(0)
            built[name], own_width = _build(placed, hidden_dim, place)
            width += own_width
        self.parts = Parts(built)
        self.out_dim = width
        readouts = list(built.values())
        self.lead = _lead(readouts)
        self.takes_mask = any(isinstance(part, JoinedReadout) and part.takes_mask for part in readouts)
        self.vector_widths = {part.name: part.width for part in readouts if isinstance(part, JoinedVector)}

    @property
    def flop_count(self) -> Callable[[int], int]:
        """The sum of the parts' ``flop_count(dim)``; there is none if a part has none."""
        counts = []
        for part in self.parts.values():
            if isinstance(part, JoinedVector):
                counts += [lambda dim, part=part: part.readout.flop_count(part.width)] if part.has_readout else []
            else:
                counts.append(part.readout.flop_count)  # type: ignore[union-attr, arg-type]
        return lambda dim: sum(count(dim) for count in counts)

    def forward(self, registers: Tensor, mask: Mask = None, vectors: Vectors = None) -> Tensor:
        """Read all tokens ``[B, T, D]``, and the vectors by their names, as ``[B, cond_dim]``.

        Args:
            registers: The tokens.
            mask: ``[B, T]``, bool, true where a token counts; for the parts that take one.
            vectors: For each vector its name and ``[B, width]``.

        Raises:
            ShapeError: An input has another shape, a vector is missing or unknown, no part takes a mask, or a part that
                takes none has padding.
        """
        # shape makes a list in TorchScript
        if (
            registers.dim() != 3
            or registers.size(1) < self.min_tokens
            or (self.num_registers is not None and registers.size(1) > self.min_tokens)
            or registers.size(2) != self.hidden_dim
        ):
            self.refuse_registers(registers)
        if not is_scripting():
            _check_kinds(mask, vectors)
        if mask is not None:
            self.check_mask(registers, mask)
        if vectors is not None and len(vectors) != len(self.vector_widths):
            self.refuse_names(vectors)
        if not is_scripting():
            return self._read(registers, mask, vectors)
        pieces = self.cut(registers)
        lead = registers
        for index, part in enumerate(self.parts.values()):
            if index == self.lead:
                lead = part(pieces, registers, mask, vectors)
        if registers.dtype != lead.dtype:
            pieces = self.cut(registers.to(lead.dtype))
        read: list[Tensor] = []
        for index, part in enumerate(self.parts.values()):
            read.append(lead if index == self.lead else part(pieces, registers, mask, vectors))
        joined = torch.cat(read, dim=1)
        return joined if joined.dtype == lead.dtype else in_dtype_of_tokens(joined, lead)

    def _read(self, tokens: Tensor, mask: Mask, vectors: Vectors) -> Tensor:
        """As the scripted lines of ``forward``, without the calls of the parts' wrappers, a microsecond each."""
        parts: list[Any] = [*self._modules["parts"]._modules.values()]  # type: ignore[union-attr]
        pieces = self.cut(tokens)
        first = parts[self.lead]
        lead = first.read(pieces, tokens, mask, vectors)
        if lead.dtype != tokens.dtype:
            pieces = self.cut(tokens.to(lead.dtype))
        read = [lead if part is first else part.read(pieces, tokens, mask, vectors) for part in parts]
        joined = torch.cat(read, 1)
        return joined if joined.dtype is lead.dtype else in_dtype_of_tokens(joined, lead)

    def cut(self, tokens: Tensor) -> list[Tensor]:
        """The tokens of each group, at its place in the list."""
        if not self.is_cut:
            pieces: list[Tensor] = []
            for part in self.parts.values():
                part.cut(tokens, pieces)  # type: ignore[operator]
            return pieces
        if len(self.sizes) == 1:
            return [tokens]
        if self.rest is None:
            return tokens.split_with_sizes(self.sizes, 1)  # type: ignore[return-value]
        sizes = list(self.sizes)
        sizes[self.rest] += tokens.shape[1]
        return tokens.split_with_sizes(sizes, 1)  # type: ignore[return-value]

    def refuse_registers(self, registers: Tensor) -> None:
        """Say which tokens are expected."""
        check_registers(registers, "readout 'join'", self.num_registers, self.hidden_dim)
        raise ShapeError(
            f"readout 'join': expected registers [B, N, {self.hidden_dim}] with N >= {self.min_tokens}, got "
            f"{list(registers.shape)}."
        )

    def check_mask(self, registers: Tensor, mask: Tensor) -> None:
        """Refuse a mask if no part takes one, and one of another shape or dtype."""
        if not self.takes_mask:
            raise ShapeError("readout 'join': expected no mask, as no part takes one, got a mask.")
        if mask.dtype != torch.bool:
            raise ShapeError(f"readout 'join': mask: expected dtype bool, got {name_of_dtype(mask)}.")
        if mask.dim() != 2 or mask.shape[0] != registers.shape[0] or mask.shape[1] != registers.shape[1]:
            raise ShapeError(f"readout 'join': expected mask {list(registers.shape[:2])}, got {list(mask.shape)}.")

    def refuse_names(self, vectors: dict[str, Tensor]) -> None:
        """Say which vectors are expected."""
        wanted, got = ", ".join(list(self.vector_widths.keys())), ", ".join([str(name) for name in vectors])
        raise ShapeError(f"readout 'join': expected the vectors [{wanted}], got [{got}].")


def in_dtype_of_tokens(joined: Tensor, lead: Tensor) -> Tensor:
    """Parts of several dtypes, joined, in the dtype of the leading part's; numbers are not rounded to integers."""
    if not lead.is_floating_point():
        raise ShapeError(
            f"readout 'join': expected tokens of a floating-point dtype next to other parts of one, got "
            f"{name_of_dtype(lead)}."
        )
    return joined.to(lead.dtype)


def _check_kinds(mask: object, vectors: object) -> None:
    """Refuse what is no tensor, before torch does it in words of its own; TorchScript does by itself."""
    if mask is not None and not isinstance(mask, Tensor):
        raise ShapeError(f"readout 'join': mask: expected a tensor, got {type(mask).__name__}.")
    if vectors is None:
        return
    if not isinstance(vectors, Mapping):
        raise ShapeError(f"readout 'join': vectors: expected a tensor by each name, got {type(vectors).__name__}.")
    for name, vector in vectors.items():
        if not isinstance(vector, Tensor):
            raise ShapeError(f"readout 'join': {name}: expected a tensor, got {type(vector).__name__}.")


def _lead(parts: list[nn.Module]) -> int:
    """The part that decides the dtype: the first one with weights, else the first one that reads tokens."""
    weighted = [i for i, part in enumerate(parts) if any(one.is_floating_point() for one in part.parameters())]
    return weighted[0] if weighted else next(i for i, part in enumerate(parts) if isinstance(part, JoinedReadout))


def _build(placed: PlacedPart, hidden_dim: int, place: int) -> tuple[nn.Module, int]:
    """A part's module, and its width; ``place`` is that of its tokens."""
    part = placed.part
    if part.width is not None:
        spec = _spec(placed, 1, part.width)
        return JoinedVector(
            part.name, part.width, spec.build() if spec else None
        ), spec.cond_dim if spec else part.width
    spec = _spec(placed, placed.count, hidden_dim)
    if spec is None:
        raise SpecError(f"{OWNER}: part {part.name!r}: expected a strategy, got none.")
    return JoinedReadout(part.name, placed.first, _stop(placed), place, spec.build()), spec.cond_dim


def _stop(placed: PlacedPart) -> int | None:
    return placed.first + placed.count if placed.count and placed.first >= 0 else placed.part.stop


def _spec(placed: PlacedPart, count: int | None, width: int) -> ReadoutSpec | None:
    return None if placed.entry is None else specify(placed.entry, count, width, placed.part.options)


def _least(part: JoinPart) -> int:
    """The shortest sequence in which a part has all its tokens."""
    if part.start < 0:
        return -part.start
    return part.stop if part.stop is not None and part.stop > 0 else part.start + 1 - (part.stop or 0)

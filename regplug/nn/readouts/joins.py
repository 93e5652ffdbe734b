"""Several readouts of one token sequence, each of a group of its tokens, concatenated."""

# TorchScript reads Final[...] only when annotations are not postponed
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from regplug.errors import SpecError
from regplug.nn.readouts.checks import check_registers
from regplug.nn.readouts.join_parts import OWNER, JoinPart, place_parts
from regplug.nn.readouts.sizes import check_sizes
from regplug.registry.spec import specify


class JoinedReadout(nn.Module):
    """A readout of the tokens ``tokens[:, first : first + count]``."""

    first: Final[int]
    count: Final[int]

    def __init__(self, first: int, count: int, readout: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.count = count
        self.readout = readout

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, T, D]`` -> the readout's ``[B, width]``."""
        read: Tensor = self.readout(tokens[:, self.first : self.first + self.count])
        return read


class TokenJoin(nn.Module):
    """Readouts of several groups of tokens, concatenated: ``c = [c_1 || ... || c_k]``.

    It reads a whole token sequence: its "registers" are all T tokens. DINOv2's linear input is such a join, of the
    class token and the mean of the patches. Keys are ``parts.NAME.readout.*``.
    Source: DINOv2's linear input (Oquab et al., 2023, arXiv:2304.07193).

    Args:
        num_registers: Tokens per sample, T >= 1.
        hidden_dim: Width of a token, D.
        parts: The readouts, in the order of their vectors; ``cond_dim`` is the sum of their widths.

    Raises:
        SpecError: A size is not a positive integer; there are no parts; a part has no tokens, the name of another one,
            or options that its strategy refuses.
        NameLookupError: A part's strategy is not installed.

    Example:
        >>> from regplug.nn.readouts.join_parts import JoinPart
        >>> parts = (JoinPart("cls", "mean", 0, 1), JoinPart("patches", "mean", 5))
        >>> TokenJoin(201, 384, parts)(torch.zeros(2, 201, 384)).shape
        torch.Size([2, 768])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    out_dim: Final[int]
    lead: Final[int]
    __jit_unused_properties__ = ("flop_count",)

    def __init__(self, num_registers: int, hidden_dim: int, parts: tuple[JoinPart, ...]) -> None:
        check_sizes(OWNER, num_registers=num_registers, hidden_dim=hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.parts = nn.ModuleDict()
        width = 0
        lead = -1
        for placed in place_parts(num_registers, parts):
            name = placed.part.name
            if hasattr(self.parts, name):
                raise SpecError(f"{OWNER}: part {name!r}: expected a name that nn.ModuleDict does not use itself.")
            spec = specify(placed.entry, placed.count, hidden_dim, placed.part.options)
            self.parts[name] = JoinedReadout(placed.first, placed.count, spec.build())
            width += spec.cond_dim
            if lead < 0 and any(weight.is_floating_point() for weight in self.parts[name].parameters()):
                lead = len(self.parts) - 1
        self.out_dim = width
        self.lead = lead  # the first part with weights: all parts compute in its dtype

    @property
    def flop_count(self) -> Callable[[int], int]:
        """The sum of the parts' ``flop_count(dim)``; there is none if a part has none."""
        parts: Any = self.parts.values()
        counts = [part.readout.flop_count for part in parts]
        return lambda dim: sum(count(dim) for count in counts)

    def forward(self, registers: Tensor) -> Tensor:
        """Read all tokens ``[B, T, D]`` as ``[B, cond_dim]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'join'", self.num_registers, self.hidden_dim)
        lead = registers
        for index, part in enumerate(self.parts.values()):
            if index == self.lead:
                lead = part(registers)
        if registers.dtype != lead.dtype:
            registers = registers.to(lead.dtype)
        read: list[Tensor] = []
        for index, part in enumerate(self.parts.values()):
            read.append(lead if index == self.lead else part(registers))
        return torch.cat(read, dim=1)

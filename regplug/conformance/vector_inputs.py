"""Makes a join with vectors a readout of registers alone, so that every check can run it."""

from typing import Any

from torch import Tensor, nn

from regplug.registry.readout_inputs import vector_widths


def vectors_from(registers: Tensor, widths: dict[str, int]) -> dict[str, Tensor]:
    """A vector ``[B, width]`` for each name, of the registers' own numbers: each sample's vectors go where it goes."""
    numbers = registers.flatten(1) if registers.dim() > 1 else registers.reshape(1, -1)
    total = sum([width for width in widths.values()])  # noqa: C416  # TorchScript's sum takes lists
    if numbers.shape[1] > 0:
        numbers = numbers.repeat(1, total // numbers.shape[1] + 1)
    vectors: dict[str, Tensor] = {}
    start = 0
    for name, width in widths.items():
        vectors[name] = numbers[:, start : start + width]
        start += width
    return vectors


class ReadoutOfRegisters(nn.Module):
    """``[B, R, D] -> [B, cond_dim]``: a join, given vectors from ``vectors_from``.

    Args:
        join: A readout that takes vectors.
    """

    widths: dict[str, int]

    def __init__(self, join: nn.Module) -> None:
        super().__init__()
        self.join = join
        self.widths = dict(vector_widths(join))
        self.out_dim = join.out_dim
        self.min_tokens = join.min_tokens

    def forward(self, registers: Tensor) -> Tensor:
        """The join's output."""
        vector: Tensor = self.join(registers, None, vectors_from(registers, self.widths))
        return vector

    def __getattr__(self, name: str) -> Any:
        if name == "flop_count":
            return self.join.flop_count
        return super().__getattr__(name)


def of_registers(readout: nn.Module) -> nn.Module:
    """The readout itself, or a ``ReadoutOfRegisters`` if it takes vectors."""
    return ReadoutOfRegisters(readout) if vector_widths(readout) else readout


def join_in(readout: nn.Module) -> nn.Module:
    """What ``of_registers`` was given."""
    return readout.join if isinstance(readout, ReadoutOfRegisters) else readout

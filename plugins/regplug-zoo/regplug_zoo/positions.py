"""Readouts of text encoders: the first or last token that counts, and averages by length or position. No parameters."""

from typing import Final

import torch
from torch import Tensor, nn

from regplug.nn import check_mask, check_registers, fixed_count, show_settings, zero_padding
from regplug_zoo.sizes import first_token_width, last_token_width, mean_sqrt_len_width, weighted_mean_width


def token_at(positions: Tensor, registers: Tensor) -> Tensor:
    """The token ``[B, D]`` at each sample's position, of ``[B]``; zeros for a position outside the sequence."""
    # a sum of one token: for gather, Inductor writes a check that libregplug does not have
    places = torch.arange(registers.shape[1], device=registers.device)
    return zero_padding(registers, positions.unsqueeze(1) == places).sum(dim=1, dtype=registers.dtype)


class RegisterFirstToken(nn.Module):
    """The first token that counts: ``c = x_1``. No parameters.

    With a mask it is the first token for which the mask is true, so padding may be on either side.
    Source: BERT (Devlin et al., 2019, arXiv:1810.04805), the class token before its pooler.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterFirstToken(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        out_dim = first_token_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: none, a token is copied."""
        fixed_count("RegisterFirstToken", self.num_registers)
        return 0

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'first-token'", self.num_registers, self.hidden_dim)
        if mask is None:
            return registers[:, 0].clone()
        check_mask(mask, registers, "readout 'first-token'")
        count = registers.shape[1]
        first = torch.arange(count, device=mask.device).masked_fill(~mask, count).amin(dim=1)
        return token_at(first, registers)

    extra_repr = show_settings


class RegisterLastToken(nn.Module):
    """The last token that counts: ``c = x_R``. No parameters.

    With a mask it is the last token for which the mask is true, so padding may be on either side. A causal model's last
    token has seen all others.
    Source: GPT (Radford et al., 2018), whose classifiers read the last token.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterLastToken(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        out_dim = last_token_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: none, a token is copied."""
        fixed_count("RegisterLastToken", self.num_registers)
        return 0

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'last-token'", self.num_registers, self.hidden_dim)
        if mask is None:
            return registers[:, -1].clone()
        check_mask(mask, registers, "readout 'last-token'")
        last = torch.arange(registers.shape[1], device=mask.device).masked_fill(~mask, -1).amax(dim=1)
        return token_at(last, registers)

    extra_repr = show_settings


class RegisterMeanSqrtLen(nn.Module):
    """The sum, divided by the root of the number of tokens: ``c = (1 / sqrt(R)) sum_r x_r``. No parameters.

    Between sum and mean: of independent tokens its deviation does not depend on their number. With a mask, R is the
    number of tokens that count. 16-bit registers are summed in float32.
    Source: Universal Sentence Encoder (Cer et al., 2018, arXiv:1803.11175); sentence-transformers,
    ``mean_sqrt_len_tokens``.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterMeanSqrtLen(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        out_dim = mean_sqrt_len_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: R - 1 additions and one division per channel."""
        num = fixed_count("RegisterMeanSqrtLen", self.num_registers)
        return num * dim

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reduce ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'mean-sqrt-len'", self.num_registers, self.hidden_dim)
        wide = torch.promote_types(registers.dtype, torch.float32)
        if mask is None:
            answer = registers.sum(dim=1, dtype=wide) / registers.shape[1] ** 0.5
        else:
            check_mask(mask, registers, "readout 'mean-sqrt-len'")
            total = zero_padding(registers, mask).sum(dim=1, dtype=wide)
            answer = total / mask.sum(dim=1, keepdim=True).clamp(min=1).to(wide).sqrt()
        # integers would lose the fraction
        return answer.to(registers.dtype) if registers.is_floating_point() else answer

    extra_repr = show_settings


class RegisterWeightedMean(nn.Module):
    """A mean that weights each token by its position: ``c = sum_r r x_r / sum_r r``. No parameters.

    With a mask, r counts the tokens for which the mask is true, so padding on either side and between tokens changes
    nothing. A causal model's later tokens have seen more. 16-bit registers are computed in float32.
    Source: SGPT (Muennighoff, 2022, arXiv:2202.08904); sentence-transformers, ``weightedmean``.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterWeightedMean(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        out_dim = weighted_mean_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of the sum, and one division for each weight."""
        num = fixed_count("RegisterWeightedMean", self.num_registers)
        return 2 * num * dim + num

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reduce ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'weighted-mean'", self.num_registers, self.hidden_dim)
        if mask is None:
            ranks = torch.arange(1, registers.shape[1] + 1, device=registers.device).expand(registers.shape[0], -1)
        else:
            check_mask(mask, registers, "readout 'weighted-mean'")
            registers = zero_padding(registers, mask)
            ranks = mask.cumsum(dim=1) * mask
        wide = registers.to(torch.promote_types(registers.dtype, torch.float32))
        weights = ranks.to(wide.dtype) / ranks.sum(dim=1, keepdim=True).clamp(min=1)
        answer = (weights.unsqueeze(2) * wide).sum(dim=1)  # autocast would compute a matrix product in 16 bit
        # integers would lose the fraction
        return answer.to(registers.dtype) if registers.is_floating_point() else answer

    extra_repr = show_settings

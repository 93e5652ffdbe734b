"""``make bench``: what joins and masks cost in Python, compared with the same by hand and with other packages.

Each row is timed in turns in one run and printed with its ratio. It asserts nothing, because timings vary between runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench import HIDDEN_DIM, PARTS, TOKENS, out, said
from rich.table import Table
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

import regplug
from regplug.commands.bench.timing import interleaved, spread_of
from regplug.nn.readouts.join_parts import JoinPart

STATE = 7
BATCHES = (1, 8, 64)
Row = tuple[str, int, Callable[[], object], Callable[[], object]]


class ByHand(nn.Module):
    """What one writes without a join: the same readouts, and ``torch.cat``.

    Args:
        num_registers: Tokens per sample, T.
        hidden_dim: D.
    """

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__()
        self.cls = regplug.create("mean", num_registers=1, hidden_dim=hidden_dim)
        self.compress = regplug.create("compress-concat", num_registers=4, hidden_dim=hidden_dim, compressed_dim=96)
        self.patches = regplug.create("mean", num_registers=num_registers - 5, hidden_dim=hidden_dim)

    def forward(self, registers: Tensor) -> Tensor:
        """``[B, T, D]`` -> ``[B, 3 D]``."""
        parts = [self.cls(registers[:, :1]), self.compress(registers[:, 1:5]), self.patches(registers[:, 5:])]
        return torch.cat(parts, dim=1)


class ByHandWithState(ByHand):
    """The same, next to a robot's state."""

    def forward(self, registers: Tensor, state: Tensor) -> Tensor:  # type: ignore[override]
        """``[B, T, D]`` and ``[B, 7]`` -> ``[B, 3 D + 7]``."""
        parts = [self.cls(registers[:, :1]), self.compress(registers[:, 1:5]), self.patches(registers[:, 5:]), state]
        return torch.cat(parts, dim=1)


class ByHandWithVectors(ByHandWithState):
    """The same, with the inputs of a join: TorchScript takes 3 us to read a dictionary from Python."""

    def forward(self, registers: Tensor, vectors: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        """``[B, T, D]`` and a state ``[B, 7]`` -> ``[B, 3 D + 7]``."""
        state = vectors["state"]
        parts = [self.cls(registers[:, :1]), self.compress(registers[:, 1:5]), self.patches(registers[:, 5:]), state]
        return torch.cat(parts, dim=1)


def in_modes(module: nn.Module) -> dict[str, Any]:
    """The module in eager mode, compiled, and scripted."""
    return {
        "eager": module,
        "torch.compile": torch.compile(module, fullgraph=True, dynamic=False),
        "TorchScript": torch.jit.freeze(torch.jit.script(module)),
    }


def joins() -> Iterator[Row]:
    """A join against the same by hand, with and without a vector."""
    sizes = {"num_registers": TOKENS, "hidden_dim": HIDDEN_DIM}
    three = regplug.create("join", **sizes, parts=PARTS).eval()
    four = regplug.create("join", **sizes, parts=(*PARTS, JoinPart("state", width=STATE))).eval()
    by_hands = [in_modes(one(**sizes).eval()) for one in (ByHand, ByHandWithVectors, ByHandWithState)]
    of_groups, with_state = in_modes(three), in_modes(four)
    for batch in BATCHES:
        tokens, state = torch.randn(batch, TOKENS, HIDDEN_DIM), torch.randn(batch, STATE)
        vectors = {"state": state}
        for mode, join in of_groups.items():
            by_hand, by_hand_with_vectors, by_hand_with_state = (one[mode] for one in by_hands)
            given = partial(with_state[mode], tokens, None, vectors)
            yield f"join of 3 groups, {mode}", batch, partial(join, tokens), partial(by_hand, tokens)
            yield f"and a vector, {mode}", batch, given, partial(by_hand_with_vectors, tokens, vectors)
            yield f"by hand as a tensor, {mode}", batch, given, partial(by_hand_with_state, tokens, state)


def masked() -> Iterator[Row]:
    """Masked readouts against other packages' code for the same."""
    mean = regplug.create("mean", num_registers=None, hidden_dim=HIDDEN_DIM).eval()
    attention = regplug.create("attention", num_registers=None, hidden_dim=HIDDEN_DIM).eval()
    norm = partial(nn.LayerNorm, eps=1e-6)
    latent = AttentionPoolLatent(HIDDEN_DIM, num_heads=8, mlp_ratio=4.0, norm_layer=norm).eval()
    for batch in BATCHES:
        for length in (16, 196):
            tokens = torch.randn(batch, length, HIDDEN_DIM)
            mask = (torch.arange(length) < 3 * length // 4).expand(batch, length).contiguous()
            ours, theirs = partial(mean, tokens, mask), partial(mean_of_sentence_transformers, tokens, mask)
            yield f"masked mean, N={length}", batch, ours, theirs
            theirs = partial(latent, tokens, attn_mask=mask[:, None, None])
            yield f"masked attention, N={length}", batch, partial(attention, tokens, mask), theirs
            yield f"attention without a mask, N={length}", batch, partial(attention, tokens), partial(latent, tokens)


def mean_of_sentence_transformers(tokens: Tensor, mask: Tensor) -> Tensor:
    """The steps of sentence-transformers' mean pooling: NaN in the padding gives NaN."""
    counted = mask.unsqueeze(-1).expand(tokens.size()).to(tokens.dtype)
    return (tokens * counted).sum(1) / counted.sum(1).clamp(min=1e-9)


def show(title: str, other: str, rows: Iterator[Row]) -> None:
    """One table of microseconds and ratios."""
    table = Table(title=title)
    for column in ("", "B", "regplug us", f"{other} us", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    with torch.inference_mode():
        for name, batch, ours, theirs in rows:
            for _ in range(3):  # compiles
                ours(), theirs()
            mine, others = (spread_of(times).median for times in interleaved([ours, theirs], torch.device("cpu"), None))
            table.add_row(name, str(batch), f"{1e6 * mine:.1f}", f"{1e6 * others:.1f}", f"{mine / others:.2f}")
    out.print(table)


def main() -> None:
    """Run it all."""
    torch.set_num_threads(1)
    with said("joins"):
        show("a join, and the same readouts with torch.cat by hand", "by hand", joins())
    with said("masks"):
        show("masks, and the same by sentence-transformers' steps and timm", "other", masked())


if __name__ == "__main__":
    main()

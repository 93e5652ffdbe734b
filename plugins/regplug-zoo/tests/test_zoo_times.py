"""``sinusoidal`` compared with the time embedding that diffusion models use, and in few bits."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

import regplug
from regplug_zoo.times import SinusoidalEmbedding

STEPS = torch.tensor([[0.0], [0.25], [1.0], [50.0], [99.0]])


@pytest.mark.parametrize(("dim", "max_period"), [(4, 10000.0), (32, 10000.0), (128, 100.0)])
def test_it_is_the_embedding_of_ddpm(dim: int, max_period: float) -> None:
    wanted = get_timestep_embedding(STEPS[:, 0], dim, downscale_freq_shift=1, max_period=int(max_period))
    got = SinusoidalEmbedding(1, 1, dim, max_period)(STEPS[:, None])
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(got, SinusoidalEmbedding(1, 1, dim, 2 * max_period)(STEPS[:, None]), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_computed_in_float32(dtype: torch.dtype) -> None:
    readout = SinusoidalEmbedding(1, 1, 32)
    got = readout(STEPS[:, None].to(dtype))
    assert got.dtype == dtype
    assert torch.equal(got, readout(STEPS[:, None]).to(dtype))  # these steps are exact in sixteen bits


def test_whole_numbers_are_taken() -> None:
    readout = SinusoidalEmbedding(1, 1, 32)
    whole = STEPS[-3:, None]
    torch.testing.assert_close(readout(whole.long()), readout(whole))


def test_the_numbers_of_a_wider_vector_are_embedded_one_after_the_other() -> None:
    pair = torch.tensor([[3.0, 0.5]])
    one = SinusoidalEmbedding(1, 1, 8)
    wanted = torch.cat([one(pair[:, None, :1]), one(pair[:, None, 1:])], 1)
    assert torch.equal(SinusoidalEmbedding(1, 2, 8)(pair[:, None]), wanted)


def test_a_join_reads_its_time_so() -> None:
    layout = regplug.TokenLayout(num_registers=4, hidden_dim=24, start=1)
    spec = regplug.join(registers="pool", time=(1, "sinusoidal", {"dim": 16})).resolve(layout, 9)
    assert spec.cond_dim == 24 + 16
    got = spec.build()(torch.zeros(5, 9, 24), vectors={"time": STEPS})
    assert torch.equal(got[:, 24:], SinusoidalEmbedding(1, 1, 16)(STEPS[:, None]))

"""Conditioning vectors of other packages, each as a join."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.readouts import moved
from torch import Tensor
from torch_geometric.nn.aggr import MultiAggregation
from transformers import RadioConfig, RadioModel

import regplug
from regplug.nn.readouts.join_parts import JoinPart

D = 24

# ---- PyG's MultiAggregation: a graph's nodes are a sample's tokens

# PyG's name -> ours, and the largest relative error in float64
AGGREGATIONS = {
    "mean": ("mean", 1e-15),
    "max": ("max", 0.0),
    "sum": ("sum", 1e-15),
}


def graphs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes of several graphs, one after another, and which graph each is in; the same as padded tokens and a mask."""
    counts = torch.tensor([3, 1, 6, 4])
    nodes = torch.randn(int(counts.sum()), D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(8) < counts[:, None]
    tokens = torch.full((4, 8, D), torch.nan, dtype=torch.float64)
    tokens[mask] = nodes
    return nodes, torch.repeat_interleave(torch.arange(4), counts), tokens, mask


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("names", [("mean", "max", "sum"), ("sum", "mean"), ("max",), ("max", "sum", "mean")])
def test_pygs_multi_aggregation_is_a_join_of_the_same_tokens(names: tuple[str, ...]) -> None:
    nodes, batch, tokens, mask = graphs()
    expected = MultiAggregation([*names], mode="cat")(nodes, batch)
    parts = [JoinPart(f"by_{name}", AGGREGATIONS[name][0]) for name in names]
    spec = regplug.resolve("join", num_registers=None, hidden_dim=D, parts=parts)
    found = spec.build()(tokens, mask)
    assert spec.cond_dim == expected.shape[1] == D * len(names)
    for name, one, other in zip(names, found.split(D, 1), expected.split(D, 1), strict=True):
        assert error(one, other) <= AGGREGATIONS[name][1]
    if len(names) > 1:
        other = regplug.resolve("join", num_registers=None, hidden_dim=D, parts=parts[::-1]).build()
        assert error(other(tokens, mask), expected) > 0.01


# ---- RADIO's summary: some of its class tokens, concatenated


@pytest.mark.parametrize("chosen", [[0, 1], [2, 0], [1]])
def test_radios_summary_is_a_join_and_a_selection_to_the_bit(chosen: list[int]) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 64, "max_img_size": 64}
    config = RadioConfig(**sizes, summary_idxs=chosen)
    model = moved(RadioModel(config).eval(), 0.2)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        published = model(images)
        selected = ("select-concat", {"indices": chosen})
        choices = (regplug.join(cls=selected), regplug.join(cls=selected, registers="mean", patches="mean"))
        for choice in choices:
            whole = regplug.attach(model, choice)
            assert torch.equal(whole(images)[:, : 48 * len(chosen)], published.summary)
            assert whole.spec.cond_dim == published.summary.shape[1] + 48 * 2 * (choice is choices[1])
        whole = regplug.attach(model, "select-concat", group="cls", indices=chosen)
        assert torch.equal(whole(images), published.summary)
        other = regplug.attach(model, regplug.join(cls=("select-concat", {"indices": [0, 2]})))
        assert not torch.equal(other(images)[:, : 48 * len(chosen)], published.summary)


# ---- LeRobot's diffusion policy: global_cond, of images, the robot's state and the environment's


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    script = Path(__file__).parents[1] / "support" / "lerobot_conditioning.py"
    file = tmp_path_factory.mktemp("lerobot") / "found.pt"
    subprocess.run([sys.executable, script, file], check=True)
    found: dict[str, dict[str, Any]] = torch.load(file)
    return found


def joined(policy: dict[str, Any]) -> tuple[regplug.ReadoutSpec, Tensor, dict[str, Tensor]]:
    """The join of a policy's inputs, its tokens and its vectors; without images the environment's states are tokens."""
    vectors = {name: policy[name].flatten(1) for name in ("state", "env") if name in policy}
    tokens = policy["tokens"] if "tokens" in policy else policy["env"]
    if "tokens" not in policy:
        del vectors["env"]
    parts = [JoinPart("seen", "concat"), *(JoinPart(name, width=one.shape[1]) for name, one in vectors.items())]
    spec = regplug.resolve("join", num_registers=tokens.shape[1], hidden_dim=tokens.shape[2], parts=parts)
    return spec, tokens, vectors


WIDTHS = {"pusht": 132, "pusht keypoints": 36, "aloha": 540, "all": 132, "encoder for each camera": 270}


@pytest.mark.parametrize("name", WIDTHS)
def test_the_width_of_lerobots_global_cond_is_that_of_a_join(name: str, policies: dict[str, dict[str, Any]]) -> None:
    policy = policies[name]
    spec, _, _ = joined(policy)
    assert spec.cond_dim == policy["global_cond"].shape[1] == WIDTHS[name]
    # its FiLM reads the time, too
    parts = [*spec.arguments["parts"], JoinPart("time", width=policy["time"])]
    with_time = regplug.resolve("join", num_registers=spec.num_registers, hidden_dim=spec.hidden_dim, parts=parts)
    assert with_time.cond_dim == policy["film"]


@pytest.mark.parametrize("name", WIDTHS)
def test_the_numbers_of_lerobots_global_cond_are_those_of_a_join(
    name: str, policies: dict[str, dict[str, Any]]
) -> None:
    policy = policies[name]
    spec, tokens, vectors = joined(policy)
    found = spec.build()(tokens, vectors=vectors)
    # LeRobot's order: of each step the state, its images, the environment's state
    widths = [tokens[0].numel(), *(one.shape[1] for one in vectors.values())]
    by_name = dict(zip(["seen", *vectors], found.split(widths, 1), strict=True))
    order = [by_name[key] for key in ("state", "seen", "env") if key in by_name]
    steps = torch.cat([one.unflatten(1, (policy["steps"], -1)) for one in order], 2).flatten(1)
    torch.testing.assert_close(steps, policy["global_cond"], rtol=0, atol=2e-6)
    assert not torch.allclose(found, policy["global_cond"], atol=0.1)

"""A diffusion policy over a join: registers, the robot's state and the embedded time condition a whole U-Net."""

import subprocess
from typing import Any

import pytest
import torch
from support.consumer import built, built_without_libtorch
from support.plugins import installed_with
from support.policy_unet import ENTRY, NAME, ConditionalUNet, Policy, PolicyFiLM, block_widths
from torch import Tensor, nn

import regplug
from regplug.commands.audit.inputs import parse_inputs
from regplug.commands.audit.network import audit_network
from regplug.commands.audit.verdict import FiLMInputFinding
from regplug.format.weights import load_tensors, save_tensors

R, D, T = 4, 24, 13
N_OBS_STEPS, STATE = 2, 7
ACTIONS, HORIZON = 3, 8
TIME = 16
BACKENDS = ("torchscript", "aotinductor", "onnx")
LAYOUT = regplug.TokenLayout(num_registers=R, hidden_dim=D, start=1, num_tokens=T)
JOIN = regplug.join(
    registers=("compress-concat", {"compressed_dim": 6}),
    state=STATE * N_OBS_STEPS,
    time=(1, "sinusoidal", {"dim": TIME}),
)


@pytest.fixture(scope="module")
def registry() -> regplug.Registry:
    """What is installed, and a plugin that offers the U-Net's generator."""
    return installed_with(ENTRY, distribution="acme-policy")


def policy_of(join: regplug.Join, registry: regplug.Registry) -> tuple[regplug.ReadoutSpec, Policy]:
    """The whole network, whose width is stated nowhere."""
    torch.manual_seed(0)
    spec = join.resolve(LAYOUT, registry=registry)
    film = regplug.pair(spec, NAME, registry=registry)
    conditioner = regplug.Conditioner(LAYOUT.for_group("tokens", T), spec.build(), film, registry=registry)
    return spec, Policy(conditioner, ACTIONS).eval()


def inputs(batch: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy actions, tokens, states of two steps, and times in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((HORIZON, ACTIONS), (T, D), (STATE * N_OBS_STEPS,))
    actions, tokens, state = (torch.randn(batch, *shape, generator=generator) for shape in shapes)
    return actions, tokens, state, torch.rand(batch, 1, generator=generator)


@pytest.mark.parametrize(
    ("join", "width"),
    [
        (JOIN, R * 6 + 14 + 16),
        (JOIN.swap(registers="concat"), R * D + 14 + 16),
        (JOIN.swap(time=(1, "sinusoidal", {"dim": 32})), R * 6 + 14 + 32),
        (JOIN.swap(state=STATE * 3), R * 6 + 21 + 16),
    ],
    ids=["as it is", "other registers", "wider time", "three steps"],
)
def test_the_width_of_every_block_follows_the_parts_of_the_join(registry, join, width):
    spec, policy = policy_of(join, registry)
    film = policy.conditioner.film
    assert spec.cond_dim == film.global_cond_dim == width
    assert [layer.in_features for layer in film.layers] == [width] * 8
    tokens, state, time = torch.randn(2, T, D), torch.randn(2, join.parts[1][1]), torch.rand(2, 1)
    pairs = policy.conditioner(tokens, None, {"state": state, "time": time})
    assert [gamma.shape[1] for gamma, _ in pairs] == block_widths() == [8, 8, 16, 16, 16, 16, 8, 8]
    assert policy(torch.randn(2, HORIZON, ACTIONS), tokens, state, time).shape == (2, HORIZON, ACTIONS)


def test_every_part_changes_the_noise(registry):
    _, policy = policy_of(JOIN, registry)
    given = inputs()
    with torch.no_grad():
        wanted = policy(*given)
        for index in range(4):
            other = [one.flip(0) if place == index else one for place, one in enumerate(given)]
            assert not torch.allclose(policy(*other), wanted, atol=1e-3), index


@pytest.fixture(scope="module")
def exported(registry, tmp_path_factory):
    """The policy, and the bundle of its conditioner, with a program of every backend."""
    spec, policy = policy_of(JOIN, registry)
    folder = tmp_path_factory.mktemp("policy") / "b"
    regplug.export(spec, policy.conditioner, folder, backends=BACKENDS, registry=registry)
    return policy, folder


@pytest.mark.compiler
def test_every_program_of_the_conditioner_is_verified(exported, registry):
    _, folder = exported
    verified = regplug.verify(folder, programs=True, registry=registry)
    assert [row for row in verified.checks if not row.ok] == []
    assert {program.backend for program in regplug.load(folder, program="onnx").manifest.programs} == set(BACKENDS)


@pytest.mark.compiler
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_noise_from_the_pairs_of_a_program_is_that_of_the_whole_forward(exported, backend):
    policy, folder = exported
    actions, tokens, state, time = inputs()
    pairs = regplug.load(folder, program=backend)(tokens, vectors={"state": state, "time": time})
    with torch.no_grad():
        torch.testing.assert_close(policy.unet(actions, pairs), policy(*inputs()), rtol=0, atol=1e-4)


@pytest.mark.compiler
@pytest.mark.parametrize("programs", [built, built_without_libtorch], ids=["libtorch", "without libtorch"])
def test_the_noise_from_the_pairs_of_cpp_is_that_of_the_whole_forward(exported, programs, tmp_path):
    policy, folder = exported
    actions, tokens, state, time = inputs()
    given, made = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    given.write_bytes(save_tensors({"tokens": tokens, "state": state, "time": time}))
    subprocess.run([programs() / "regplug-run" / "regplug-run", folder, given, made], check=True, timeout=60)
    out = load_tensors("out", made.read_bytes())
    pairs = [(out[f"gamma_{block}"], out[f"beta_{block}"]) for block in range(8)]
    with torch.no_grad():
        wanted = policy(*inputs())
        torch.testing.assert_close(policy.unet(actions, pairs), wanted, rtol=0, atol=1e-4)
        pairs[3] = pairs[3][::-1]
        assert not torch.allclose(policy.unet(actions, pairs), wanted, atol=1e-2)


# ---- the same network with its width computed by hand


def handwritten(width: Any) -> FiLMInputFinding:
    """The audit of a policy that concatenates its parts itself; ``width`` is what its author computed by hand."""

    class ByHand(nn.Module):
        def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = 6, time_dim: int = TIME):
            super().__init__()
            sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim}
            self.read = regplug.create("compress-concat", **sizes, compressed_dim=compressed_dim)
            self.embed = regplug.create("sinusoidal", num_registers=1, hidden_dim=1, dim=time_dim)
            self.film = PolicyFiLM(width(num_registers, hidden_dim, compressed_dim, time_dim))
            self.unet = ConditionalUNet(ACTIONS)

        def forward(self, actions: Tensor, registers: Tensor, state: Tensor, time: Tensor) -> Tensor:
            global_cond = torch.cat([self.read(registers), state, self.embed(time.unsqueeze(1))], dim=-1)
            noise: Tensor = self.unet(actions, self.film(global_cond))
            return noise

    given = parse_inputs(["actions=B,8,3", "registers=B,R,D", "state=B,14", "time=B,1"], lambda text: None)
    [found] = audit_network("network x", ByHand, {}, {}, inputs=given).findings
    return found


def test_the_audit_passes_a_sum_that_follows_every_part():
    assert handwritten(lambda r, d, c, t: r * c + 14 + t).verdict == "follows"


@pytest.mark.parametrize(
    ("width", "joined"),
    [
        (
            lambda r, d, c, t: R * c + 14 + t,
            "30 by read (24 at the network's own sizes) + 14 by input state + 16 by embed",
        ),
        (
            lambda r, d, c, t: r * 6 + 14 + t,
            "48 by read (24 at the network's own sizes) + 14 by input state + 16 by embed",
        ),
        (lambda r, d, c, t: r * c + 7 + t, "24 by read + 14 by input state + 16 by embed"),
        (lambda r, d, c, t: r * c + 14 + t // 2, "24 by read + 14 by input state + 16 by embed"),
    ],
    ids=["registers", "compressed width", "steps", "time"],
)
def test_the_audit_names_the_part_that_a_hard_coded_sum_forgot(width, joined):
    found = handwritten(width)
    assert found.verdict == "wrong"
    assert found.reason.endswith(f"it joins {joined}")

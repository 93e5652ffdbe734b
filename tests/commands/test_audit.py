"""The audit finds every FiLM width that does not follow the network's sizes, and raises no false alarm."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from nvsubquadratic.lazy_config import LazyConfig
from nvsubquadratic.modules.ckconv_nd import CKConvND
from nvsubquadratic.modules.film import KernelFiLMGenerator, RegisterCompressConcat, RegisterPooling
from nvsubquadratic.modules.hyena_nd import Hyena
from nvsubquadratic.modules.kernels_nd import SIRENKernelND
from nvsubquadratic.modules.mlp import MLP
from nvsubquadratic.modules.rms_norm import RMSNorm
from nvsubquadratic.modules.sequence_mixer import QKVSequenceMixer
from nvsubquadratic.modules.vit5_hyena_adapter import ViT5HyenaAdapter
from nvsubquadratic.modules.vit5_residual_block import ViT5ResidualBlock
from nvsubquadratic.networks.vit5_classification import ViT5ClassificationNet
from support import planted_widths as planted
from support import planted_wiring as wiring
from support.battery import in_battery
from torch import Tensor, nn

import regplug
from regplug import SpecError
from regplug.commands.audit.command import audit_command
from regplug.commands.audit.inputs import parse_inputs
from regplug.commands.audit.network import Audit, audit_network
from regplug.commands.audit.verdict import FiLMInputFinding
from regplug.commands.main import exit_code

HIDDEN_DIM = 384  # as in a configuration file, next to a network that is built at other sizes
GENERATOR = "sequence_mixer.inner_mixer.mixer.global_conv.kernel.film_generator"


def audit(build: Any, num_registers: int | None = None, hidden_dim: int | None = None, **options: Any) -> Audit:
    sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim}
    return audit_network("network x", build, sizes, options, inputs=known_inputs(build))


def known_inputs(build: Any) -> Any:
    """What a network's forward takes, where that cannot be found by trying."""
    return parse_inputs(INPUTS.get(build, []), lambda text: getattr(planted, text.partition(":")[2]))


DIT = ["latent=B,16,8", "step=B", "label=B:int64"]
INPUTS: dict[Any, list[str]] = {
    planted.Policy: ["support.planted_widths:policy_inputs"],
    planted.OfVectors: ["state=B,7", "registers=B,R,D"],
    planted.Maps: ["image=B,3,8,8", "registers=B,R,D"],
    planted.Added: DIT,
    planted.DiT: DIT,
}


def only(found: Audit) -> FiLMInputFinding:
    [finding] = found.findings
    return finding


# ---- nvSubquadratic's network: D=384, c=96, FiLM in a SIREN kernel; the width is written by hand, as configurations do


def hyena_block(num_registers: int, hidden_dim: int, cond_dim: int, pooling: Any, film_layers: int = 2) -> Any:
    identity, norm = LazyConfig(nn.Identity)(), LazyConfig(RMSNorm)(dim=hidden_dim, use_quack=False)
    film = LazyConfig(KernelFiLMGenerator)(cond_dim=cond_dim, kernel_hidden_dim=32, num_film_layers=film_layers)
    kernel = LazyConfig(SIRENKernelND)(
        out_dim=hidden_dim,
        data_dim=2,
        mlp_hidden_dim=32,
        num_layers=film_layers + 1,
        embedding_dim=32,
        omega_0=10.0,
        L_cache=4,
        use_bias=True,
        film_cfg=film,
    )
    convolution = LazyConfig(CKConvND)(
        data_dim=2,
        hidden_dim=hidden_dim,
        kernel_cfg=kernel,
        mask_cfg=identity,
        grid_type="double",
        fft_padding="zero",
    )
    hyena = LazyConfig(Hyena)(
        global_conv_cfg=convolution,
        short_conv_cfg=identity,
        gate_nonlinear_cfg=LazyConfig(nn.SiLU)(),
        pixelhyena_norm_cfg=identity,
        qk_norm_cfg=None,
    )
    mixer = LazyConfig(QKVSequenceMixer)(hidden_dim=hidden_dim, mixer_cfg=hyena)
    return LazyConfig(ViT5ResidualBlock)(
        sequence_mixer_cfg=LazyConfig(ViT5HyenaAdapter)(inner_mixer_cfg=mixer, grid_w=4),
        sequence_mixer_norm_cfg=norm,
        mlp_cfg=LazyConfig(MLP)(dim=hidden_dim, activation="gelu", dropout_cfg=LazyConfig(nn.Dropout)(p=0.0)),
        mlp_norm_cfg=norm,
        hidden_dim=hidden_dim,
        register_pooling_cfg=pooling,
        num_registers=num_registers,
    )


def vit5(num_registers: int, hidden_dim: int, block: Any, num_blocks: int = 1) -> ViT5ClassificationNet:
    return ViT5ClassificationNet(
        in_channels=3,
        num_classes=10,
        hidden_dim=hidden_dim,
        num_blocks=num_blocks,
        patch_size=16,
        image_size=64,
        num_registers=num_registers,
        norm_cfg=LazyConfig(RMSNorm)(dim=hidden_dim, use_quack=False),
        readout="cls",
        layer_pattern="H" * num_blocks,
        layer_types={"H": block},
    )


def compressing(num_registers: int, hidden_dim: int, compressed_dim: int, cond_dim: int, film_layers: int = 2) -> Any:
    sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim, "compressed_dim": compressed_dim}
    pooling = LazyConfig(RegisterCompressConcat)(**sizes)
    return vit5(num_registers, hidden_dim, hyena_block(num_registers, hidden_dim, cond_dim, pooling, film_layers))


def shipped(num_registers: int = 4, hidden_dim: int = 384, compressed_dim: int = 96, film_layers: int = 2) -> Any:
    cond_dim = num_registers * compressed_dim
    return compressing(num_registers, hidden_dim, compressed_dim, cond_dim, film_layers)


def pooled(num_registers: int = 4, hidden_dim: int = 384) -> Any:
    pooling = LazyConfig(RegisterPooling)(num_registers=num_registers)
    return vit5(num_registers, hidden_dim, hyena_block(num_registers, hidden_dim, hidden_dim, pooling))


def hard_coded(num_registers: int = 4, hidden_dim: int = 384, compressed_dim: int = 96) -> Any:
    return compressing(num_registers, hidden_dim, compressed_dim, HIDDEN_DIM)


def of_hidden_dim(num_registers: int = 4, hidden_dim: int = 384, compressed_dim: int = 96) -> Any:
    return compressing(num_registers, hidden_dim, compressed_dim, hidden_dim)


def of_a_quarter(num_registers: int = 4, hidden_dim: int = 384, compressed_dim: int = 96) -> Any:
    return compressing(num_registers, hidden_dim, compressed_dim, num_registers * hidden_dim // 4)


MISTAKES = {hard_coded: "384", of_hidden_dim: "D", of_a_quarter: "R*D/4"}


def test_the_shipped_network_runs_and_so_the_audit_is_of_a_real_one() -> None:
    with torch.no_grad():
        assert shipped().eval()({"input": torch.zeros(1, 64, 64, 3)})["logits"].shape == (1, 10)


@pytest.mark.parametrize(
    ("num_registers", "film_layers"),
    [(4, 2), (14, 3), *(pytest.param(*sizes, marks=pytest.mark.torture) for sizes in ((8, 3), (13, 2)))],
)
def test_a_width_that_follows_is_no_finding_at_any_shipped_size(num_registers: int, film_layers: int) -> None:
    found = audit(shipped, num_registers, film_layers=film_layers)
    assert found.ok
    assert (found.device, found.fixed, found.refused, len(found.sizes)) == ("meta", (), (), 6)
    one = only(found)
    assert (one.module, one.readout) == (f"blocks.0.{GENERATOR}", "blocks.0.register_pooling")
    assert (one.verdict, one.wanted, one.wanted_formula, one.given_formula) == ("follows", one.given, "R*c", "R*c")


def test_each_of_the_five_other_sizes_differs_and_each_size_is_changed_alone_too() -> None:
    first, *others = [tuple(sizes.values()) for sizes in audit(shipped).sizes]
    changed = [[index for index in range(3) if other[index] != first[index]] for other in others]
    assert changed == [[0], [1], [2], [0, 1, 2], [0, 1, 2]]


def test_an_average_of_the_registers_follows() -> None:
    found = audit(pooled)
    assert found.ok
    assert only(found).wanted_formula == "D"


@pytest.mark.parametrize("build", MISTAKES, ids=lambda build: build.__name__)
@pytest.mark.parametrize("num_registers", [14, *in_battery(None)])
def test_a_planted_mistake_is_found_and_named(build: Any, num_registers: int | None) -> None:
    found = audit(build, num_registers)
    assert not found.ok
    one = only(found)
    assert (one.module, one.generator) == (f"blocks.0.{GENERATOR}", "KernelFiLMGenerator (kernel-film)")
    assert (one.wanted_formula, one.given_formula) == (MISTAKES[build], "R*c")
    assert one.verdict == "wrong"
    assert one.reason == f"wants {MISTAKES[build]}, is given R*c by blocks.0.register_pooling"


def test_one_wrong_block_among_right_ones_is_the_one_named() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 384, compressed_dim: int = 96) -> nn.Module:
        network = shipped(num_registers, hidden_dim, compressed_dim)
        network.blocks.append(hard_coded(num_registers, hidden_dim, compressed_dim).blocks[0])
        network._block_needs_padding.append(True)
        return network

    assert [one.verdict for one in audit(build).findings] == ["follows", "wrong"]


# ---- sixteen mistakes and their twins

# the network with the mistake -> what the audit says of the FiLM input that is wrong
SIXTEEN: dict[Any, str] = {
    hard_coded: "wants 384, is given R*c by blocks.0.register_pooling",
    of_hidden_dim: "wants D, is given R*c by blocks.0.register_pooling",
    of_a_quarter: "wants R*D/4, is given R*c by blocks.0.register_pooling",
    planted.OfAWording: "wants 48, is given R*c by readout",
    planted.OfANameless: "wants D, is given R*c by readout",
    planted.OfALayer: "wants 48, is given R*c by readout",
    planted.OfVectors: "hyper.0, on the way to it, takes 48, is given 60 at R=5, D=48, c=12",
    planted.OfAnMLPBetween: "between.0, on the way to it, takes 48, is given 60 at R=5, D=48, c=12",
    planted.BehindAnMLP: "wants 48, is given D by readout",
    planted.Crossed: "wants R*c, is given D by glob",
    planted.Averaged: "wants R*c, is given D by registers read in forward",
    planted.FourRegisters: "stops at R=5, D=48, c=12: readout 'compress-concat': expected registers [B, 4, 48]",
    planted.Reshaped: "stops at R=5, D=48, c=12: RuntimeError: shape '[-1, 48]' is invalid",
    planted.Guarded: "wants D, is given R*c by readout",
    planted.RefusedWhenBuilt: "stops at R=5, D=48: FiLM generator KernelFiLMGenerator: expected conditioning of width",
    planted.Policy: "wants 126, is given 2*R*c + 30 by input state, input step, readout",
}
MORE: dict[Any, str] = {
    planted.Maps: "wants 48, is given R*c by readout",
    planted.Added: "stops at R=5, D=48: RuntimeError: Attempting to broadcast a dimension of length 60",
    planted.OneWrongBlock: "wants 48, is given R*c by readouts.1",
}
TWINS = [build for build in (*SIXTEEN, *MORE) if isinstance(build, type)]


@pytest.mark.parametrize("build", [*SIXTEEN, *MORE], ids=lambda build: build.__name__)
def test_each_planted_mistake_is_found(build: Any) -> None:
    found = audit(build)
    assert not found.ok
    reasons = [one.reason for one in found.findings if one.verdict == "wrong"]
    assert any(reason.startswith({**SIXTEEN, **MORE}[build]) for reason in reasons), reasons
    assert "0 unknown" in found.summary


@pytest.mark.parametrize("build", TWINS, ids=lambda build: build.__name__)
def test_the_twin_without_the_mistake_is_green(build: Any) -> None:
    found = audit(build, right=True)
    assert found.ok, [(one.module, one.reason) for one in found.findings]
    assert found.notes == ()
    assert len(found.sizes) == 6


@pytest.mark.parametrize("build", TWINS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("right", [False, True])
def test_at_its_own_sizes_each_runs_so_that_only_an_audit_finds_the_mistake(build: Any, right: bool) -> None:
    sizes = {"num_registers": planted.R, "hidden_dim": planted.D, "compressed_dim": planted.C}
    inputs = known_inputs(build) or parse_inputs(["tokens=B,R+16,D"], lambda text: None)
    if build is planted.RefusedWhenBuilt:
        inputs = parse_inputs(["tokens=B,R,D"], lambda text: None)
    args, kwargs = inputs(sizes)
    with torch.no_grad():
        build(right=right)(*map(zeros, args), **{name: zeros(one) for name, one in kwargs.items()})


def zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype)


@pytest.mark.parametrize("build", wiring.KINDS, ids=lambda build: build.__name__)
def test_on_every_path_from_a_readout_to_film_a_hard_coded_width_is_wrong_and_its_twin_follows(build: Any) -> None:
    wrong, twin = audit(build), audit(build, right=True)
    assert not wrong.ok
    assert "0 follow" in wrong.summary
    assert "0 unknown" in wrong.summary
    assert twin.ok, [(one.module, one.reason) for one in twin.findings]
    assert (wrong.notes, twin.notes) == ((), ())


def test_a_hard_coded_width_for_a_class_token_is_wrong_although_no_readout_feeds_it() -> None:
    found = audit(wiring.OfAClassToken)
    assert (found.summary, found.notes) == ("2 FiLM inputs: 1 follow, 1 wrong, 0 unknown", ())
    assert found.findings[1].module == "token_film"
    assert found.findings[1].reason == "takes 48, is given 96 at R=4, D=96, c=12"
    assert audit(wiring.OfAClassToken, right=True).ok


@pytest.mark.parametrize("reads", ["", "matched"])
def test_steps_and_classes_as_wide_as_the_readout_are_no_mistake(reads: str) -> None:
    found = audit(planted.DiT, reads=reads)
    assert (found.ok, found.summary) == (True, "2 FiLM inputs: 2 follow, 0 wrong, 0 unknown")
    assert {one.wanted_formula for one in found.findings} == {"48"}


def test_a_step_embedding_as_wide_as_a_readout_next_to_one_is_no_mistake() -> None:
    found = audit(planted.TimeAsWide)
    assert found.ok
    assert {one.module: one.readout for one in found.findings} == {"film": "readout", "time_film": "input step"}


def test_which_readout_reaches_which_film_is_followed() -> None:
    crossed = {one.module: one.readout for one in audit(planted.Crossed).findings}
    assert crossed == {"film_local": "glob", "film_glob": "local"}


# ---- an unknown width does not pass


class Conditioned(nn.Module):
    """As the README builds it, without a forward."""

    def __init__(self, num_registers: int = 4, hidden_dim: int = 48) -> None:
        super().__init__()
        spec = regplug.resolve("mean", num_registers=num_registers, hidden_dim=hidden_dim)
        self.readout, self.film = spec.build(), regplug.pair(spec, planted.Wording)


def test_a_network_without_a_forward_is_unknown() -> None:
    one = only(audit(Conditioned))
    assert one.verdict == "unknown"
    assert 'is missing the required "forward" function' in one.reason


class Asks(Conditioned):
    """A forward that depends on values."""

    def forward(self, registers: Tensor, features: Tensor) -> Tensor:
        if registers.sum() > 0:
            return features
        return self.film(features, self.readout(registers))


def test_a_forward_that_depends_on_values_is_unknown_with_the_reason() -> None:
    found = audit_network("network x", Asks, {}, {}, inputs=parse_inputs(["B,R,D", "B,5,32"], lambda text: None))
    assert not found.ok
    assert found.passes(allow_unknown=True)
    assert only(found).reason.startswith("the forward ended before it: it reads values of its tensors, which have none")


class Direct(nn.Module):
    """Its own caller gives the conditioning."""

    def __init__(self, num_registers: int = 4, hidden_dim: int = 48, cond_dim: int = 48) -> None:
        super().__init__()
        self.film = planted.Wording(cond_dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.film(x, c)


def test_a_width_that_was_guessed_proves_no_mistake() -> None:
    assert only(audit(Direct)).verdict == "unknown"
    assert only(audit(Direct)).reason.endswith("by input c, whose width was guessed: use --input")
    made = parse_inputs(["x=B,5,32", "c=B,48"], lambda text: None)
    assert audit_network("network x", Direct, {}, {}, inputs=made).ok
    made = parse_inputs(["x=B,5,32", "c=B,R*12"], lambda text: None)
    assert only(audit_network("network x", Direct, {}, {}, inputs=made)).verdict == "wrong"


class Never(Conditioned):
    def forward(self, registers: Tensor) -> Tensor:
        return self.readout(registers)


class Keywords(Conditioned):
    def forward(self, *, features: Tensor, registers: Tensor) -> Tensor:
        return self.film(features, self.readout(registers))


class OfABatch(Conditioned):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.film(batch["features"], self.readout(batch["obs.registers"]))


def test_inputs_by_keyword_are_found_and_those_of_a_dict_are_given_by_key() -> None:
    assert audit(Keywords).ok
    made = parse_inputs(["batch.features=B,5,32", "batch.obs.registers=B,R,D"], lambda text: None)
    assert audit_network("network x", OfABatch, {}, {}, inputs=made).ok
    assert not audit(OfABatch).ok


def test_a_film_input_that_the_forward_does_not_reach_is_unknown() -> None:
    assert (only(audit(Never)).verdict, only(audit(Never)).reason) == ("unknown", "the forward does not call it")


class Four(planted.OfAWording):
    def __init__(self, num_registers: int = 4, hidden_dim: int = 48, compressed_dim: int = 12) -> None:
        if num_registers != 4:
            raise ValueError("four")
        super().__init__(num_registers, hidden_dim, compressed_dim, right=True)


def test_a_size_that_cannot_change_proves_nothing() -> None:
    found = audit(Four)
    assert found.fixed == ("num_registers",)
    assert all(one.error.startswith("four (") for one in found.refused)
    assert (only(found).verdict, only(found).reason) == ("unknown", "num_registers could not be changed")


def test_sizes_that_refuse_are_replaced_and_reported() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 48, compressed_dim: int = 12) -> nn.Module:
        if num_registers % 4:
            raise ValueError("registers go four by four")
        return planted.OfAWording(num_registers, hidden_dim, compressed_dim, right=True)

    found = audit(build)
    assert (found.ok, len(found.sizes)) == (True, 6)
    assert {sizes["num_registers"] % 4 for sizes in found.sizes} == {0}
    assert {one.error.partition(" (")[0] for one in found.refused} == {"registers go four by four"}


def test_a_constructor_that_reads_numbers_is_built_too() -> None:
    def of_a_sequence(num_registers: int = 4, hidden_dim: int = 48) -> nn.Module:
        [_, rate] = [rate.item() for rate in torch.linspace(0, 0.5, 2)]
        assert rate == 0.5
        return planted.OfAWording(num_registers, hidden_dim, right=True)

    def of_a_weight(num_registers: int = 4, hidden_dim: int = 48) -> nn.Module:
        network = of_a_sequence(num_registers, hidden_dim)
        assert network.film.net.weight.std().item() > 0
        return network

    assert (audit(of_a_sequence).device, audit(of_a_sequence).ok) == ("meta", True)
    assert (audit(of_a_weight).device, audit(of_a_weight).ok) == ("cpu", True)


class WithHead(planted.OfAWording):
    def __init__(self, num_registers: int = 4, hidden_dim: int = 48, compressed_dim: int = 12) -> None:
        super().__init__(num_registers, hidden_dim, compressed_dim, right=True)
        self.head = nn.Linear(4 * hidden_dim, 3)

    def forward(self, tokens: Tensor) -> Any:
        registers = self.backbone(tokens)[1]
        return super().forward(tokens), self.head(registers.flatten(1))


def test_a_head_that_does_not_follow_is_noted_and_is_no_film() -> None:
    found = audit(WithHead)
    assert found.ok
    assert found.notes == ("head: takes 192, is given 240 at R=5, D=48, c=12; on no way to a FiLM input",)


@pytest.mark.parametrize("texts", [["tokens=B,R+16,D"], ["B,R+16,D"], ["tokens=2,R+4*4,D:float32"]])
def test_an_input_is_given_by_its_sizes(texts: list[str]) -> None:
    made = parse_inputs(texts, lambda text: None)
    assert audit_network("network x", planted.OfAWording, {}, {"right": True}, inputs=made).ok


@pytest.mark.parametrize(
    "text", ["tokens=B,x,D", "step=B:int65", "B,R**9", "B,R;D", "a=B,R,D:nn", "B,__import__('os')"]
)
def test_an_input_that_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--input: expected"):
        parse_inputs([text, "B"], lambda text: None)


def test_a_constructors_own_name_for_a_size_can_be_given() -> None:
    def build(registers: int = 4, dim: int = 48, right: bool = False) -> nn.Module:
        return planted.OfAWording(registers, dim, right=right)

    words = {"registers": "num_registers", "dim": "hidden_dim"}
    for right in (False, True):
        found = audit_network("network x", build, {}, {"right": right}, words=words)
        assert found.ok is right
    with pytest.raises(SpecError, match="--size: expected a parameter of its constructor with one of"):
        audit_network("network x", build, {}, {}, words={"width": "hidden_dim"})


# ---- the command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(audit_command, [str(one) for one in arguments])


def test_the_digits_backbone_follows() -> None:
    for chosen in ([], ["-O", "readout=pool"], ["--num-registers", 3, "--hidden-dim", 20, "-O", "readout=digits-gate"]):
        done = run("digits-vit", *chosen, "--json")
        values = json.loads(done.stdout)
        assert (done.exit_code, values["schema"], values["ok"]) == (0, "regplug.audit/1", True)
        assert [one["module"] for one in values["findings"]] == ["blocks.0.film", "blocks.1.film"]
        assert {one["verdict"] for one in values["findings"]} == {"follows"}
        assert values["counts"] == {"follows": 2, "wrong": 0, "unknown": 0}
        assert values["summary"] == "2 FiLM inputs: 2 follow, 0 wrong, 0 unknown"
        assert (values["fixed"], values["refused"], len(values["sizes"])) == ([], [], 6)


def test_a_width_that_does_not_follow_is_printed_with_exit_code_one() -> None:
    done = run("test_audit:of_a_quarter", "-O", "compressed_dim=96")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("sizes: R=4, D=384, c=96; R=5, D=384, c=96; R=4, D=768, c=96; ")
    assert lines[2].split()[:4] == [
        f"blocks.0.{GENERATOR}",
        "KernelFiLMGenerator",
        "(kernel-film)",
        "blocks.0.register_pooling",
    ]
    assert lines[2].endswith("wrong")
    assert lines[3] == f"blocks.0.{GENERATOR}: wrong: wants R*D/4, is given R*c by blocks.0.register_pooling"
    assert lines[-1] == "1 FiLM inputs: 0 follow, 1 wrong, 0 unknown"


def test_a_wrong_width_is_waived_by_name_and_an_expectation_that_nothing_needs_fails() -> None:
    of = ["support.planted_widths:OneWrongBlock"]
    assert run(*of).exit_code == 1
    done = run(*of, "--expect", "films.1=trained so; never resized")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (
        0,
        "3 FiLM inputs: 2 follow, 1 wrong, 0 unknown",
    )
    assert "films.1: wrong: wants 48, is given R*c by readouts.1 (expected: trained so; never resized)" in done.stdout
    done = run(*of, "--expect", "films.1=so", "--expect", "films.2=so", "--expect", "film=so")
    assert done.exit_code == 1
    assert "--expect films.2: expected a FiLM input that does not follow, got none: it follows" in done.stdout
    assert (
        "--expect film: expected a FiLM input that does not follow, got none: no FiLM input of this name" in done.stdout
    )
    assert run(*of, "--expect", "films.1").exit_code == 2
    assert run(*of, "--expect", "films.1=a", "--expect", "films.1=b").exit_code == 2


def test_what_is_unknown_fails_unless_it_is_allowed() -> None:
    of = ["test_audit:Never", "--json"]
    assert (run(*of).exit_code, run(*of, "--allow-unknown").exit_code) == (1, 0)
    values = json.loads(run(*of).stdout)
    assert (values["ok"], values["counts"]) == (False, {"follows": 0, "wrong": 0, "unknown": 1})
    assert run("support.planted_widths:OfALayer", "--allow-unknown").exit_code == 1


def test_inputs_and_a_constructors_names_for_sizes_can_be_given_on_the_command_line() -> None:
    of = ["support.planted_widths:Policy", "--input", "support.planted_widths:policy_inputs"]
    assert (run(*of).exit_code, run(*of, "-O", "right=true").exit_code) == (1, 0)
    done = run("test_audit:in_other_words", "--size", "dim=hidden_dim", "--input", "tokens=B,20,D")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "1 FiLM inputs: 1 follow, 0 wrong, 0 unknown")
    done = run("support.planted_widths:OfAWording", "-O", "right=true", "--input", "tokens=B,3,7")
    assert done.exit_code == 1
    assert "its forward ended early: " in done.stdout


def in_other_words(dim: int = 48) -> nn.Module:
    return planted.OfAWording(4, dim, right=True)


def without_film(hidden_dim: int) -> nn.Module:
    return nn.Linear(hidden_dim, 3)


def test_a_network_without_a_generator_has_no_width_to_follow() -> None:
    done = run("test_audit:without_film", "--num-registers", 4, "--hidden-dim", 8)
    assert done.exit_code == 1
    assert (
        "no FiLM input found: no module of a known family, no constructor that names one of cond_dim, " in done.stdout
    )
    assert "num_registers: kept its value" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 FiLM inputs: 0 follow, 0 wrong, 0 unknown"
    assert run("test_audit:without_film", "--hidden-dim", 8, "--allow-unknown").exit_code == 0


WRONG = {
    "backbone 'digits-vitt': not registered; known: digits-vit, ": ["digits-vitt"],
    "expected to import 'no.such:Thing'": ["no.such:Thing"],
    "expected to import 'test_audit:nothing'": ["test_audit:nothing"],
    "num_registers: expected a positive integer, got 0.": ["digits-vit", "--num-registers", 0],
    "hidden_dim: expected a positive integer, got -8.": ["test_audit:shipped", "--hidden-dim", -8],
    "compressed_dim: expected a positive integer, got 'x'.": ["test_audit:shipped", "-O", "compressed_dim=x"],
    "compressed_dim: expected a constructor that names it, got 3.": ["test_audit:pooled", "-O", "compressed_dim=3"],
    "option 'bogus': expected a known option, got 3": ["test_audit:shipped", "-O", "bogus=3"],
    "hidden_dim: expected --hidden-dim, as its constructor has no size by default, got none.": [
        "test_audit:without_film"
    ],
    "network torch.nn:Linear: expected a constructor that names num_registers or hidden_dim or compressed_dim": [
        "torch.nn:Linear"
    ],
    "strategy 'meen': not registered": ["digits-vit", "-O", "readout=meen"],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_audited_is_reported_in_one_message(message: str) -> None:
    done = run(*WRONG[message])
    assert isinstance(done.exception, regplug.RegplugError)
    assert message in str(done.exception)
    assert exit_code(done.exception) == 2


class InEqualParts(nn.Module):
    """Four generators, each for a quarter of the vector: right at every width that four divides."""

    def __init__(self, num_registers: int = 4, hidden_dim: int = 384, compressed_dim: int = 96) -> None:
        super().__init__()
        sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim}
        self.readout = regplug.create("compress-concat", **sizes, compressed_dim=compressed_dim)
        width = self.readout.out_dim // 4
        self.films = nn.ModuleList(KernelFiLMGenerator(width, 8, 1) for _ in range(4))

    def forward(self, registers: Tensor) -> list[Any]:
        parts = self.readout(registers).chunk(4, dim=-1)
        return [film(part) for film, part in zip(self.films, parts, strict=True)]


def test_a_vector_that_is_split_in_equal_parts_is_no_mistake() -> None:
    assert audit(InEqualParts).summary == "4 FiLM inputs: 4 follow, 0 wrong, 0 unknown"

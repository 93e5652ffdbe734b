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
from torch import Tensor, nn

import regplug
from regplug import SpecError
from regplug.audit import Audit, Finding, audit_network
from regplug.audit_commands import audit_command
from regplug.cli import exit_code

HIDDEN_DIM = 384  # as a configuration file has it, beside a network that is built at other sizes
GENERATOR = "sequence_mixer.inner_mixer.mixer.global_conv.kernel.film_generator"


def audit(build: Any, num_registers: int | None = None, hidden_dim: int | None = None, **options: Any) -> Audit:
    sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim}
    return audit_network("network x", build, sizes, options)


def only(found: Audit) -> Finding:
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


@pytest.mark.parametrize(("num_registers", "film_layers"), [(4, 2), (8, 3), (13, 2), (14, 3)])
def test_a_width_that_follows_is_no_finding_at_any_shipped_size(num_registers: int, film_layers: int) -> None:
    found = audit(shipped, num_registers, film_layers=film_layers)
    assert found.ok
    assert (found.device, found.fixed, found.refused, len(found.sizes)) == ("meta", (), (), 6)
    one = only(found)
    assert (one.module, one.readout) == (f"blocks.0.{GENERATOR}", "blocks.0.register_pooling")
    assert (one.verdict, one.wanted, one.wanted_formula, one.given_formula) == ("ok", one.given, "R*c", "R*c")


def test_each_of_the_five_other_sizes_differs_and_each_size_is_changed_alone_too() -> None:
    first, *others = [tuple(sizes.values()) for sizes in audit(shipped).sizes]
    changed = [[index for index in range(3) if other[index] != first[index]] for other in others]
    assert changed == [[0], [1], [2], [0, 1, 2], [0, 1, 2]]


def test_an_average_of_the_registers_follows() -> None:
    found = audit(pooled)
    assert found.ok
    assert only(found).wanted_formula == "D"


@pytest.mark.parametrize("build", MISTAKES, ids=lambda build: build.__name__)
@pytest.mark.parametrize("num_registers", [None, 14])
def test_a_planted_mistake_is_found_and_named(build: Any, num_registers: int | None) -> None:
    found = audit(build, num_registers)
    assert not found.ok
    one = only(found)
    assert (one.module, one.generator) == (f"blocks.0.{GENERATOR}", "KernelFiLMGenerator (kernel-film)")
    assert (one.wanted_formula, one.given_formula) == (MISTAKES[build], "R*c")
    assert one.verdict == "does not follow"
    assert one.reason == f"wants {MISTAKES[build]}, is given R*c by blocks.0.register_pooling"


def test_one_wrong_block_among_right_ones_is_the_one_named() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 384, compressed_dim: int = 96) -> nn.Module:
        network = shipped(num_registers, hidden_dim, compressed_dim)
        network.blocks.append(hard_coded(num_registers, hidden_dim, compressed_dim).blocks[0])
        return network

    assert [one.verdict for one in audit(build).findings] == ["ok", "does not follow"]


# ---- networks of regplug's own parts


class Conditioned(nn.Module):
    """As the README builds it; the generator's width is the readout's, or what a configuration says."""

    def __init__(self, num_registers: int = 4, hidden_dim: int = 48, cond_dim: int | None = None) -> None:
        super().__init__()
        spec = regplug.resolve("compress-concat", num_registers=num_registers, hidden_dim=hidden_dim, compressed_dim=12)
        film = regplug.KernelFiLMGenerator(cond_dim or spec.cond_dim, kernel_hidden_dim=4, num_film_layers=2)
        layout = regplug.TokenLayout(num_registers=num_registers, hidden_dim=hidden_dim, start=0)
        self.conditioner = regplug.Conditioner(layout, spec.build(), film)


def test_a_conditioner_follows() -> None:
    one = only(audit(Conditioned))
    assert (one.module, one.readout, one.verdict) == ("conditioner.film", "conditioner.readout", "ok")
    assert (one.wanted_formula, one.given_formula) == ("12*R", "12*R")


def test_a_constructor_that_refuses_a_width_is_a_finding_with_its_text() -> None:
    found = audit(Conditioned, cond_dim=48)
    assert not found.ok
    assert "FiLM generator KernelFiLMGenerator: expected conditioning of width 48, got 60" in found.refused[0].error
    assert found.refused[0].sizes == {"num_registers": 5, "hidden_dim": 48}


# ---- any network


class Net(nn.Module):
    """A readout, a generator, and what else a test wants, side by side."""

    def __init__(self, readout: nn.Module, film: nn.Module, **others: nn.Module) -> None:
        super().__init__()
        self.readout, self.film = readout, film
        for name, module in others.items():
            self.add_module(name, module)


class Mine(nn.Module):
    """A readout that nobody registered."""

    def __init__(self, num_registers: int, hidden_dim: int, each: int) -> None:
        super().__init__()
        self.first = nn.Linear(hidden_dim, each)
        self.position = nn.Parameter(torch.zeros(num_registers, each))

    def forward(self, registers: Tensor) -> Tensor:
        return (self.first(registers) + self.position).flatten(1)


class MyFiLM(nn.Module):
    """A generator of no known family."""

    def __init__(self, cond_dim: int, keep: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(cond_dim, 6)
        if keep:
            self.cond_dim = cond_dim

    def forward(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        return self.layer(conditioning).chunk(2, -1)


def film(cond_dim: int) -> nn.Module:
    return regplug.KernelFiLMGenerator(cond_dim, 4, 2)


def head(hidden_dim: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d((1, hidden_dim)), nn.Flatten(), nn.Linear(hidden_dim, 10))


def test_a_readout_and_a_generator_are_known_by_what_they_do() -> None:
    def right(num_registers: int = 3, hidden_dim: int = 16) -> nn.Module:
        return Net(Mine(num_registers, hidden_dim, 5), MyFiLM(5 * num_registers))

    def wrong(num_registers: int = 3, hidden_dim: int = 16) -> nn.Module:
        return Net(Mine(num_registers, hidden_dim, 5), MyFiLM(hidden_dim - 1))

    assert (only(audit(right)).verdict, only(audit(right)).generator) == ("ok", "MyFiLM")
    assert only(audit(wrong)).reason == "wants D - 1, is given 5*R by readout"
    assert not audit(wrong).ok


def test_a_registered_readout_is_taken_before_a_head_that_reads_registers_too() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        readout = regplug.create("mean", num_registers=num_registers, hidden_dim=hidden_dim)
        return Net(readout, film(hidden_dim), head=head(hidden_dim))

    assert (only(audit(build)).readout, only(audit(build)).verdict) == ("readout", "ok")


def test_of_two_readouts_the_one_that_gives_what_is_wanted_is_meant() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        other = regplug.create("mean", num_registers=num_registers, hidden_dim=hidden_dim)
        return Net(Mine(num_registers, hidden_dim, 5), film(5 * num_registers), other=other, head=head(hidden_dim))

    assert (only(audit(build)).readout, only(audit(build)).verdict) == ("readout", "ok")


def test_two_readouts_that_both_fit_leave_it_open_unless_neither_follows() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 16, fixed: int | None = None) -> nn.Module:
        sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim}
        readout = regplug.create("compress-concat", **sizes, compressed_dim=4)
        return Net(readout, film(fixed or hidden_dim), other=regplug.create("mean", **sizes))

    one = only(audit(build))
    assert (one.verdict, one.readout, one.reason) == ("cannot tell", None, "2 readouts are as near: readout, other")
    assert audit(build).ok
    assert only(audit(build, fixed=16)).verdict == "does not follow"


@pytest.mark.parametrize("width", [128, 2], ids=["a time embedding", "one register of several"])
def test_a_generator_that_another_thing_may_feed_is_left_open(width: int) -> None:
    def build(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        return Net(Mine(num_registers, hidden_dim, 4), film(width))

    one = only(audit(build))
    assert one.verdict == "cannot tell"
    assert f"wants {width}, is given 4*R by readout; " in one.reason


def test_a_projection_between_them_leaves_it_open() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        between = nn.Linear(4 * num_registers, hidden_dim)
        return Net(Mine(num_registers, hidden_dim, 4), film(hidden_dim), between=between)

    one = only(audit(build))
    assert (one.verdict, one.reason) == (
        "cannot tell",
        "wants D, is given 4*R by readout; between may stand between them",
    )


def test_a_width_with_something_added_leaves_it_open() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        return Net(Mine(num_registers, hidden_dim, 4), film(4 * num_registers + 256))

    one = only(audit(build))
    assert (one.verdict, one.reason) == (
        "cannot tell",
        "wants 4*R + 256, is given 4*R by readout; 256 may come from elsewhere",
    )


def test_a_generator_that_hides_its_width_or_has_no_readout_is_left_open() -> None:
    def hides(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        return Net(Mine(num_registers, hidden_dim, 4), MyFiLM(4 * num_registers, keep=False))

    def alone(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        return Net(nn.Flatten(), film(num_registers * hidden_dim))

    assert only(audit(hides)).reason == "it does not say at every size which width it wants"
    assert only(audit(alone)).reason == "no module beside it reads registers [B, R, D] into [B, cond_dim]"
    assert {only(audit(build)).verdict for build in (hides, alone)} == {"cannot tell"}


def test_a_readout_of_fixed_registers_does_not_follow() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        return Net(regplug.create("concat", num_registers=4, hidden_dim=hidden_dim), film(4 * hidden_dim))

    one = only(audit(build))
    assert one.verdict == "does not follow"
    assert "its readout readout reads nothing at R=5, D=16: " in one.reason
    assert "expected registers [B, 4, 16], got [2, 5, 16]" in one.reason


def test_sizes_that_refuse_are_replaced_and_reported() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        if num_registers % 4:
            raise ValueError("registers go four by four")
        return Net(Mine(num_registers, hidden_dim, 4), film(16))

    found = audit(build)
    assert len(found.sizes) == 6
    assert {sizes["num_registers"] % 4 for sizes in found.sizes} == {0}
    assert {one.error for one in found.refused} == {"registers go four by four"}
    assert [one.verdict for one in found.findings] == ["does not follow"]


def test_a_size_that_cannot_change_is_told_and_one_network_alone_proves_nothing() -> None:
    def some(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        if num_registers != 4:
            raise ValueError("four")
        return Net(Mine(num_registers, hidden_dim, 4), film(16))

    def none(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        if hidden_dim != 16:
            raise ValueError("sixteen")
        return some(num_registers, hidden_dim)

    assert audit(some).fixed == ("num_registers",)
    with pytest.raises(
        SpecError, match=r"network x: expected to build at other sizes than R=4, D=16, got \d+ refusals"
    ):
        audit(none)


def test_a_constructor_that_reads_numbers_is_called_on_the_cpu() -> None:
    def build(num_registers: int = 4, hidden_dim: int = 16) -> nn.Module:
        rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        return Net(Mine(num_registers, hidden_dim, 4), film(4 * num_registers), drop=nn.Dropout(rates[1]))

    found = audit(build)
    assert (found.device, found.ok, len(found.sizes)) == ("cpu", True, 6)


# ---- the command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(audit_command, [str(one) for one in arguments])


def test_the_digits_backbone_follows() -> None:
    for chosen in ([], ["-O", "readout=pool"], ["--num-registers", 3, "--hidden-dim", 20, "-O", "readout=digits-gate"]):
        done = run("digits-vit", *chosen, "--json")
        values = json.loads(done.stdout)
        assert (done.exit_code, values["schema"], values["ok"]) == (0, "regplug.audit/1", True)
        assert [one["module"] for one in values["findings"]] == ["blocks.0.film", "blocks.1.film"]
        assert {one["verdict"] for one in values["findings"]} == {"ok"}
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
    assert lines[2].endswith("does not follow")
    assert lines[3] == f"blocks.0.{GENERATOR}: does not follow: wants R*D/4, is given R*c by blocks.0.register_pooling"


def test_a_constructors_own_refusal_is_printed_with_exit_code_one() -> None:
    done = run("test_audit:Conditioned", "-O", "cond_dim=48")
    assert done.exit_code == 1
    assert "wrong width at R=5, D=48: FiLM generator KernelFiLMGenerator: expected conditioning" in done.stdout


def without_film(hidden_dim: int) -> nn.Module:
    return nn.Linear(hidden_dim, 3)


def test_a_network_without_a_generator_has_no_width_to_follow() -> None:
    done = run("test_audit:without_film", "--num-registers", 4, "--hidden-dim", 8)
    assert done.exit_code == 0
    assert "no FiLM generator found: none of a known family, no constructor that names one of cond_dim, " in done.stdout
    assert "num_registers: kept its value" in done.stdout


WRONG = {
    "backbone 'digits-vitt': not registered; known: digits-vit, ": ["digits-vitt"],
    "expected to import 'no.such:Thing'": ["no.such:Thing"],
    "expected to import 'test_audit:nothing'": ["test_audit:nothing"],
    "num_registers: expected a positive integer, got 0.": ["digits-vit", "--num-registers", 0],
    "hidden_dim: expected a positive integer, got -8.": ["test_audit:shipped", "--hidden-dim", -8],
    "compressed_dim: expected a positive integer, got 'x'.": ["test_audit:shipped", "-O", "compressed_dim=x"],
    "compressed_dim: expected a constructor that names it, got 3.": ["test_audit:pooled", "-O", "compressed_dim=3"],
    "option 'bogus': expected a known option, got 3": ["test_audit:shipped", "-O", "bogus=3"],
    "num_registers: expected --num-registers, as its constructor has no size by default, got none.": [
        "test_audit:without_film",
        "--hidden-dim",
        8,
    ],
    "network torch.nn:Linear: expected a constructor that names num_registers or hidden_dim or compressed_dim": [
        "torch.nn:Linear"
    ],
    "strategy 'meen': not registered": ["digits-vit", "-O", "readout=meen"],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_audited_is_told_in_one_message(message: str) -> None:
    done = run(*WRONG[message])
    assert isinstance(done.exception, regplug.RegplugError)
    assert message in str(done.exception)
    assert exit_code(done.exception) == 2

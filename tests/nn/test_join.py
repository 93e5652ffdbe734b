"""A join reads several groups of tokens, each by its own strategy, into one vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.commands import run_command
from support.damage import edit_manifest
from support.plugins import installed_with
from support.readouts import moved
from support.wrong_backbones import EVEN, Interleaved, entry_of, laid_out
from torch import Tensor

import regplug
from regplug import SpecError
from regplug.nn.readouts.join_parts import JoinPart

NAME = "timm:vit_small_patch14_reg4_dinov2"
OPTIONS: dict[str, Any] = {"img_size": 42, "depth": 1}
FILM = {"kernel_hidden_dim": 3, "num_film_layers": 2}
IMAGES = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(0))
THREE = regplug.join(cls="mean", registers=("compress-concat", {"compressed_dim": 8}), patches="pool")
SIZES = {"num_registers": 14, "hidden_dim": 384}
PARTS = [
    {"name": "cls", "strategy": "mean", "stop": 1},
    {"name": "registers", "strategy": "compress-concat", "start": 1, "stop": 5, "options": {"compressed_dim": 8}},
    {"name": "patches", "strategy": "mean", "start": 5},
]


def network() -> Any:
    torch.manual_seed(0)
    return timm.create_model(NAME.removeprefix("timm:"), **OPTIONS).eval()


def by_hand(whole: Any, tokens: Tensor) -> Tensor:
    """The vector of ``THREE``, as one writes it oneself."""
    parts = whole.readout.parts
    registers = torch.nn.functional.linear(tokens[:, 1:5], parts.registers.readout.compress.weight).flatten(1)
    weights = parts.patches.readout.logits.softmax(0)
    return torch.cat([tokens[:, 0], registers, torch.einsum("r,brc->bc", weights, tokens[:, 5:])], dim=1)


def test_a_join_is_the_concatenation_of_its_parts_and_its_width_their_sum() -> None:
    model = network()
    whole = moved(regplug.attach(model, THREE), 0.2)
    assert whole.spec.cond_dim == 384 + 4 * 8 + 384
    torch.testing.assert_close(whole(IMAGES), by_hand(whole, model.forward_features(IMAGES)))


def test_dinov2s_linear_input_is_a_join_to_the_bit() -> None:
    model = network()
    tokens = model.forward_features(IMAGES)
    wanted = torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1)  # dinov2/eval/linear.py, with one layer
    assert torch.equal(regplug.attach(model, regplug.join(cls="mean", patches="mean"))(IMAGES), wanted)


def test_another_strategy_for_a_part_changes_every_width_that_follows() -> None:
    for strategy, width in (("mean", 384), (("compress-concat", {"compressed_dim": 2}), 9 * 2)):
        join = regplug.join(registers="mean", patches=strategy)
        whole: Any = regplug.attach(network(), join, film_options=FILM)
        assert whole.spec.cond_dim == whole.conditioner.film.mlp[0].in_features == 384 + width
        assert len(whole(IMAGES)) == 2


def test_the_parts_keep_their_names_and_weights() -> None:
    whole: Any = regplug.attach(network(), THREE)
    keys = [*whole.readout.state_dict()]
    assert keys == ["parts.registers.readout.compress.weight", "parts.patches.readout.logits"]


def test_a_join_is_a_strategy_as_others_are() -> None:
    spec = regplug.resolve("join", **SIZES, parts=PARTS)
    assert (spec.cond_dim, spec.formula, spec.conditions) == (800, "2*D + 32", ("R >= 6",))
    again = json.loads(json.dumps(spec.as_dict()))
    del again["cond_dim"]
    assert regplug.resolve(again.pop("strategy"), **again.pop("options"), **again) == spec
    sizes = ["--num-registers", "14", "--hidden-dim", "384"]
    code, out, _ = run_command("cond-dim", "join", *sizes, "-O", f"parts={json.dumps(PARTS)}")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert lines[1] == ["cls", "tokens", "0:1", "regplug:mean", "384"]
    assert lines[-1] == ["sum", "800"]
    _, out, _ = run_command("cond-dim", "join", *sizes, "-O", f"parts={json.dumps(PARTS)}", "--json")
    assert [part["cond_dim"] for part in json.loads(out)["parts"]] == [384, 32, 384]


@pytest.mark.parametrize("film", [None, FILM])
def test_a_bundle_of_a_join_loads_with_its_backbone(film: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = moved(regplug.attach(NAME, THREE, model_options=OPTIONS, film_options=film).eval(), 0.05)
    regplug.export(whole.spec, whole, tmp_path / "b")
    wanted = whole(IMAGES)
    for loaded in (regplug.load(tmp_path / "b"), regplug.load(tmp_path / "b", program="torchscript")):
        torch.testing.assert_close(loaded(IMAGES), wanted)
    strategies = [part["strategy"] for part in regplug.verify(tmp_path / "b").manifest.options["parts"]]
    assert strategies == ["regplug:mean", "regplug:compress-concat", "regplug:pool"]


def test_all_parts_compute_in_the_dtype_of_the_weights() -> None:
    readout = regplug.resolve("join", **SIZES, parts=PARTS).build()
    tokens = torch.randn(2, 14, 384, dtype=torch.float64)
    assert readout(tokens).dtype == torch.float32
    assert torch.equal(readout(tokens), readout(tokens.float()))
    without = regplug.resolve("join", **SIZES, parts=PARTS[::2]).build()
    assert without(tokens).dtype == torch.float64


def test_the_flops_are_those_of_the_parts_and_unknown_if_one_is() -> None:
    readout: Any = regplug.resolve("join", **SIZES, parts=PARTS).build()
    assert readout.flop_count(384) == 2 * 4 * 384 * 8 + 9 * 384  # nothing for one class token
    readout.parts["cls"].readout = torch.nn.Flatten()
    assert not hasattr(readout, "flop_count")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "parts: expected at least one JoinPart, got ()"),
        ([{"name": f"p{i}", "strategy": "mean"} for i in range(65)], "parts: expected at most 64, got 65"),
        (PARTS[:1] * 2, "part 'cls': expected each name once, got it twice"),
        ([{"name": "x", "strategy": "join"}], "part 'x': strategy: expected one that is not a join itself"),
        ([{"name": "x", "strategy": "nosuch"}], "strategy 'nosuch': not registered"),
        ([{"name": "in", "strategy": "mean"}], "no word of Python's, got 'in'"),
        ([{"name": "x", "strategy": "mean", "stop": 15}], "part 'x': expected tokens inside a sequence of 14"),
        ([{"name": "x", "strategy": "mean", "start": -15}], "part 'x': expected tokens inside a sequence of 14"),
        ([{"name": "x", "strategy": "mean", "start": 14}], "part 'x': expected tokens inside a sequence of 14, which"),
        ([{"name": "keys", "strategy": "mean"}], "part 'keys': expected a name that nn.ModuleDict does not use"),
        (
            [{"name": "a.b", "strategy": "mean"}],
            "name: expected lower-case letters, digits and underscores, no word of Python's, got 'a.b'",
        ),
        ([{"name": "x", "strategy": "compress-concat"}], "expected option compressed_dim: int, got none"),
        ([{"strategy": "mean"}], "missing: name"),
        ("mean", "got 'mean'"),
    ],
)
def test_wrong_parts_are_refused(parts: Any, words: str) -> None:
    with pytest.raises(SpecError) as error:
        regplug.resolve("join", **SIZES, parts=parts)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: regplug.join(), "join: expected at least one part, as registers='pool', got none"),
        (lambda: regplug.join(cls=3.5), "join: part 'cls': expected a strategy's name, (name, options), or a vector's"),
        (lambda: regplug.join(state=0), "join: part 'state': width: expected a positive integer, got 0"),
        (lambda: regplug.join(state=(7, 8)), "join: part 'state': expected a strategy's name, (name, options), or a"),
        (lambda: regplug.join(cls="mean").swap(state=7), "join: swap: expected some of cls, got 'state'"),
        (lambda: regplug.attach(network(), regplug.join(state="mean")), "one of registers, cls, patches, tokens"),
        (lambda: regplug.attach(network(), THREE, group="cls"), "attach: group: expected none with a join"),
        (
            lambda: regplug.attach(network(), THREE, eps=1),
            "options: expected each in its part of the join, got eps",
        ),
    ],
)
def test_a_wrong_join_is_refused(make: Any, words: str) -> None:
    with pytest.raises(SpecError) as error:
        make()
    assert words in str(error.value)


def test_the_strategy_by_its_name_reads_all_tokens() -> None:
    model = network()
    whole = regplug.attach(model, "join", parts=PARTS)
    assert (whole.spec.num_registers, whole.layout.positions(14)) == (14, tuple(range(14)))
    assert torch.equal(whole(IMAGES)[:, :384], model.forward_features(IMAGES)[:, 0])
    code, _, err = run_command("cond-dim", "join", "--backbone", NAME, "-O", f"parts={json.dumps(PARTS)}")
    assert (code, "join: expected --num-registers T and --hidden-dim D" in err) == (2, True)


def test_a_bundle_with_another_length_is_refused_by_its_name(tmp_path: Path) -> None:
    whole = regplug.attach(NAME, regplug.join(cls="mean", registers="mean"), model_options=OPTIONS)
    regplug.export(whole.spec, whole, tmp_path / "b", backends=[])

    def shorten(manifest: Any) -> None:
        manifest["num_registers"] = manifest["layout"]["num_registers"] = manifest["layout"]["num_tokens"] = 13

    edit_manifest(tmp_path / "b", shorten)
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(tmp_path / "b")
    assert str(error.value).startswith(f"bundle {tmp_path / 'b'}: ")


def test_registers_that_are_not_next_to_each_other_are_refused() -> None:
    registry = installed_with(entry_of(Interleaved, layout=laid_out(**EVEN)))
    with pytest.raises(SpecError, match=r"^join: part 'registers': expected tokens next to each other, got \("):
        regplug.attach(Interleaved(), regplug.join(registers="mean"), backbone="acme-vit", registry=registry)


def test_a_part_is_plain_data() -> None:
    assert JoinPart("cls", "mean") == JoinPart("cls", "regplug:mean", 0, None, {})
    assert hash(JoinPart("cls", "mean")) == hash(JoinPart("cls", "mean", options={}))

"""`regplug audit --effect`: what it takes, what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import run_command
from torch import nn

import regplug_digits
from regplug.commands.effect.findings import INFO_KINDS, KINDS
from regplug.commands.effect.options import FAILING
from regplug_digits import load_pretrained
from regplug_digits.data import load
from regplug_digits.model import DigitsViT

TRAINED = Path(regplug_digits.__file__).parent / "trained" / "compress-concat.safetensors"
NETWORK = "regplug_digits.model:DigitsViT"
FUNCTION = "regplug_digits:load_pretrained"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def effect(*arguments: object) -> tuple[int, dict]:
    code, out, err = run_command("audit", "--effect", *arguments, "--json")
    assert err == ""
    found = json.loads(out)
    assert found["schema"] == "regplug.effect/1"
    return code, found


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A batch of real digits."""
    np.savez(tmp_path / "digits.npz", images=load()[1].images[:12].numpy())
    return tmp_path / "digits.npz"


def in_part(folder: Path, without: str) -> Path:
    """The trained weights, without those whose names have a beginning."""
    tensors = {name: one for name, one in load_file(TRAINED).items() if not name.startswith(without)}
    save_file(tensors, folder / "part.safetensors")
    return folder / "part.safetensors"


@pytest.mark.parametrize(
    ("arguments", "state", "inputs"),
    [
        (("digits-vit",), "at-start", "drawn"),
        ((NETWORK, "-O", "readout=mean"), "at-start", "drawn"),
        ((NETWORK, "--hidden-dim", 24, "--num-registers", 3), "at-start", "drawn"),
        ((FUNCTION,), "trained", "drawn"),
        ((FUNCTION, "--input", "images=B,8,8"), "trained", "drawn"),
        ((NETWORK, "--weights", TRAINED), "trained", "drawn"),
    ],
    ids=["backbone", "class", "sizes", "function", "shapes", "weights"],
)
def test_it_takes_a_backbone_a_class_and_a_function(arguments, state, inputs):
    code, found = effect(*arguments, "--batch", 8, "--fail-on", "any")
    assert (code, found["state"], found["inputs"], found["batch"]) == (0, state, inputs, 8)
    assert found["network"] == arguments[0]
    assert [site["state"] for site in found["sites"]] == ["used", "used"]
    assert (found["ok"], found["failed_on"], found["findings"]) == (True, [], [])


def test_the_command_and_the_function_give_the_same_numbers(digits):
    import regplug

    _, found = effect(FUNCTION, "--inputs", digits)
    assert (found["inputs"], found["batch"]) == ("given", 12)
    wanted = regplug.effect(load_pretrained(), load()[1].images[:12]).as_json()
    assert found == {**found, **wanted, "network": FUNCTION}


def test_inputs_may_be_compressed_and_in_any_order_of_bytes(digits, tmp_path):
    images = np.load(digits)["images"]
    np.savez_compressed(tmp_path / "swapped.npz", images=np.asfortranarray(images.astype(">f4")))
    of_numbers = (FUNCTION, "--inputs")
    assert effect(*of_numbers, tmp_path / "swapped.npz") == effect(*of_numbers, digits)


def test_inputs_are_read_from_safetensors_too(digits, tmp_path):
    save_file({"images": load()[1].images[:12].contiguous()}, tmp_path / "digits.safetensors")
    assert effect(FUNCTION, "--inputs", tmp_path / "digits.safetensors") == effect(FUNCTION, "--inputs", digits)


def test_weights_that_the_file_does_not_have_fail_if_that_is_asked(tmp_path):
    part = in_part(tmp_path, "blocks.1.film.")
    for fail_on, code in (((), 0), (("no-effect",), 0), (("never-loaded",), 1), (("any",), 1)):
        asked = [word for kind in fail_on for word in ("--fail-on", kind)]
        got, found = effect(NETWORK, "--weights", part, *asked)
        assert got == code
        assert [(one["kind"], one["grade"], one["module"]) for one in found["findings"]] == [
            ("never-loaded", "sure", "blocks.1.film")
        ]
        assert found["failed_on"] == (["never-loaded"] if code else [])


def test_the_table_for_people_names_sites_readouts_and_findings(tmp_path):
    code, out, err = run_command(
        "audit", "--effect", NETWORK, "--weights", in_part(tmp_path, "blocks.1.film."), "--fail-on", "any"
    )
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "DigitsViT, trained; 16 drawn samples; noise 0"
    assert lines[1].split()[:5] == ["FiLM", "site", "from", "swap", "mean"]
    assert lines[2].split()[:2] == ["blocks.0.film", "blocks.0.readout"]
    assert any(
        line.startswith("sure: never-loaded: blocks.1.film: 11456 numbers still at their start.") for line in lines
    )
    assert lines[-2:] == ["2 FiLM sites, 2 readouts: 1 findings", "failed: never-loaded (blocks.1.film)"]


def broken() -> nn.Module:
    """A trained network whose last block ignores its registers."""
    network = load_pretrained()
    with torch.no_grad():
        network.blocks[1].film.mlp[2].weight.zero_()
    return network


def test_a_function_may_return_a_network_with_a_defect():
    code, found = effect("commands.test_effect_command:broken", "--fail-on", "zero-last-layer")
    assert code == 1
    assert found["sites"][1]["state"] == "constant"


def test_a_network_without_film_is_said_to_have_none():
    code, out, _ = run_command("audit", "--effect", "torch.nn:Linear", "-O", "in_features=3", "-O", "out_features=2")
    assert code == 0
    assert "no FiLM site found" in out


def test_every_kind_that_may_be_a_defect_is_a_choice():
    assert run_command("audit", "--effect", FUNCTION, "--fail-on", "at-start")[0] == 2
    assert set(FAILING) == {"any"} | set(KINDS) - set(INFO_KINDS)
    assert set(INFO_KINDS) < set(KINDS)
    for one in KINDS.values():
        assert one.unit
        assert one.why
        assert one.do
        assert len(f"{one.unit}{one.why}{one.do}") < 250


def without_weights() -> nn.Module:
    raise KeyError("weights")


def bad_file(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits-vit", "--batch", 8), "--batch: expected with --effect only, got it without"),
        (("digits-vit", "--fail-on", "any"), "--fail-on: expected with --effect only, got it without"),
        (("--effect", "digits-vit", "--allow-unknown"), "--allow-unknown: expected without --effect only, got it with"),
        (("--effect", "digits-vit", "--expect", "a=b"), "--expect: expected without --effect only, got it with"),
        (("--effect", "digits-vit", "--batch", 2), "effect: batch: expected at least 4 samples, got 2"),
        (("--effect", "digits-vit", "--weights", "{torch}"), "weights.safetensors: expected a safetensors file, got"),
        (("--effect", "digits-vit", "--weights", "{other}"), "expected tensors of backbone 'digits-vit', got 'body.w'"),
        (("--effect", "digits-vit", "--weights", "absent"), "File 'absent' does not exist"),
        (
            ("--effect", "digits-vit", "--inputs", "{text}"),
            "--inputs: expected a file .npz or .safetensors, got 'a.txt'",
        ),
        (
            ("--effect", "digits-vit", "--inputs", "{npz}"),
            "--inputs: a.npz: expected a file of numpy.savez, got File is not a zip file.",
        ),
        (
            ("--effect", "digits-vit", "--inputs", "{pickled}"),
            "--inputs: b.npz: images: expected numbers or texts, got Python objects, which are not unpickled",
        ),
        (
            ("--effect", "digits-vit", "--inputs", "{texts}"),
            "--inputs: c.npz: images: expected numbers of a dtype of torch, got <U3.",
        ),
        (("--effect", "digits-vit", "--inputs", "{damaged}"), "--inputs: d.npz: expected a file of numpy.savez, got"),
        (("--effect", "digits-vit", "--inputs", "{short}"), "e.safetensors: expected a safetensors file, got"),
        (
            ("--effect", "digits-vit", "--inputs", "{narrow}"),
            "effect: DigitsViT: expected inputs that its forward takes",
        ),
        (
            ("--effect", "digits-vit", "--inputs", "{narrow}", "--batch", 8),
            "--inputs: expected no --input and no --batch",
        ),
        (("--effect", "nonsense"), "backbone 'nonsense'"),
        (("--effect", "json:dumps"), "network json:dumps: "),
        (("--effect", "test_effect_command:without_weights"), "constructor takes, got none: KeyError: 'weights' ("),
        (("--effect", NETWORK, "-O", "colour=1"), "colour"),
    ],
)
def test_a_wrong_argument_is_one_message_and_exit_code_2(arguments, message, tmp_path):
    save_file({"body.w": torch.zeros(2)}, tmp_path / "other.safetensors")
    np.savez(tmp_path / "b.npz", images=np.array([{}] * 4, dtype=object))
    np.savez(tmp_path / "c.npz", images=np.array(["one"] * 4))
    save_file({"images": torch.randn(8, 20, 20)}, tmp_path / "narrow.safetensors")
    files = {
        "{torch}": bad_file(tmp_path, "weights.safetensors", b"PK\3\4 and more than eight bytes"),
        "{other}": tmp_path / "other.safetensors",
        "{text}": bad_file(tmp_path, "a.txt", b"1 2 3"),
        "{npz}": bad_file(tmp_path, "a.npz", b"1 2 3"),
        "{pickled}": tmp_path / "b.npz",
        "{texts}": tmp_path / "c.npz",
        "{damaged}": bad_file(tmp_path, "d.npz", (tmp_path / "b.npz").read_bytes()[:-30]),
        "{short}": bad_file(tmp_path, "e.safetensors", b"1 2 3"),
        "{narrow}": tmp_path / "narrow.safetensors",
    }
    code, out, err = run_command("audit", *(files.get(one, one) for one in arguments))
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert len(err.splitlines()[-1]) <= 420


def test_a_checkpoint_of_other_shapes_counts_as_missing(tmp_path):
    tensors = load_file(TRAINED)
    tensors["blocks.0.readout.compress.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "shapes.safetensors")
    _, found = effect(NETWORK, "--weights", tmp_path / "shapes.safetensors")
    assert [(one["kind"], one["module"]) for one in found["findings"]] == [("never-loaded", "blocks.0.readout")]


def test_the_default_network_is_not_trained_and_says_so():
    assert "DigitsViT, at-start; 16 drawn samples" in run_command("audit", "--effect", "digits-vit")[1]
    assert DigitsViT().training

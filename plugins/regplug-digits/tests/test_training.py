from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file

import regplug
from regplug_digits import controls, train
from regplug_digits.data import Digits
from regplug_digits.model import DigitsViT
from regplug_digits.weights import METADATA_KEY, load_model, save_model

Parts = tuple[Digits, Digits]


def test_registers_matter(shipped: DigitsViT, parts: Parts) -> None:
    figures = controls.measure(shipped, *parts)
    assert figures["as_trained"] >= 98.0
    for control in ("other", "mean", "zeros"):
        assert figures["as_trained"] - figures[control] > 40, control
    assert figures["as_trained"] - figures["other_last"] > 20
    assert figures["other_named"] > 40


def test_replacing_registers_by_themselves_changes_nothing_and_leaves_no_hook(shipped: DigitsViT, parts: Parts) -> None:
    images = parts[1].images[:20]
    with torch.no_grad():
        plain = shipped(images)
        with controls.replaced_registers(shipped, lambda index, registers: registers):
            assert torch.equal(shipped(images), plain)
        with controls.replaced_registers(shipped, lambda index, registers: registers.flip(0)):
            assert not torch.allclose(shipped(images), plain, atol=0.1)
        assert torch.equal(shipped(images), plain)


def test_a_blind_model_reads_the_same_registers_for_every_image(parts: Parts) -> None:
    model = DigitsViT().eval()
    with controls.replaced_registers(model, controls.blind(model)):
        first, second = controls.registers_read(model, parts[1].images[:2])[1]
    assert torch.equal(first, second)


def test_other_images_is_a_permutation_that_leaves_nothing_in_its_place() -> None:
    others = controls.other_images(360)
    assert sorted(others.tolist()) == list(range(360))
    assert not (others == torch.arange(360)).any()
    assert torch.equal(others, controls.other_images(360))


def test_one_epoch_learns_something_and_one_seed_gives_one_result(parts: Parts) -> None:
    def once() -> tuple[DigitsViT, list[float]]:
        losses: list[float] = []
        model = train.build("digits-gate", None, seed=3)
        train.fit(model, parts[0], epochs=2, seed=3, on_epoch=losses.append)
        return model, losses

    (first, losses), (second, again) = once(), once()
    assert losses == again
    assert losses[1] < losses[0]
    assert not first.training
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_command_trains_prints_and_writes_a_file_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mean.safetensors"
    arguments = ["--readout", "compress-concat", "-O", "compressed_dim=5", "--epochs", "1", "-o", str(path)]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("compress-concat: ")
    assert "of 360 held-out images (seed 0, 1 epochs" in result.stdout
    assert "logistic regression" in result.stdout
    assert result.stderr == ""
    with safe_open(path, framework="pt") as file:
        text = file.metadata()[METADATA_KEY]
    options = json.loads(text)
    assert text == json.dumps(options, sort_keys=True)
    assert (options["readout"], options["readout_options"]) == ("compress-concat", {"compressed_dim": 5})
    assert load_model(path).cond_dim == 20
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--readout", "meen"], "closest: mean"),
        (["-O", "compressed_dim=wide"], "expected int, got 'wide'"),
        (["-O", "compressed_dim"], "-O: expected key=value, got 'compressed_dim'."),
        (["-o", "nowhere/weights.safetensors"], "-o: expected an existing folder"),
        (["--epochs", "0"], "--epochs"),
    ],
)
def test_command_refuses_what_it_cannot_do_before_training(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_saved_weights_come_back_as_they_were(shipped: DigitsViT, parts: Parts, tmp_path: Path) -> None:
    save_model(shipped, tmp_path / "again.safetensors")
    again = load_model(tmp_path / "again.safetensors")
    with torch.no_grad():
        assert torch.equal(again(parts[1].images), shipped(parts[1].images))
    assert (tmp_path / "again.safetensors").stat().st_size < 1_000_000


def test_files_that_are_not_a_classifier_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(regplug.BundleError, match="expected a safetensors file"):
        load_model(path)
    save_file({"one": torch.zeros(1)}, path)
    with pytest.raises(regplug.BundleError, match="expected metadata 'regplug_digits'"):
        load_model(path)
    save_file({"one": torch.zeros(1)}, path, metadata={METADATA_KEY: '{"readout": "mean"}'})
    with pytest.raises(regplug.BundleError, match="expected the weights of a digits-vit"):
        load_model(path)


def test_controls_print_json_and_a_table() -> None:
    result = CliRunner().invoke(controls.main, ["--readout", "compress-concat", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["schema"] == "regplug-digits/controls/1"
    assert report["accuracy"]["compress-concat"]["as_trained"] >= 98.0
    table = CliRunner().invoke(controls.main, ["--readout", "pool", "--epochs", "1", "--blind"])
    assert table.exit_code == 0, table.output
    assert "pool" in table.stdout
    assert "retrained without" in " ".join(table.stdout.split())

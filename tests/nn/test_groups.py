"""A readout reads any group of a backbone's tokens: class tokens, patches, registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.commands import run_command
from support.plugins import installed_with
from support.wrong_backbones import AnySize, OfAnySize, entry_of, laid_out
from torch import Tensor

import regplug
from regplug import SpecError, TokenGroup, TokenLayout

NAME = "timm:vit_small_patch14_reg4_dinov2"
OPTIONS: dict[str, Any] = {"img_size": 42, "depth": 1}
IMAGES = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(0))
PLACES = {"cls": slice(0, 1), "registers": slice(1, 5), "patches": slice(5, None)}


def network() -> Any:
    torch.manual_seed(0)
    return timm.create_model(NAME.removeprefix("timm:"), **OPTIONS).eval()


def tokens_of(model: Any, group: str) -> Tensor:
    """The group's tokens, sliced by hand."""
    tokens: Tensor = model.forward_features(IMAGES)[:, PLACES[group]]
    return tokens


@pytest.mark.parametrize("group", PLACES)
def test_each_group_is_read_as_a_slice_by_hand_reads_it(group: str) -> None:
    model = network()
    wanted = tokens_of(model, group)
    assert torch.equal(regplug.read_registers(model, IMAGES, group=group), wanted)
    whole = regplug.attach(model, "mean", group=group)
    assert torch.equal(whole(IMAGES), wanted.mean(1))
    assert (whole.spec.num_registers, whole.layout.groups) == (wanted.shape[1], ())


def test_the_slices_of_two_groups_differ() -> None:
    model = network()
    assert not torch.allclose(tokens_of(model, "cls"), tokens_of(model, "patches").mean(1, keepdim=True))


def test_a_group_takes_every_strategy_and_its_width_follows() -> None:
    model = network()
    whole = regplug.attach(
        model,
        "compress-concat",
        group="patches",
        compressed_dim=2,
        film_options={"kernel_hidden_dim": 3, "num_film_layers": 2},
    )
    assert whole.spec.cond_dim == 9 * 2
    assert whole(IMAGES)[0][0].shape == (2, 3)
    assert regplug.attach(model, "select-concat", group="cls", indices=[0]).spec.cond_dim == 384


@pytest.mark.parametrize("group", ["cls", "patches"])
def test_a_bundle_of_another_group_loads_with_its_backbone(group: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = regplug.attach(NAME, "mean", group=group, model_options=OPTIONS).eval()
    regplug.export(whole.spec, whole, tmp_path / "b")
    loaded = regplug.load(tmp_path / "b")
    torch.testing.assert_close(loaded(IMAGES), whole(IMAGES))
    torch.testing.assert_close(regplug.load(tmp_path / "b", program="torchscript")(IMAGES), whole(IMAGES))
    assert loaded.layout == whole.layout


def test_the_command_line_exports_a_group_and_info_lists_them(tmp_path: Path) -> None:
    options = ["-M", "img_size=42", "-M", "depth=1"]
    given = ["export", "mean", "--backbone", NAME, *options, "--group", "patches"]
    code, _, err = run_command(*given, "-o", tmp_path / "b")
    assert (code, "--group patches: expected --with-backbone" in err) == (2, True)
    code, out, err = run_command(*given, "--with-backbone", "--no-programs", "-o", tmp_path / "b")
    assert code == 0, err
    layout = regplug.verify(tmp_path / "b").manifest.token_layout
    assert layout == TokenLayout(9, 384, start=5, num_tokens=14, normalized=True)
    code, out, _ = run_command("info", NAME, *options)
    lines = [line.split() for line in out.splitlines() if line.startswith(("cls", "patches"))]
    assert lines == [["cls", "0", "1"], ["patches", "5"]]


def test_an_unknown_group_names_those_there_are() -> None:
    for group in ("patch", None, 3):
        with pytest.raises(
            SpecError, match="^TokenLayout: group: expected one of registers, cls, patches, tokens, got "
        ):
            regplug.attach(network(), "mean", group=group)  # type: ignore[arg-type]


def test_attaching_to_a_group_of_free_length_leaves_the_modes_of_the_model() -> None:
    model = network().train()
    model.blocks[0].eval()
    before = {name: part.training for name, part in model.named_modules()}
    regplug.attach(model, "mean", group="patches")
    assert {name: part.training for name, part in model.named_modules()} == before


def test_a_free_group_needs_inputs_of_one_size() -> None:
    layout = laid_out(start=-3, groups=(TokenGroup("patches", 0, -3),))
    registry = installed_with(entry_of(AnySize, tokens=OfAnySize, layout=layout))
    model = AnySize()
    with pytest.raises(SpecError, match="^group 'patches': expected a backbone that states the one size of its images"):
        regplug.attach(model, "mean", group="patches", backbone="acme-vit", registry=registry)
    for size in (8, 16):  # the tokens themselves can be read
        images = torch.randn(1, 3, size, size)
        read = regplug.read_registers(model, images, group="patches", backbone="acme-vit", registry=registry)
        assert read.shape[1] == (size // 4) ** 2

"""``--part``: joins on the command line."""

import json

import pytest
from support.commands import run_command

import regplug

VIT = ["--backbone", "timm:vit_small_patch14_reg4_dinov2"]
SMALL = ["-M", "img_size=28", "-M", "depth=1", "-M", "embed_dim=24", "-M", "num_heads=2"]
PARTS = ["--part", "cls=mean", "--part", "registers=compress-concat,compressed_dim=6", "--part", "patches=mean"]


def test_the_width_of_a_backbones_join_is_printed_part_by_part() -> None:
    code, out, _ = run_command("cond-dim", *VIT, *SMALL, *PARTS, "--part", "state=7", "--part", "time=1,gated-abmil")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["part", "reads", "strategy", "cond_dim"],
        ["cls", "tokens", "0:1", "regplug:mean", "24"],
        ["registers", "tokens", "1:5", "regplug:compress-concat", "24"],
        ["patches", "tokens", "5:", "regplug:mean", "24"],
        ["state", "vector", "of", "7", "-", "7"],
        ["time", "vector", "of", "1", "regplug:gated-abmil", "1"],
        ["sum", "80"],
    ]


def test_the_parts_are_in_the_json() -> None:
    _, out, _ = run_command("cond-dim", *VIT, *SMALL, *PARTS, "--json")
    found = json.loads(out)
    assert (found["cond_dim"], found["num_registers"]) == (72, None)
    assert [part["cond_dim"] for part in found["parts"]] == [24, 24, 24]


def test_a_join_with_its_backbone_is_exported(tmp_path) -> None:
    words = [*VIT, *SMALL, *PARTS, "--part", "state=7", "--with-backbone", "-o", str(tmp_path / "b")]
    code, _, err = run_command("export", *words)
    assert code == 0, err
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert (manifest["bundle_format"], manifest["cond_dim"]) == (2, 79)
    assert [part["name"] for part in manifest["parts"]] == ["cls", "registers", "patches", "state"]
    assert regplug.load(tmp_path / "b").spec.cond_dim == 79


def test_a_mask_is_exported(tmp_path) -> None:
    words = ["mean", "--num-registers", "any", "--hidden-dim", "24", "--mask", "-o", str(tmp_path / "b")]
    assert run_command("export", *words)[0] == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert [one["name"] for one in (manifest["input"], *manifest["more_inputs"])] == ["tokens", "mask"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "cls=mean"], "--part: expected --backbone NAME, whose groups the parts name, got none."),
        ([*VIT, "pool", *PARTS], "--part: expected neither STRATEGY nor -O, as each part has its own, got both."),
        ([*VIT, *PARTS, "--part", "cls=pool"], "--part: cls: expected once, got it twice."),
        ([*VIT, "--part", "cls"], "expected NAME=STRATEGY, NAME=WIDTH or NAME=WIDTH,STRATEGY, got 'cls'."),
        ([*VIT, "--part", "cls=eps=1,mean"], "expected NAME=STRATEGY, NAME=WIDTH or NAME=WIDTH,STRATEGY, got 'cls="),
        ([*VIT, "--part", "cls=mean,eps=True"], "cls: eps: expected true, got True"),
        (
            [*VIT, "--part", "tail=mean"],
            "TokenLayout: group: expected one of registers, cls, patches, tokens, got 'tail'.",
        ),
        (
            [*VIT, "--part", "cls=mean", "--part", "state=0"],
            "join: part 'state': width: expected a positive integer, got 0.",
        ),
        (
            [*VIT, "--part", "patches=concat"],
            "strategy 'concat': num_registers: expected a fixed number of registers, got None.",
        ),
    ],
)
def test_wrong_parts_are_refused(words, message) -> None:
    code, _, err = run_command("cond-dim", *words, *(SMALL if VIT[0] in words else []))
    assert code != 0
    assert message in err


def test_parts_without_the_backbone_are_refused_at_export(tmp_path) -> None:
    code, _, err = run_command("export", *VIT, *PARTS, "-o", str(tmp_path / "b"))
    assert code == 2
    assert "--part: expected --with-backbone, which finds the groups' tokens, got none." in err

"""The checks of a backbone: right ones pass, and each wrong one fails its own check and no other."""

import functools
import json
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from support.commands import run_command
from support.plugins import installed_with, registered
from support.wrong_backbones import IMAGE, RIGHT, WRONG, entry_of

import regplug
from regplug.conformance import all_backbone_checks, check_backbone, parametrize_with_backbone_checks
from regplug.conformance.check import EXPECTED_FAILURE, FAILED, NOT_APPLICABLE, PASSED, UNEXPECTED_PASS
from regplug.conformance.marks import find_marks
from regplug.nn.backbone import ask_tokens
from regplug.registry.discovery import discover

LAYOUT = regplug.TokenLayout(3, 16, start=1)
NAMES = [check.name for check in all_backbone_checks()]


def rows_of(entry, **subject):
    return {row.check: row for row in check_backbone("acme-vit", registry=installed_with(entry), **subject)}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize(
    "options", [pytest.param({}, id="as built", marks=pytest.mark.torture), pytest.param({"depth": 6}, id="deeper")]
)
def test_a_right_backbone_passes_every_check(name, options):
    rows = rows_of(RIGHT[name], options=options)
    assert [*rows] == NAMES
    not_passed = {row.check: row.detail for row in rows.values() if row.verdict not in (PASSED, NOT_APPLICABLE)}
    assert not_passed == {}
    assert rows["marks"].verdict == PASSED


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backbone_fails_its_own_check_and_no_other(name):
    entry, wanted, words = WRONG[name]
    rows = rows_of(entry, options={"depth": 3})
    failed = {row.check: row.detail for row in rows.values() if row.verdict == FAILED}
    assert [*failed] == [wanted], failed
    assert words in failed[wanted]
    assert len(failed[wanted]) <= 400


def test_every_check_except_light_plugin_fails_on_a_wrong_backbone():
    assert {check for _, check, _ in WRONG.values()} == {*NAMES} - {"light-plugin"}


def test_marks_leave_every_weight_as_it_was_to_the_bit():
    entry = RIGHT["one prefix"]
    model = entry.build().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = find_marks(ask_tokens(entry, model, False), torch.randn(2, *IMAGE, generator=torch.Generator()))
    assert {one.name: one.positions for one in found.parameters} == {
        "model.cls_register_token": (0, 1, 2, 3),
        "model.prefix_positions": (0, 1, 2, 3),
    }
    assert (found.num_tokens, found.of_the_input, found.unclear) == (8, (4, 5, 6, 7), ())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not [module for module in model.modules() if module._forward_hooks]


def test_a_failure_may_be_expected_and_a_pass_may_not():
    registry = installed_with(WRONG["one too early"][0])
    expected = {"marks": "the layout is that of the next release", "batch": "not so"}
    rows = {row.check: row for row in check_backbone("acme-vit", registry=registry, expected_failures=expected)}
    assert (rows["marks"].verdict, rows["batch"].verdict) == (EXPECTED_FAILURE, UNEXPECTED_PASS)
    assert (rows["marks"].ok, rows["batch"].ok) == (True, False)
    with pytest.raises(regplug.SpecError, match="expected a check's name, got 'mark'.*closest: marks"):
        check_backbone("acme-vit", registry=registry, expected_failures={"mark": "why"})


def test_checks_that_need_a_module_do_not_apply_to_a_backbone_with_sizes_only():
    rows = rows_of(entry_of(build=lambda *name: "sizes", layout=lambda model: LAYOUT, describe=None, film_sites=None))
    assert rows["marks"].verdict == NOT_APPLICABLE
    assert rows["marks"].detail == "its model has sizes only: expected an nn.Module, got str"


def test_pictures_are_not_tried_without_a_preprocess_or_without_pillow(monkeypatch):
    options = {"options": {"depth": 1}}
    assert rows_of(entry_of(), **options)["preprocess"].detail.startswith("RGB, bicubic, crop to 8x8, ")
    for entry, why in (
        (entry_of(preprocess=None), "its entry has no preprocess="),
        (entry_of(preprocess=lambda model: None), "its preprocess gives None for this model"),
    ):
        row = rows_of(entry, **options)["preprocess"]
        assert row.verdict == NOT_APPLICABLE
        assert row.detail.startswith(why)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    row = rows_of(entry_of(), **options)["preprocess"]
    assert (row.verdict, row.detail[:25]) == (NOT_APPLICABLE, "Pillow is not installed; ")


def test_a_model_that_cannot_be_built_is_one_error():
    registry = installed_with(entry_of())
    with pytest.raises(regplug.NameLookupError, match="model 'large': not known"):
        check_backbone("acme-vit:large", registry=registry)
    with pytest.raises(regplug.SpecError, match="input_shape: expected positive integers"):
        check_backbone("acme-vit", registry=registry, input_shape=(3, 0))
    with pytest.raises(regplug.SpecError, match="expected a list of backbones, one or more, got 'acme-vit'"):
        parametrize_with_backbone_checks("acme-vit")


@parametrize_with_backbone_checks([RIGHT["suffix"]], options={"depth": 1})
def test_an_author_gets_one_test_for_each_check(subject, check):
    if check.check.name != "recognised":  # only a registered backbone is
        check(subject)


@pytest.fixture
def run():
    """Run ``regplug check``, with two backbones more, one of them named as a strategy is."""
    acme = [entry_of(), replace(WRONG["one too late"][0], name="acme-wrong", classes=())]
    both = [
        replace(entry_of(classes=()), name="both"),
        regplug.ReadoutEntry("both", "regplug.nn.readouts.averages:RegisterMean"),
    ]
    with registered(*acme), registered(*both, distribution="acme-both"):
        yield functools.partial(run_command, "check")


def test_the_command_checks_a_backbone_by_its_name_with_a_models_options(run, tmp_path):
    code, out, _ = run("acme-vit:small", "-M", "depth=1", "--json", "--junit", tmp_path / "rows.xml")
    found = json.loads(out)
    assert (code, found["ok"], found["schema"]) == (0, True, "regplug.check/1")
    assert (found["backbone"], found["model"], found["options"]) == ("acme:acme-vit", "small", {"depth": 1})
    assert found["layout"]["start"] == 1
    assert [row["check"] for row in found["checks"]] == NAMES
    marks = next(row for row in found["checks"] if row["check"] == "marks")
    assert (marks["readout"], marks["detail"]) == ("acme:acme-vit:small", "model.reg_token at 1-3")
    cases = list(ElementTree.parse(tmp_path / "rows.xml").getroot().iter("testcase"))
    assert [case.get("name") for case in cases] == NAMES


def test_the_command_fails_on_a_layout_that_is_off_by_one(run):
    code, out, _ = run("acme-wrong")
    assert code == 1
    assert "layout: expected registers at 2-4, got a token at 4 that depends on the input." in out
    code, _, _ = run("acme-wrong", "--expect", "marks=known")
    assert code == 0


def test_a_name_of_both_kinds_means_the_strategy_and_with_the_option_the_backbone(run):
    code, out, _ = run("acme-both:both", "--backend", "torchscript", "--compiler", "eager", "--json")
    assert (code, json.loads(out)["strategy"]) == (0, "acme-both:both")
    code, out, _ = run("--backbone", "both", "--json")
    assert json.loads(out)["backbone"] == "acme-both:both"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a strategy, MODULE:CLASS or a backbone, got none."),
        (("acme-vit", "-O", "a=1"), "-O: expected it with a readout, got the backbone acme-vit; -M is for models."),
        (("acme-vit", "--backend", "onnx"), "--backend: expected it with a readout"),
        (("acme-vit", "--backbone", "both"), "--backbone: expected it with a readout"),
        (("acme-vit", "--layout", "start=1"), "--layout: expected it with a readout"),
        (("mean", "--input", "3,8,8"), "--input: expected it with a backbone, got a readout."),
        (("acme-vit", "--input", "3,x"), "input: expected positive integers, as 3,224,224, got '3,x'."),
    ],
)
def test_an_option_for_readouts_is_refused_with_a_backbone(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


def test_another_size_of_input_can_be_tried(run):
    code, out, _ = run("acme-vit", "--input", "3,8,12")
    assert code == 1  # its positions are for one size
    assert "tokens" in out


def test_a_plugin_whose_module_imports_torch_fails_the_check_of_imports(install_plugin, monkeypatch):
    source = (
        "import regplug, torch\n@regplug.hookimpl\ndef regplug_backbones():\n"
        "    return [regplug.BackboneEntry('heavy', build=lambda: 'sizes',\n"
        "        layout=lambda model: regplug.TokenLayout(4, 24, start=1))]\n"
    )
    modules = {"heavy_backbone.py": source, "torch/__init__.py": ""}  # a stub: torch takes seconds
    site = install_plugin("heavy-backbone", modules, {"regplug_v1": {"heavy": "heavy_backbone"}})
    monkeypatch.syspath_prepend(site)
    rows = {row.check: row for row in check_backbone("heavy", registry=regplug.Registry(discover()))}
    assert rows["light-plugin"].verdict == FAILED
    assert "expected heavy_backbone to import no torch, got it" in rows["light-plugin"].detail

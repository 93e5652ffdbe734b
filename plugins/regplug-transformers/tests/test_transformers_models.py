"""Models by type, folder and hub id, and the descriptions of models that were built elsewhere."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.commands import run_command
from transformers_cases import Case

import regplug
from regplug.nn.attached import BackboneSource
from regplug.nn.backbone import measure_backbone, named_backbone
from regplug_transformers.families import FAMILIES
from regplug_transformers.models import build, describe

TYPES = "dinov2_with_registers, dinov3_vit, radio, sapiens2, tipsv2_vision_model"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def refusal(name: str, **options: Any) -> str:
    with torch.device("meta"), pytest.raises((regplug.SpecError, regplug.NameLookupError)) as refused:
        build(name, **options)
    return f"{type(refused.value).__name__}: {refused.value}"


def test_a_type_is_built_by_its_default_configuration_with_options_over_it() -> None:
    with torch.device("meta"):
        assert isinstance(build(), transformers.Dinov2WithRegistersModel)
        for family in FAMILIES:
            assert type(build(family.model_type)).__name__ == f"{family.prefix}Model"
        model = build("dinov3_vit", num_register_tokens=5, hidden_size=96, layer_norm_eps=1e-3)
        assert type(build("tipsv2")).__name__ == "Tipsv2VisionModel"
    assert model.embeddings.register_tokens.shape == (1, 5, 96)
    assert model.norm.eps == 1e-3
    assert model.embeddings.register_tokens.device.type == "meta"


def test_a_name_is_measured_without_weights() -> None:
    found = {}
    for name in ("dinov2_with_registers", "radio", "sapiens2", "tipsv2"):
        layout = measure_backbone(*named_backbone(f"transformers:{name}")).layout
        found[name] = (layout.num_registers, layout.hidden_dim, layout.start, layout.normalized)
    assert found == {
        "dinov2_with_registers": (4, 768, 1, True),
        "radio": (7, 1280, 3, False),
        "sapiens2": (8, 1024, 1, True),
        "tipsv2": (1, 768, 1, True),
    }


def test_the_command_line_prints_a_layout_and_reports_models_without_one() -> None:
    code, out, _ = run_command("info", "transformers:sapiens2", "--json")
    assert (code, json.loads(out)["layout"]["num_registers"]) == (0, 8)
    for name, text in (
        ("dinov3_vit", "DINOv3ViTModel: carries no register tokens (num_register_tokens is 0); use a checkpoint's"),
        (
            "dinov2",
            "model 'dinov2': carries no register tokens that this plugin knows of (model_type 'dinov2'); known:",
        ),
        ("sapiens", f"known: {TYPES} (closest: sapiens2)."),
    ):
        code, _, err = run_command("info", f"transformers:{name}")
        assert code == 2
        assert text in err


def test_dinov3_by_name_takes_its_registers_as_an_option() -> None:
    with torch.device("meta"):
        attached = regplug.attach("transformers:dinov3_vit", "mean", model_options={"num_register_tokens": 4})
    assert attached.layout.num_registers == 4
    with torch.device("meta"), pytest.raises(regplug.SpecError, match="carries no register tokens"):
        regplug.attach("transformers:dinov3_vit", "mean")


def test_a_checkpoints_folder_is_built_by_its_configuration_with_options_over_it(tmp_path: Path) -> None:
    transformers.Sapiens2Config(num_hidden_layers=3, num_register_tokens=6).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = build(str(tmp_path))
        assert (len(model.model.layer), regplug.layout_of(model).num_registers) == (3, 6)
        shallow = build(str(tmp_path), num_hidden_layers=1)
        assert (len(shallow.model.layer), regplug.layout_of(shallow).num_registers) == (1, 6)
        transformers.Tipsv2Config(vision_config={"num_register_tokens": 2}).save_pretrained(tmp_path)
        assert regplug.layout_of(build(str(tmp_path))).num_registers == 2


def test_what_is_attached_by_a_folder_is_described_by_its_type_for_a_bundle_names_no_folder(tmp_path: Path) -> None:
    transformers.Sapiens2Config(num_hidden_layers=1, num_register_tokens=6).save_pretrained(tmp_path)
    source = regplug.attach(f"transformers:{tmp_path}").source
    assert isinstance(source, BackboneSource)
    assert (source.model, source.options["num_register_tokens"]) == ("sapiens2", 6)


def test_a_folder_that_holds_nothing_usable_is_refused(tmp_path: Path) -> None:
    name = str(tmp_path)
    assert refusal(name) == f"NameLookupError: model {name!r}: expected a folder with config.json, got none in it."
    config = tmp_path / "config.json"
    config.write_text("{")
    assert refusal(name).startswith(f"NameLookupError: model {name!r}: expected a configuration there, got OSError: ")
    for text, shown in (("[]", "None"), ('{"model_type": "vit"}', "'vit'"), ('{"hidden_size": 3}', "None")):
        config.write_text(text)
        assert refusal(name) == (
            f"SpecError: model {name!r}: carries no register tokens that this plugin knows of (model_type {shown}); "
            f"known: {TYPES}."
        )
    config.write_text('{"model_type": "radio", "hidden_size": "wide"}')
    assert "expected a configuration that RadioModel can be built of" in refusal(name)


@pytest.mark.usefixtures("offline")
def test_a_hub_id_is_looked_up_and_nothing_else_is() -> None:
    assert refusal("nobody/nothing").startswith("NameLookupError: model 'nobody/nothing': expected a configuration the")
    for name in ("nothing", "./no/where", "/no/where", "a/b/c", "a b/c"):
        assert refusal(name) == (
            f"NameLookupError: model {name!r}: expected a model type, a folder with config.json or a hub id; "
            f"known: {TYPES}."
        )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"num_register": 4},
            r"option 'num_register': expected a known option, got 4; known: .*closest: num_register_",
        ),
        ({"dtype": "bfloat16"}, "option 'dtype': expected a known option, got 'bfloat16'; known: attention_dropout"),
        ({"out_indices": [1]}, "option 'out_indices': expected a known option"),
        ({"hidden_size": "wide"}, "got {'hidden_size': 'wide'}: .*expected int, got str"),
        ({"hidden_size": -6}, "got {'hidden_size': -6}: RuntimeError: "),
        ({"hidden_act": "wow"}, "got {'hidden_act': 'wow'}: KeyError: 'wow'"),
        ({"num_register_tokens": -1}, "got {'num_register_tokens': -1}: RuntimeError"),
    ],
)
def test_an_option_that_no_model_can_be_built_of_is_refused(options: dict[str, Any], text: str) -> None:
    assert re.search(text, refusal("dinov3_vit", **options))


def test_a_missing_transformers_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "use pip install 'regplug-transformers[transformers]'." in refusal("radio")


def test_a_description_holds_what_differs_from_the_default_as_json(case: Case) -> None:
    _, options = describe(case.model)
    assert json.loads(json.dumps(options)) == options
    assert options["num_hidden_layers"] == 1
    with torch.device("meta"):
        assert describe(case.build())[1] == case.options


def test_a_model_that_is_not_what_its_configuration_builds_is_not_described() -> None:
    with torch.device("meta"):
        model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(num_hidden_layers=2))
        derived = type("Mine", (transformers.RadioModel,), {})(transformers.RadioConfig(num_hidden_layers=1))
        without = transformers.RadioModel(transformers.RadioConfig(num_hidden_layers=1))
    del model.encoder.layer[1]
    with pytest.raises(
        regplug.SpecError, match=r"expected what its configuration builds, .*encoder\.layer\.1\.\S+ dif"
    ):
        describe(model)
    with pytest.raises(regplug.SpecError, match="model Mine: expected RadioModel itself, got a class derived from it"):
        describe(derived)
    without.make_preprocessor_external()
    with pytest.raises(regplug.SpecError, match=r"input_conditioner\.norm_mean differs"):
        describe(without)
    # it can still be read and trained; only a bundle must name it
    assert isinstance(regplug.attach(without, "mean").source, regplug.SpecError)


def test_a_torchscript_program_of_a_network_is_refused_in_one_line(tmp_path: Path) -> None:
    model = [f"-M{word}" for word in ("num_hidden_layers=1", "hidden_size=48", "num_attention_heads=3")]
    where = ("--backbone", "transformers:dinov2_with_registers", *model, "-o", str(tmp_path / "bundle"))
    code, out, err = run_command("export", "mean", "--with-backbone", *where, "--backend", "torchscript")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"error: program 'torchscript': expected a scriptable module, got: Dinov2WithRegistersModel, which does not "
        r"script, .*; use the backend aotinductor, or .*\.\n",
        err,
    )
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_holds_the_whole_network_and_gives_it_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "image_size": 32}
    model = build("dinov3_vit", **sizes, num_hidden_layers=1, num_register_tokens=4).eval()
    attached = regplug.attach(model, "mean", normalized=False)
    regplug.export(attached.spec, attached, tmp_path / "bundle", backends=[])
    loaded = regplug.load(tmp_path / "bundle")
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(loaded(images), attached(images))
    assert torch.equal(loaded(images), regplug.read_registers(model, images, normalized=False).mean(dim=1))
    assert not torch.equal(loaded(images), regplug.read_registers(model, images).mean(dim=1))

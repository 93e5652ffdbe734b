"""Where the registers sit: tested on every family's real class and width, and on the meta device."""

from __future__ import annotations

import copy
import doctest
import importlib
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers_cases import Case

import regplug
from regplug.nn.backbone import named_backbone, recognise
from regplug_transformers.reading import tokens

MODULES = ("families", "layouts", "models", "plugin", "reading")


def blocks_left_out(model: nn.Module) -> Any:
    """A copy with blocks that add nothing: each token then shows its own input only."""
    bare = copy.deepcopy(model)
    last = [module for name, module in bare.named_modules() if name.endswith(("o_proj", "fc2", "down_proj"))]
    assert len(last) == 2  # of attention and MLP, in one block
    for parameter in (parameter for module in last for parameter in module.parameters()):
        nn.init.zeros_(parameter)
    return bare


def check_layout(case: Case, bare: nn.Module, layout: regplug.TokenLayout) -> None:
    """Each register's parameter, and nothing else, is found at its position, and it alone moves when it is marked."""
    registers = bare.get_parameter(case.parameter).detach().view(-1, case.hidden_dim)[-case.num_registers :]
    images = case.images()
    with torch.no_grad():
        before = case.raw(bare, images)
        positions = layout.positions(before.shape[1])
        assert torch.equal(before[:, positions], registers.expand(2, -1, -1))
        for register, position in zip(registers, positions, strict=True):
            kept = register.clone()
            register += 1.0  # the mark, in the model's own parameter
            moved = (case.raw(bare, images) != before).any(dim=2).any(dim=0).nonzero().flatten()
            register.copy_(kept)
            assert moved.tolist() == [position]


def test_a_mark_in_a_register_is_found_where_the_layout_says_and_nowhere_else(case: Case) -> None:
    layout = regplug.layout_of(case.model)
    assert (layout.num_registers, layout.hidden_dim) == (case.num_registers, case.hidden_dim)
    bare = blocks_left_out(case.model)
    check_layout(case, bare, layout)
    for start in (layout.start - 1, layout.start + 1):
        with pytest.raises(AssertionError):
            check_layout(case, bare, replace(layout, start=start))


@pytest.mark.parametrize("case", ["radio"], indirect=True)
def test_radio_keeps_its_registers_between_the_tokens_of_its_summary_and_its_patches(case: Case) -> None:
    config = case.config(num_hidden_layers=1, summary_idxs=[0, 1, 2])
    bare = blocks_left_out(transformers.RadioModel(config))
    prefix = bare.embeddings.cls_register_token
    with torch.no_grad():
        before = bare(case.images())
        prefix[regplug.layout_of(bare).start :] += 1.0
        after = bare(case.images())
        assert torch.equal(before.summary, after.summary)
        assert torch.equal(before.features, after.features)
        prefix[2] += 1.0
        assert not torch.equal(before.summary, bare(case.images()).summary)


def test_layout_and_norm_are_known_on_the_meta_device_and_from_a_configuration_alone(case: Case) -> None:
    expected = regplug.TokenLayout(
        num_registers=case.num_registers,
        hidden_dim=case.hidden_dim,
        start=case.start,
        normalized=case.norm is not None,
    )
    with torch.device("meta"):
        deep = case.build()
    assert {parameter.device.type for parameter in deep.parameters()} == {"meta"}
    assert regplug.layout_of(deep) == regplug.layout_of(case.config()) == regplug.layout_of(case.model) == expected


@pytest.mark.parametrize("separately", [False, True])
def test_tipsv2_whole_has_the_layout_of_its_vision_tower(separately: bool) -> None:
    config = transformers.Tipsv2Config(vision_config={"num_register_tokens": 3})
    if separately:
        with torch.device("meta"):
            layout = regplug.layout_of(transformers.Tipsv2Model(config))
    else:
        layout = regplug.layout_of(config)
    assert (layout.num_registers, layout.start, layout.normalized) == (3, 1, True)


HEAD = {"upsample_out_channels": [8], "conv_out_channels": [8]}


@pytest.mark.parametrize(
    "name",
    [
        "Dinov2WithRegistersForImageClassification",
        "Sapiens2ForImageMatting",
        "Sapiens2ForNormalEstimation",
        "Sapiens2ForPointmapEstimation",
        "Sapiens2ForPoseEstimation",
        "Sapiens2ForSemanticSegmentation",
    ],
)
def test_a_model_with_a_head_has_the_layout_of_the_model_inside(name: str) -> None:
    prefix = name.partition("For")[0]
    options: dict[str, Any] = {"head_config": HEAD} if prefix == "Sapiens2" else {}
    config = getattr(transformers, f"{prefix}Config")(**options)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    assert regplug.layout_of(model) == regplug.layout_of(config)


@pytest.mark.parametrize("prefix", ["Dinov2WithRegisters", "DINOv3ViT", "Sapiens2", "Tipsv2Vision"])
def test_a_backbone_class_is_refused_with_the_class_that_keeps_the_registers(prefix: str) -> None:
    config = getattr(transformers, f"{prefix}Config")(num_register_tokens=4)
    with torch.device("meta"):
        model = getattr(transformers, f"{prefix}Backbone")(config)
    with pytest.raises(regplug.SpecError) as refused:
        regplug.layout_of(model)
    assert str(refused.value) == (
        f"model {prefix}Backbone: expected a model that returns the register tokens, got a Backbone class, "
        f"which drops them; use {prefix}Model."
    )
    with pytest.raises(regplug.SpecError, match=f"use {prefix}Model"):
        regplug.read_registers(model, torch.zeros(1, 3, 28, 28))


def test_a_part_of_a_model_is_refused() -> None:
    with torch.device("meta"):
        model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(num_register_tokens=4))
    with pytest.raises(regplug.SpecError, match="model DINOv3ViTEncoder: expected DINOv3ViTModel, or a model that"):
        regplug.layout_of(model.model)


def test_a_configuration_without_registers_is_refused_with_the_name_of_the_attribute(case: Case) -> None:
    word = "num_registers" if case.model_type == "radio" else "num_register_tokens"
    with pytest.raises(
        regplug.SpecError, match=rf"model {case.prefix}Config: carries no register tokens \({word} is 0\); use"
    ):
        regplug.layout_of(case.config(**{word: 0}))


def test_a_dinov3_that_was_built_by_its_default_carries_no_registers() -> None:
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(num_hidden_layers=1))
    with pytest.raises(regplug.SpecError, match=r"DINOv3ViTModel: carries no register tokens \(num_register_tokens is"):
        regplug.read_registers(model, torch.zeros(1, 3, 32, 32))


def test_a_model_of_another_family_is_not_recognised() -> None:
    with torch.device("meta"):
        model = transformers.ViTModel(transformers.ViTConfig())
    with pytest.raises(regplug.NameLookupError, match="model ViTModel: has no registers that an installed plugin"):
        regplug.layout_of(model)


def test_a_sequence_shorter_than_the_layout_is_refused(case: Case) -> None:
    layout = regplug.layout_of(case.model)
    with pytest.raises(regplug.ShapeError, match=f"with T >= {case.start + case.num_registers}, got"):
        regplug.SelectRegisters(layout)(torch.zeros(2, layout.min_tokens - 1, layout.hidden_dim))


def test_a_derived_class_and_a_compiled_model_are_recognised(case: Case) -> None:
    derived = type("Mine", (type(case.model),), {})
    with torch.device("meta"):
        model = derived(case.config())
    assert recognise(model).full_name == "regplug-transformers:transformers"
    assert regplug.layout_of(torch.compile(model)) == regplug.layout_of(model)


def test_a_subclass_with_its_own_forward_is_refused(case: Case) -> None:
    plain = type(case.model)

    def without_registers(self: Any, *arguments: Any, **words: Any) -> Any:
        output = plain.forward(self, *arguments, **words)
        kept = output.last_hidden_state
        output.last_hidden_state = torch.cat((kept[:, : case.start], kept[:, case.start + case.num_registers :]), dim=1)
        return output

    model = copy.copy(case.model)
    model.__class__ = type("Mine", (plain,), {"forward": without_registers})
    expected = f"model Mine: expected the forward of {plain.__name__}, got its own"
    for ask in (regplug.layout_of, regplug.attach, lambda mine: regplug.read_registers(mine, case.images())):
        with pytest.raises(regplug.SpecError, match=expected):
            ask(model)
    model.__class__ = type("Mine", (plain,), {"forward": plain.forward})
    assert regplug.layout_of(model) == regplug.layout_of(case.model)


def test_registers_that_were_replaced_are_counted_where_the_model_keeps_them(case: Case) -> None:
    with torch.device("meta"):
        model = case.build(num_hidden_layers=1)
    before = regplug.layout_of(model)
    path, _, word = case.parameter.rpartition(".")
    kept = model.get_parameter(case.parameter)
    own = kept.shape[-2] - case.num_registers  # RADIO keeps its class tokens there too

    def replaced(*shape: int) -> regplug.TokenLayout:
        setattr(model.get_submodule(path), word, nn.Parameter(torch.empty(shape, device="meta")))
        return regplug.layout_of(model)

    assert replaced(*kept.shape[:-2], own + 9, 48) == replace(before, num_registers=9, hidden_dim=48)
    assert replaced(100) == before == regplug.layout_of(model.config)  # sharded and flat
    with pytest.raises(regplug.SpecError, match=f"model {case.prefix}Model: carries no register tokens"):
        replaced(*kept.shape[:-2], own, 48)
    delattr(model.get_submodule(path), word)
    with pytest.raises(regplug.SpecError, match=f"expected its register tokens at {case.parameter}, got none there"):
        regplug.layout_of(model)


@pytest.mark.parametrize("case", ["dinov3_vit"], indirect=True)
def test_all_of_the_registers_that_were_put_in_are_read(case: Case) -> None:
    model = copy.deepcopy(case.model)
    model.embeddings.register_tokens = nn.Parameter(torch.randn(1, 6, case.hidden_dim))
    images = case.images()
    with torch.no_grad():
        found = regplug.read_registers(model, images)
        assert torch.equal(found, model(images).last_hidden_state[:, 1:7])
    assert regplug.attach(model, "mean").layout.num_registers == 6


@pytest.mark.parametrize("given", [None, 3, transformers.RadioModel, transformers.ViTConfig()])
def test_what_is_neither_a_model_nor_a_configuration_of_a_family_is_refused(given: Any) -> None:
    expected = f"expected a model or a configuration of dinov2_with.*, got {type(given).__name__}"
    with pytest.raises(regplug.SpecError, match=expected):
        regplug.layout_of(given, backbone="transformers")
    with pytest.raises(regplug.SpecError, match=expected):
        tokens(given, True)


def test_a_configuration_is_no_model_to_read_from(case: Case) -> None:
    expected = f"model {case.prefix}Config: expected a model, got its configuration; use {case.prefix}Model"
    with pytest.raises(regplug.SpecError, match=expected):
        tokens(case.config(), case.norm is not None)
    for ask in (regplug.attach, lambda one: regplug.read_registers(one, torch.zeros(1, 3, 28, 28))):
        with pytest.raises(regplug.SpecError):
            ask(case.config())


def test_listing_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, regplug, regplug_transformers.plugin\n"
        "assert 'transformers' in regplug.backbones(), regplug.backbones()\n"
        "print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_class_that_is_recognised_by_name_exists() -> None:
    entry, _ = named_backbone("transformers")
    for name in entry.classes:
        module, _, attribute = name.partition(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), type)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"regplug_transformers.{module}")).failed == 0

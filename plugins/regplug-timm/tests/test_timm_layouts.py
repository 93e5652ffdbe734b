"""Every timm model that carries registers: its layout on the meta device, proven on the real class and width."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from timm.models import model_entrypoint
from torch import nn

import regplug
from regplug.nn.tokens import tokens_of

FAMILIES = ("deit", "eva", "naflexvit", "vision_transformer", "vision_transformer_hybrid")
NAMES = [name for name in timm.list_models() if model_entrypoint(name).__module__.rpartition(".")[2] in FAMILIES]


def build(name: str, **options: Any) -> nn.Module:
    """The model with one block; timm's sapiens2 wants a number of key heads for each."""
    heads = {"num_kv_heads": [1]} if "sapiens2" in name else {}
    model: nn.Module = timm.create_model(name, depth=1, num_classes=0, **heads, **options)
    return model


def register_of(model: Any) -> torch.Tensor | None:
    parameter: torch.Tensor | None = getattr(model, "embeds", model).reg_token
    return parameter


@pytest.fixture(scope="module")
def every() -> dict[str, nn.Module]:
    """Every model with one block, on the meta device."""
    with torch.device("meta"):
        return {name: build(name) for name in NAMES}


@pytest.fixture(scope="module")
def carrying(every: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The models that have a register parameter."""
    return {name: model for name, model in every.items() if register_of(model) is not None}


@pytest.mark.slow
def test_every_model_with_a_register_parameter_has_a_layout_on_the_meta_device(carrying: dict[str, nn.Module]) -> None:
    layouts = {name: regplug.layout_of(model) for name, model in carrying.items()}
    assert len(layouts) == 75
    assert Counter(type(model).__name__ for model in carrying.values()) == {
        "VisionTransformer": 38,
        "Eva": 25,
        "NaFlexVit": 12,
    }
    assert {layout.num_registers for layout in layouts.values()} == {1, 4, 7, 8, 9}
    assert Counter(layout.normalized for layout in layouts.values()) == {False: 40, True: 35}
    for name, model in carrying.items():
        assert layouts[name].hidden_dim == model.embed_dim
        assert layouts[name].start in (0, 1)


@pytest.mark.slow
def test_the_rest_say_that_they_carry_none(every: dict[str, nn.Module]) -> None:
    rest = [model for model in every.values() if register_of(model) is None]
    assert len(rest) == len(NAMES) - 75 > 150
    for model in rest:
        with pytest.raises(regplug.SpecError, match=r"carries no register tokens \(a \w+ with [012] prefix tokens"):
            regplug.layout_of(model)


def marked_positions(model: nn.Module, images: torch.Tensor) -> list[list[int]]:
    """For each register, the positions of the tokens that change with its parameter, if no block mixes tokens."""
    register = register_of(model)
    assert register is not None
    tokens, _ = tokens_of(regplug.default_registry().backbone_entry("timm"), model, normalized=None)
    found = []
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.zero_()  # what a block adds is nothing then
        before = tokens(images)
        for index in range(register.shape[1]):
            kept = register[0, index].clone()
            register[0, index] = torch.randn_like(kept)
            found.append((tokens(images) != before).any(-1).any(0).nonzero().flatten().tolist())
            register[0, index] = kept
    return found


@pytest.mark.torture
@pytest.mark.slow
def test_a_mark_in_each_register_is_found_where_the_layout_says_in_every_model(carrying: dict[str, nn.Module]) -> None:
    torch.manual_seed(0)
    for name in carrying:
        with torch.device("meta"):
            whole = timm.create_model(name)
        layout = regplug.layout_of(whole)
        flexible = isinstance(whole, timm.models.NaFlexVit)
        side = 2 * (16 if flexible else whole.patch_embed.patch_size[0])
        model = build(name, **({} if flexible else {"img_size": side})).eval()
        assert regplug.layout_of(model) == layout
        found = marked_positions(model, torch.randn(2, 3, side, side))
        assert found == [[position] for position in layout.positions(layout.min_tokens + 4)], name


def test_a_mark_at_another_position_is_seen() -> None:
    model = build("vit_small_patch14_reg4_dinov2", img_size=28).eval()
    arrange = model._pos_embed
    model._pos_embed = lambda patches: arrange(patches).roll(1, dims=1)
    assert marked_positions(model, torch.randn(2, 3, 28, 28)) == [[2], [3], [4], [5]]
    assert regplug.layout_of(model).positions(9) == (1, 2, 3, 4)


class Cropped(timm.models.VisionTransformer):
    def forward_features(self, x: torch.Tensor, **keywords: Any) -> torch.Tensor:
        return super().forward_features(x, **keywords)[:, 1:]


class OtherHead(timm.models.VisionTransformer):
    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x[:, 0]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_class_that_arranges_its_tokens_itself_is_refused(count: int) -> None:
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 24, "depth": 1, "num_heads": 2, "reg_tokens": count}
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, reg_tokens=count)
    with pytest.raises(regplug.SpecError, match="got VisionTransformerDistilled with its own _pos_embed"):
        regplug.layout_of(distilled)
    with pytest.raises(regplug.SpecError, match="got Cropped with its own forward_features"):
        regplug.read_registers(Cropped(**sizes), torch.zeros(1, 3, 28, 28))
    assert regplug.layout_of(OtherHead(**sizes)).positions(9) == tuple(range(1, 1 + count))


def test_a_model_is_known_by_its_name_without_its_weights() -> None:
    entry = regplug.default_registry().backbone_entry("timm")
    sizes = regplug.measure_backbone(entry, "vit_giant_patch14_reg4_dinov2")
    assert sizes.layout == regplug.TokenLayout(num_registers=4, hidden_dim=1536, start=1, normalized=True)


def test_another_family_of_timm_carries_none_either() -> None:
    with pytest.raises(regplug.NameLookupError, match="model ResNet: has no registers"):
        regplug.layout_of(timm.create_model("test_resnet"))
    entry = regplug.default_registry().backbone_entry("timm")
    with pytest.raises(regplug.SpecError, match="model 'test_resnet': carries no register tokens"):
        regplug.measure_backbone(entry, "test_resnet")

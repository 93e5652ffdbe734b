"""Reading: the registers are the model's own, normalised or not, wherever it is called; the model stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers_cases import CASES, Case

import regplug
from regplug_transformers.models import build, describe
from regplug_transformers.reading import tokens

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def own_registers(case: Case, found: Tensor) -> Tensor:
    return found[:, case.start : case.start + case.num_registers]


with_norm = pytest.mark.parametrize("case", [name for name in CASES if name != "radio"], indirect=True)
without_norm = pytest.mark.parametrize("case", ["radio"], indirect=True)


def ways(case: Case) -> list[bool]:
    return [False] if case.norm is None else [False, True]


def state_of(model: nn.Module) -> Any:
    """What a reading could leave behind: modules, hooks, modes, attributes, weights by identity."""
    modules = {
        name: (id(module), module.training, [len(getattr(module, hook)) for hook in HOOKS], sorted(vars(module)))
        for name, module in model.named_modules()
    }
    return modules, {name: (id(one), one._version) for name, one in model.state_dict(keep_vars=True).items()}


def test_registers_are_the_models_own_features_contiguous(case: Case) -> None:
    images = case.images()
    with torch.no_grad():
        expected = own_registers(case, case.model(images).last_hidden_state)
        found = regplug.read_registers(case.model, images)
    assert found.shape == (2, case.num_registers, case.hidden_dim)
    assert found.is_contiguous()
    assert torch.equal(found, expected)
    assert not torch.equal(found, regplug.read_registers(case.model, case.images(seed=1)))


@with_norm
def test_the_norm_is_the_models_own_applied_or_not_as_requested(case: Case) -> None:
    images = case.images()
    with torch.no_grad():
        raw = own_registers(case, case.raw(copy.deepcopy(case.model), images))
        before = regplug.read_registers(case.model, images, normalized=False)
        after = regplug.read_registers(case.model, images, normalized=True)
        assert torch.equal(before, raw)
        assert torch.equal(after, getattr(case.model, case.norm)(raw))
    assert not torch.allclose(before, after, rtol=0.1, atol=0.1)
    assert regplug.layout_of(case.model).normalized is True


@without_norm
def test_radio_has_no_norm_to_apply(case: Case) -> None:
    raw = own_registers(case, case.raw(copy.deepcopy(case.model), case.images()))
    assert torch.equal(regplug.read_registers(case.model, case.images(), normalized=False), raw)
    with pytest.raises(
        regplug.SpecError, match="normalized: expected False, because the model has no final norm, got Tru"
    ):
        regplug.read_registers(case.model, case.images(), normalized=True)


def test_reading_leaves_the_model_as_it_was_also_after_an_error(case: Case) -> None:
    before = state_of(case.model)
    for normalized in ways(case):
        regplug.read_registers(case.model, case.images(), normalized=normalized)
        assert state_of(case.model) == before
        with pytest.raises((ValueError, RuntimeError)):
            regplug.read_registers(case.model, case.images()[:, :2], normalized=normalized)
        assert state_of(case.model) == before
    hooked = copy.deepcopy(case.model)
    hooked.register_forward_hook(print)
    assert state_of(hooked)[0].keys() == before[0].keys()
    assert state_of(hooked)[0][""][2] != before[0][""][2]


def test_a_hook_of_the_user_sees_the_reading(case: Case) -> None:
    seen: list[Any] = []
    handle = case.model.register_forward_hook(lambda module, arguments, output: seen.append(module))
    try:
        for normalized in ways(case):
            regplug.read_registers(case.model, case.images(), normalized=normalized)
    finally:
        handle.remove()
    assert len(seen) == len(ways(case))


def test_registers_are_read_under_inference_mode_and_autocast(case: Case) -> None:
    images = case.images()
    for normalized in ways(case):
        with torch.no_grad():
            plain = regplug.read_registers(case.model, images, normalized=normalized)
        with torch.inference_mode():
            found = regplug.read_registers(case.model, images, normalized=normalized)
        assert found.is_inference()
        assert torch.equal(found, plain)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            cast = regplug.read_registers(case.model, images, normalized=normalized)
            output = case.model(images).last_hidden_state if normalized else case.raw(copy.deepcopy(case.model), images)
        assert torch.equal(cast, own_registers(case, output))
        assert not torch.equal(cast, plain)


def test_four_threads_read_from_one_model_at_once(case: Case) -> None:
    asked = [(seed, normalized) for seed in range(4) for normalized in ways(case)] * 3

    def read(one: tuple[int, bool]) -> Tensor:
        with torch.no_grad():
            return regplug.read_registers(case.model, case.images(seed=one[0]), normalized=one[1])

    expected = {one: read(one) for one in asked}
    assert not torch.equal(expected[asked[0]], expected[asked[-1]])
    with ThreadPoolExecutor(4) as pool:
        for one, found in zip(asked, pool.map(read, asked), strict=True):
            assert torch.equal(found, expected[one])


def test_gradients_reach_the_register_parameter(case: Case) -> None:
    model = copy.deepcopy(case.model).train()
    parameter = model.get_parameter(case.parameter)
    for normalized in ways(case):
        model.zero_grad()
        regplug.read_registers(model, case.images(), normalized=normalized).square().sum().backward()
        gradient = parameter.grad.view(-1, case.hidden_dim)[-case.num_registers :]
        assert gradient.isfinite().all()
        assert (gradient.abs().sum(dim=1) > 0).all()


def test_what_a_processor_gives_is_read_as_the_model_would(case: Case) -> None:
    images = case.images()
    given = transformers.BatchFeature({"pixel_values": images})
    assert isinstance(given, Mapping)
    with torch.no_grad():
        assert torch.equal(regplug.read_registers(case.model, given), regplug.read_registers(case.model, images))


@pytest.mark.parametrize("case", ["dinov2_with_registers", "dinov3_vit", "tipsv2_vision_model"], indirect=True)
def test_masked_patches_reach_the_model(case: Case) -> None:
    masked = {"pixel_values": case.images(), "bool_masked_pos": torch.ones(2, 6, dtype=torch.bool)}
    with torch.no_grad():
        expected = own_registers(case, case.model(**masked).last_hidden_state)
        assert torch.equal(regplug.read_registers(case.model, masked), expected)
        assert not torch.equal(regplug.read_registers(case.model, case.images()), expected)


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (torch.zeros(3, 32, 32), r"\[3, 32, 32\]"),
        ({"input_ids": torch.zeros(1, 4)}, "NoneType"),
        ([1.0], "list"),
        ({"pixel_values": torch.zeros(6, 768), "image_grid_hw": torch.tensor([[2, 3]])}, r"\[6, 768\]"),
    ],
)
def test_inputs_that_are_no_images_are_refused(case: Case, inputs: Any, got: str) -> None:
    with pytest.raises(regplug.ShapeError, match=rf"pixel_values: expected images \[B, C, H, W\], got {got}\.$"):
        regplug.read_registers(case.model, inputs)


def test_a_classifier_is_read_as_the_model_inside() -> None:
    config = transformers.Dinov2WithRegistersConfig(num_hidden_layers=1, num_labels=3)
    model = transformers.Dinov2WithRegistersForImageClassification(config).eval()
    images = torch.randn(2, 3, 32, 48)
    given = {"pixel_values": images, "labels": torch.tensor([0, 2])}
    with torch.no_grad():
        for normalized in (False, True):
            expected = regplug.read_registers(model.dinov2_with_registers, images, normalized=normalized)
            assert torch.equal(regplug.read_registers(model, given, normalized=normalized), expected)
    assert describe(model) == describe(model.dinov2_with_registers)


def test_all_of_tipsv2_is_read_through_its_vision_tower_for_any_text() -> None:
    text = {"num_hidden_layers": 1, "vocab_size": 50}
    model = transformers.Tipsv2Model(
        transformers.Tipsv2Config(text_config=text, vision_config={"num_hidden_layers": 1, "num_register_tokens": 2})
    ).eval()
    words = {"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1, 1, 0]] * 2)}
    given = {"pixel_values": torch.randn(2, 3, 28, 42), **words}
    with torch.no_grad():
        expected = model(**given).vision_model_output.last_hidden_state[:, 1:3]
        assert torch.equal(regplug.read_registers(model, given), expected)
    assert describe(model) == ("tipsv2_vision_model", {"num_hidden_layers": 1, "num_register_tokens": 2})


def replaced_forward(case: Case) -> Any:
    """As accelerate's device maps do it: the instance's forward is bound to the instance."""
    model = copy.deepcopy(case.model)
    own = model.forward
    model.forward = lambda *arguments, **words: own(*arguments, **words)
    return model


def test_a_model_with_a_replaced_forward_is_read_as_its_features_come(case: Case) -> None:
    model, images = replaced_forward(case), case.images()
    assert torch.equal(regplug.read_registers(model, images), regplug.read_registers(case.model, images))


@with_norm
def test_the_norm_of_a_replaced_forward_cannot_be_left_out(case: Case) -> None:
    with pytest.raises(regplug.SpecError, match="normalized: expected True, because this instance's forward"):
        regplug.read_registers(replaced_forward(case), case.images(), normalized=False)


def test_a_model_that_was_compiled_in_place_is_still_read_without_its_norm(case: Case) -> None:
    model = copy.deepcopy(case.model)
    model.compile(backend="eager")
    images = case.images()
    with torch.no_grad():
        expected = regplug.read_registers(case.model, images, normalized=False)
        assert torch.equal(regplug.read_registers(model, images, normalized=False), expected)


def test_an_attached_readout_shares_and_trains_the_models_weights(case: Case) -> None:
    model = copy.deepcopy(case.model)
    film = {"kernel_hidden_dim": 3, "num_film_layers": 2}
    attached = regplug.attach(model, "compress-concat", compressed_dim=5, film_options=film)
    pairs = attached(case.images())
    assert [tuple(one.shape) for pair in pairs for one in pair] == [(2, 3)] * 4
    shared = {id(parameter) for parameter in model.parameters()}
    own = {id(parameter) for name, parameter in attached.named_parameters() if name.startswith("tokens.")}
    assert own == shared
    torch.stack([beta for _, beta in pairs]).sum().backward()
    assert model.get_parameter(case.parameter).grad is not None


def test_a_described_model_is_built_again_and_reads_the_same(case: Case) -> None:
    name, options = describe(case.model)
    assert name == case.model_type
    assert options["num_hidden_layers"] == 1
    attached = regplug.attach(case.model, "pool", normalized=False)
    assert (attached.source.model, attached.source.options) == (name, options)
    again = build(name, **attached.source.options).eval()
    with torch.no_grad():
        for normalized in ways(case):
            mine, theirs = tokens(case.model, normalized), tokens(again, normalized)
            assert not torch.equal(mine(case.images()), theirs(case.images()))
            theirs.load_state_dict(mine.state_dict(), strict=True)
            assert torch.equal(mine(case.images()), theirs(case.images()))


def test_tokens_export_for_any_batch_and_have_one_size_of_images(case: Case) -> None:
    module = tokens(case.model, normalized=False)
    size = case.model.config.image_size
    assert module.input_shape == (3, size, size)
    with torch.no_grad():
        program = torch.export.export(module, (case.images(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for batch in (1, 3):
            torch.testing.assert_close(program.module()(case.images(batch)), module(case.images(batch)))

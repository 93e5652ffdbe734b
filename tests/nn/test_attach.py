"""An attached module shares tensors and hooks with the model, and has separate modes, settings and submodules."""

from __future__ import annotations

import copy
import functools
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, load_model, save_file, save_model
from support.plugins import installed_with
from support.readouts import moved
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import regplug
from regplug.nn.attached import AttachedConditioner, AttachedReadout
from regplug.nn.shared_tensors import Origin, share_tensors

PAIRS = {"kernel_hidden_dim": 3, "num_film_layers": 2}
IMAGES = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def network(**options: Any) -> Any:
    """A ViT with random outputs in train mode only."""
    torch.manual_seed(0)
    return timm.create_model("vit_small_patch14_reg4_dinov2", img_size=28, depth=2, proj_drop_rate=0.5, **options)


def dinov2() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28, "patch_size": 14}
    config = transformers.Dinov2WithRegistersConfig(**sizes, hidden_dropout_prob=0.5)
    return transformers.Dinov2WithRegistersModel(config)


MODELS = {"timm": network, "transformers": dinov2}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def is_random(module: nn.Module, images: Tensor = IMAGES) -> bool:
    with torch.no_grad():
        one, other = (answer(module, images) for _ in range(2))
    return not torch.equal(one, other)


def answer(module: nn.Module, images: Tensor = IMAGES) -> Tensor:
    given = module(images)
    if isinstance(given, list):
        return torch.cat([one for pair in given for one in pair], dim=1)
    return given if isinstance(given, Tensor) else given.last_hidden_state


# ---- modes


@each_model
def test_an_attached_module_has_its_own_mode_and_its_outputs_follow_it(make: Any) -> None:
    model = make()
    whole = regplug.attach(model, "pool")
    for of_whole, of_model in ((True, False), (False, True), (True, True), (False, False)):
        for first, second in (((whole, of_whole), (model, of_model)), ((model, of_model), (whole, of_whole))):
            first[0].train(first[1])
            second[0].train(second[1])
            assert {part.training for part in whole.modules()} == {of_whole} == {is_random(whole)}
            assert {part.training for part in model.modules()} == {of_model} == {is_random(model)}


class Bare(nn.Module):
    """What `attach` would return if it shared the modules."""

    def __init__(self, whole: AttachedReadout, model: Any) -> None:
        super().__init__()
        self.readout, self.tokens = whole.readout, copy.copy(model)

    def forward(self, images: Tensor) -> Tensor:
        return self.readout(self.tokens.forward_features(images)[:, 1:5])


def test_the_checks_of_these_tests_see_a_module_that_shares_the_models_modules() -> None:
    model = network()
    shared = Bare(regplug.attach(model, "pool"), model).eval()
    model.train()
    assert not shared.training
    assert is_random(shared)


@pytest.mark.parametrize("mode", [True, False])
def test_it_starts_in_the_mode_of_the_model_and_keeps_that_of_each_part(mode: bool) -> None:
    model = network().train(mode)
    model.blocks[1].train(not mode)  # a norm in eval mode on purpose, say
    whole = regplug.attach(model, "pool", film_options=PAIRS)
    assert isinstance(whole, AttachedConditioner)
    assert whole.training is whole.conditioner.film.training is whole.tokens.training is mode
    own = {name: part.training for name, part in model.named_modules()}
    found = {name: part.training for name, part in whole.tokens.model.named_modules() if name.startswith("blocks")}
    assert found == {name: own[name] for name in found}
    assert whole.tokens.model.blocks[1].training is not mode


def test_its_modules_have_separate_modes_like_any_modules() -> None:
    whole = regplug.attach(network(), "pool", film_options=PAIRS).train()
    whole.tokens.eval()
    assert (whole.training, whole.conditioner.training, is_random(whole)) == (True, True, False)
    whole.train()
    whole.conditioner.eval()
    assert (whole.training, whole.conditioner.film.training, is_random(whole.tokens)) == (True, False, True)


WAYS = {
    "compiled": lambda module: torch.compile(module, backend="eager", fullgraph=True),
    "scripted": torch.jit.script,
    "exported": lambda module: torch.export.export(module, (IMAGES,)).module(),
    "copied": copy.deepcopy,
    "pickled": lambda module: pickle.loads(pickle.dumps(module)),
    "averaged": lambda module: AveragedModel(module),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_an_eval_mode_survives_every_way_to_run_it_while_the_model_trains(way: str) -> None:
    model = network()
    whole = regplug.attach(model, "pool").eval()
    made = WAYS[way](whole)
    model.train()
    assert not is_random(made)
    torch.testing.assert_close(answer(made), answer(whole))
    if way in ("compiled", "scripted", "copied", "pickled", "averaged"):
        made.train()
        assert is_random(made)
        model.eval()
        assert is_random(made)


# ---- what is shared


@each_model
def test_tensors_are_shared_and_modules_are_not(make: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text().replace("\n", " ")
    assert "shares the model's tensors (parameters and buffers) and the hooks on its modules. Everything else" in page
    model = make()
    whole = regplug.attach(model, "pool")
    theirs = {id(one) for one in (*model.parameters(), *model.buffers())}
    assert {id(one) for one in (*whole.tokens.parameters(), *whole.tokens.buffers())} <= theirs
    assert not {id(part) for part in whole.modules()} & {id(part) for part in model.modules()}


def test_a_tensor_that_is_replaced_moved_or_converted_in_one_is_so_in_the_other() -> None:
    model = network().eval()
    whole = regplug.attach(model, "pool")
    model.blocks[0].attn.qkv.weight = nn.Parameter(torch.zeros(3 * 384, 384))
    inner = whole.tokens.model
    assert inner.blocks[0].attn.qkv.weight is model.blocks[0].attn.qkv.weight
    whole.double()
    assert model.blocks[0].attn.qkv.weight.dtype == torch.float64
    model.float()
    model.load_state_dict({key: tensor.clone() for key, tensor in network().state_dict().items()}, assign=True)
    of_tokens = {name: one for name, one in model.named_parameters() if not name.startswith("head")}
    assert all(inner.get_parameter(name) is one for name, one in of_tokens.items())
    inner.reg_token = nn.Parameter(torch.ones(1, 4, 384))
    assert model.reg_token is inner.reg_token


class Normed(nn.Module):
    """A backbone with statistics in buffers: some are replaced, some changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros(()))
        self.helpers = [self.norm]
        self.apply_norm = self.norm.forward
        self.again = functools.partial(Normed.normalise, self)

    def normalise(self, tokens: Tensor) -> Tensor:
        if self.training:
            self.steps = self.steps + 1
        return self.helpers[0](tokens.flatten(0, 1)).view_as(tokens)


class NormedTokens(nn.Module):
    def __init__(self, model: Normed) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.drop(self.model.again(tokens))


@pytest.fixture
def normed() -> Any:
    layout = regplug.TokenLayout(num_registers=2, hidden_dim=8, start=1, normalized=False)
    return installed_with(
        regplug.BackboneEntry(
            "normed",
            Normed,
            layout=lambda model: layout,
            tokens=lambda model, normalized: NormedTokens(model),
            classes=[f"{__name__}:Normed"],
        )
    )


def test_a_norm_in_eval_mode_on_purpose_stays_so_and_statistics_go_to_the_model(normed: Any) -> None:
    model = Normed()
    tokens = torch.randn(4, 5, 8) + 3
    whole = regplug.attach(model, "mean", registry=normed)
    whole(tokens)
    assert model.norm.running_mean.abs().sum() > 0  # one buffer
    assert model.steps == 1  # that was replaced, not changed in place
    whole.tokens.model.norm.eval()
    before = model.norm.running_mean.clone()
    whole(tokens)
    assert torch.equal(model.norm.running_mean, before)
    model.norm.train()
    whole(tokens)
    assert torch.equal(model.norm.running_mean, before)
    assert whole.tokens.model.helpers == [whole.tokens.model.norm]
    assert whole.tokens.model.apply_norm.__self__ is whole.tokens.model.norm


# ---- hooks, checkpointing, replaced modules


def test_a_hook_on_a_part_of_the_model_is_called_until_it_is_removed() -> None:
    model, seen = network().eval(), []
    before = model.blocks[0].register_forward_hook(lambda *_: seen.append("before"))
    whole = regplug.attach(model, "pool")
    after = model.blocks[1].register_forward_pre_hook(lambda *_: seen.append("after"))
    inside = whole.tokens.model.blocks[1].register_forward_hook(lambda *_: seen.append("inside"))
    whole(IMAGES)
    assert seen == ["before", "after", "inside"]
    before.remove()
    after.remove()
    seen.clear()
    model(IMAGES)
    assert seen == ["inside"]
    inside.remove()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_pruned_and_parametrized_weights_are_those_of_the_model() -> None:
    model = network().eval()
    parametrizations.weight_norm(model.blocks[0].mlp.fc1)
    whole = regplug.attach(model, "pool")
    prune.l1_unstructured(model.blocks[1].mlp.fc1, "weight", amount=0.9)
    torch.testing.assert_close(whole(IMAGES), whole.readout(regplug.read_registers(model, IMAGES)))
    whole(IMAGES).sum().backward()
    assert model.blocks[0].mlp.fc1.parametrizations.weight.original0.grad is not None
    assert model.blocks[1].mlp.fc1.weight_orig.grad is not None


def recomputed(whole: Any, block: nn.Module) -> bool:
    """Whether a block runs again in the backward pass, as with gradient checkpointing."""
    calls: list[int] = []
    hook = block.norm1.register_forward_pre_hook(lambda *_: calls.append(1))
    answer(whole).sum().backward()
    hook.remove()
    return len(calls) == 2


CHECKPOINTED = {
    "timm": (network, lambda model, on: model.set_grad_checkpointing(on), lambda model: model.blocks[0]),
    "transformers": (
        dinov2,
        lambda model, on: model.gradient_checkpointing_enable() if on else model.gradient_checkpointing_disable(),
        lambda model: next(part for name, part in model.named_modules() if name.endswith("layer.0")),
    ),
}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(en|dis)able` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", CHECKPOINTED)
def test_gradient_checkpointing_is_a_separate_setting_after_attach(kind: str) -> None:
    make, switch, first = CHECKPOINTED[kind]
    model = make().train()
    switch(model, True)
    whole = regplug.attach(model, "pool")
    inner = whole.tokens.model
    assert recomputed(whole, first(inner))
    switch(model, False)
    assert recomputed(whole, first(inner))
    switch(inner, False)
    assert not recomputed(whole, first(inner))
    switch(model, True)
    assert not recomputed(whole, first(inner))
    switch(inner, True)
    assert recomputed(whole, first(inner))


class Adapter(nn.Module):
    """LoRA, reduced to the minimum."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


def test_modules_that_the_model_gets_later_are_never_left_out_silently() -> None:
    model = network().eval()
    model.blocks[0].attn.qkv = Adapter(model.blocks[0].attn.qkv)
    whole = regplug.attach(model, "pool")
    whole(IMAGES).sum().backward()
    assert model.blocks[0].attn.qkv.up.weight.grad is not None
    model.blocks[1].attn.qkv = Adapter(model.blocks[1].attn.qkv)
    with pytest.raises(regplug.SpecError) as error:
        whole(IMAGES)
    assert str(error.value) == (
        "model VisionTransformer: blocks.1.attn.qkv: expected the module that attach found, got a Adapter in its "
        "place, which the attached module does not run; attach again, or replace it in what attach returned."
    )
    again = regplug.attach(model, "pool")
    torch.testing.assert_close(again(IMAGES), again.readout(regplug.read_registers(model, IMAGES)))
    again.tokens.model.blocks[0].mlp.fc1 = Adapter(again.tokens.model.blocks[0].mlp.fc1)  # in what attach returned
    again(IMAGES)


@pytest.mark.parametrize("way", ["a forward", "a parametrization", "one more parametrization"])
def test_a_module_that_the_model_runs_otherwise_later_is_never_run_as_before_silently(way: str) -> None:
    model = network().eval()
    layer = model.blocks[0].mlp.fc1
    if way == "one more parametrization":
        nn.utils.parametrizations.orthogonal(layer, "weight")
        layer.register_parameter("other", nn.Parameter(torch.ones(3, 3)))
    whole = regplug.attach(model, "pool")
    whole(IMAGES)
    if way == "a forward":
        old = layer.forward
        layer.forward = lambda features: 2 * old(features)
    elif way == "a parametrization":
        nn.utils.parametrizations.weight_norm(layer)
    else:
        nn.utils.parametrizations.orthogonal(layer, "other")
    with pytest.raises(regplug.SpecError, match=r"blocks.0.mlp.fc1: expected the (module|forward and the parametr)"):
        whole(IMAGES)
    if way == "a forward":
        del layer.forward
        whole(IMAGES)
    else:
        regplug.attach(model, "pool")(IMAGES)


def test_a_replaced_top_level_module_is_seen_and_a_new_head_is_ignored() -> None:
    model = network().eval()
    whole = regplug.attach(model, "pool")
    wanted = whole(IMAGES)
    model.reset_classifier(7)
    assert torch.equal(whole(IMAGES), wanted)
    model.norm = nn.Identity()
    with pytest.raises(regplug.SpecError, match="VisionTransformer: norm: expected the module that attach found"):
        whole(IMAGES)


def test_a_model_that_is_gone_is_not_kept_alive_and_a_copy_knows_no_model() -> None:
    model = network().eval()
    whole = regplug.attach(model, "pool")
    copied = copy.deepcopy(whole)
    model.blocks[0] = nn.Identity()
    copied(IMAGES)
    gone = weakref.ref(model)
    del model
    assert gone() is None
    whole(IMAGES)


def test_a_method_that_was_replaced_is_moved_along_where_that_can_be_and_else_refused() -> None:
    model = network()
    block = model.blocks[0]

    def as_accelerate_does(self: nn.Module, x: Tensor) -> Tensor:
        return self.original(x)

    block.original = block.forward
    block.forward = functools.update_wrapper(functools.partial(as_accelerate_does, block), block.forward)
    whole = regplug.attach(model, "pool").eval()
    model.train()
    assert not is_random(whole)
    assert is_random(model)
    own = block.original
    block.forward = lambda x: 2 * own(x)
    with pytest.raises(regplug.SpecError, match="model Block: expected the forward of its class, got a function that"):
        regplug.attach(model, "pool")


def test_a_compiled_part_is_compiled_separately_with_its_own_mode() -> None:
    model = network().eval()
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    model.blocks[1].compile(backend="eager")
    whole = regplug.attach(model, "pool")
    assert type(whole.tokens.model.blocks[0]) is type(model.blocks[0])
    with torch.no_grad():
        torch.testing.assert_close(whole(IMAGES), whole.readout(regplug.read_registers(model, IMAGES)))
    model.train()
    assert not is_random(whole)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_part_is_refused_because_it_cannot_have_a_separate_mode() -> None:
    model = network()
    model.blocks[0] = torch.jit.script(model.blocks[0])
    with pytest.raises(regplug.SpecError, match="expected modules of Python, got a scripted RecursiveScriptModule"):
        regplug.attach(model, "pool")


def test_an_origin_of_nothing_finds_nothing_and_shared_parts_stay_shared() -> None:
    Origin().check()
    tied = nn.Linear(2, 2)
    made = share_tensors(nn.Sequential(tied, tied))
    assert made[0] is made[1]
    assert made[0] is not tied


# ---- frozen


@each_model
def test_a_frozen_backbone_stays_in_eval_mode_and_takes_no_gradients(make: Any) -> None:
    model = make().train()
    whole = regplug.attach(model, "compress-concat", compressed_dim=5, freeze=True)
    for mode in (True, False, True):
        whole.train(mode)
        assert whole.training is whole.readout.training is mode
        assert {part.training for part in whole.tokens.modules()} == {False} == {is_random(whole)}
    assert model.training  # the model's own mode is left
    assert {one.requires_grad for one in whole.tokens.parameters()} == {False}
    assert {one.requires_grad for one in whole.readout.parameters()} == {True}
    used = {id(one) for one in whole.tokens.parameters()}  # the model's own weights
    assert all(one.requires_grad is not (id(one) in used) for one in model.parameters())
    whole(IMAGES).sum().backward()
    assert {one.grad is None for one in model.parameters()} == {True}
    assert not whole.tokens(IMAGES).requires_grad  # no graph is kept
    images = IMAGES.clone().requires_grad_()
    whole(images).sum().backward()
    assert images.grad.abs().sum() > 0  # a saliency map is the caller's to ask for


def test_autocast_reaches_a_frozen_backbone() -> None:
    whole = regplug.attach(network(), "compress-concat", compressed_dim=5, freeze=True)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = whole.tokens.model.blocks[0].attn.qkv(torch.randn(2, 9, 384))
        half = whole(IMAGES)
    assert tokens.dtype == half.dtype == torch.bfloat16
    assert not torch.equal(half.float(), whole(IMAGES))


@pytest.mark.parametrize("way", ["compiled", "copied", "pickled", "averaged"])
def test_a_frozen_backbone_stays_so_in_every_way_to_train_it(way: str) -> None:
    made = WAYS[way](regplug.attach(network(), "pool", freeze=True))
    made.train()
    assert made.training
    assert not is_random(made)


def test_a_block_of_a_frozen_backbone_may_be_thawed(normed: Any) -> None:
    model = network()
    whole = regplug.attach(model, "pool", freeze=True)
    whole.tokens.model.blocks[1].requires_grad_(True)
    whole(IMAGES).sum().backward()
    assert {name.split(".")[1] for name, one in model.named_parameters() if one.grad is not None} == {"1"}
    statistics = regplug.attach(Normed(), "mean", freeze=True, registry=normed).train()
    statistics(torch.randn(4, 5, 8) + 3)
    assert statistics.tokens.model.norm.running_mean.abs().sum() == 0


# ---- FiLM by name, and blocks that apply it themselves


def test_a_generator_is_chosen_by_its_registered_name() -> None:
    whole = regplug.attach(network(), "pool", film="kernel-film", film_options=PAIRS)
    assert isinstance(whole, AttachedConditioner)
    assert whole.conditioner.film.cond_dim == 384
    with pytest.raises(regplug.NameLookupError, match="kernel-filn"):
        regplug.attach(network(), "pool", film="kernel-filn", film_options=PAIRS)


def test_a_block_that_applies_film_itself_is_attached_without_film_and_then_paired() -> None:
    names = [entry.name for entry in regplug.default_registry().film_entries() if not entry.gives_pairs]
    assert len(names) > 3
    for name in names:
        with pytest.raises(regplug.SpecError, match="applies FiLM itself; attach without film=, then pair: "):
            regplug.attach(network(), "pool", film=name)


# ---- a network that keeps the model and what was attached to it


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = network()
        self.conditioning = regplug.attach(self.backbone, "compress-concat", compressed_dim=5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.backbone(images), self.conditioning(images)


def test_a_network_that_keeps_both_saves_and_loads_its_state_dict() -> None:
    torch.manual_seed(1)
    policy, other = Policy().eval(), Policy().eval()
    moved(other, 0.1)
    names = dict(policy.named_parameters())  # once each, so an optimizer and DistributedDataParallel see no twins
    assert len(names) == len(list(network().parameters())) + 1
    keys = set(policy.state_dict())
    assert {"backbone.reg_token", "conditioning.tokens.model.reg_token"} <= keys
    other.load_state_dict(policy.state_dict())
    assert all(map(torch.equal, policy(IMAGES), other(IMAGES)))
    assert other.backbone.reg_token is other.conditioning.tokens.model.reg_token


def test_safetensors_saves_such_a_network_by_save_model_and_says_why_not_by_save_file(tmp_path: Path) -> None:
    policy, other = Policy().eval(), Policy().eval()
    with pytest.raises(RuntimeError, match=r"(?s)Some tensors share memory.*save_model"):
        save_file(policy.state_dict(), tmp_path / "policy.safetensors")
    save_model(policy, str(tmp_path / "policy.safetensors"))
    assert len(load_file(tmp_path / "policy.safetensors")) == len(dict(policy.named_parameters()))
    moved(other, 0.1)
    load_model(other, str(tmp_path / "policy.safetensors"))
    assert all(map(torch.equal, policy(IMAGES), other(IMAGES)))

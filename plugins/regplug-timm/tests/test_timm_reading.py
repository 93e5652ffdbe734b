from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from support.plugins import registered
from support.readouts import moved
from torch import nn

import regplug

# one of each class, and of each way to normalise: a norm on every token, a norm after pooling, none at all
MODELS = {
    "vit_small_patch14_reg4_dinov2": {"img_size": 28},
    "vit_medium_patch16_reg4_gap_256": {"img_size": 32},
    "vit_base_patch16_radio_v3": {"img_size": 32},
    "vit_small_patch16_dinov3": {"img_size": 32},
    "vit_betwixt_patch16_rope_reg4_gap_256": {"img_size": 32},
    "naflexvit_base_patch16_gap": {},
    "naflexvit_base_patch16_map": {},
}
SCRIPTABLE = [name for name in MODELS if not name.startswith("naflex")]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    # scales at 1e-5 and zeros would hide what a block or a norm does
    return moved(timm.create_model(name, depth=2, **MODELS[name]).eval(), 0.02)


def images(name: str) -> torch.Tensor:
    side = MODELS[name].get("img_size", 32)
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=MODELS)
def named(request: pytest.FixtureRequest) -> tuple[str, nn.Module, torch.Tensor]:
    name: str = request.param
    return name, build(name), images(name)


def test_registers_come_as_forward_features_gives_them(named: tuple[str, nn.Module, torch.Tensor]) -> None:
    _, model, given = named
    layout = regplug.layout_of(model)
    registers = regplug.read_registers(model, given)
    assert registers.shape == (3, layout.num_registers, layout.hidden_dim)
    assert registers.is_contiguous()
    features = model.forward_features(given)
    assert torch.equal(registers, features[:, layout.start : layout.start + layout.num_registers])


def test_the_norm_is_applied_or_not_as_requested(named: tuple[str, nn.Module, torch.Tensor]) -> None:
    _, model, given = named
    layout = regplug.layout_of(model)
    # timm's own way to tokens before the norm
    prefix = model.forward_intermediates(
        given, indices=1, norm=False, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True
    )[0][1]
    raw = prefix[:, layout.start : layout.start + layout.num_registers]
    torch.testing.assert_close(regplug.read_registers(model, given, normalized=False), raw, rtol=0, atol=0)
    norm = model.norm if layout.normalized else model.fc_norm
    if isinstance(norm, nn.Identity):
        with pytest.raises(regplug.SpecError, match="normalized: expected False, because the model has no final norm"):
            regplug.read_registers(model, given, normalized=True)
    else:
        torch.testing.assert_close(regplug.read_registers(model, given, normalized=True), norm(raw))
        assert (norm(raw) - raw).abs().max() > 0.1  # the two are told apart


def test_reading_leaves_the_model_as_it_was(named: tuple[str, nn.Module, torch.Tensor]) -> None:
    _, model, given = named
    before = {name: id(module) for name, module in model.named_modules()}
    output, keys = model(given), list(model.state_dict())
    layout = regplug.layout_of(model)
    for normalized in (False, layout.normalized):
        regplug.read_registers(model, given, normalized=normalized)
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever timm says of three dimensions
        regplug.read_registers(model, given[0, 0])
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert list(model.state_dict()) == keys
    assert not [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert torch.equal(model(given), output)


def test_a_replaced_forward_features_is_run_and_never_with_another_norm_than_requested() -> None:
    model, given = build("vit_small_patch14_reg4_dinov2"), images("vit_small_patch14_reg4_dinov2")
    original = model.forward_features
    model.forward_features = lambda images: 2 * original(images)
    assert torch.equal(regplug.read_registers(model, given), 2 * original(given)[:, 1:5])
    with pytest.raises(regplug.SpecError, match="normalized: expected True, because this instance"):
        regplug.read_registers(model, given, normalized=False)


def test_registers_are_read_in_inference_mode_and_under_autocast() -> None:
    model, given = build("vit_small_patch14_reg4_dinov2"), images("vit_small_patch14_reg4_dinov2")
    plain = regplug.read_registers(model, given)
    with torch.inference_mode():
        assert torch.equal(regplug.read_registers(model, given), plain)
    with torch.autocast("cpu", torch.bfloat16):
        half = regplug.read_registers(model, given)
    torch.testing.assert_close(half.float(), plain, rtol=0.1, atol=0.1)
    assert not torch.equal(half.float(), plain)


def test_gradients_reach_the_register_parameter() -> None:
    model, given = build("vit_small_patch16_dinov3"), images("vit_small_patch16_dinov3")
    regplug.read_registers(model, given, normalized=False).sum().backward()
    assert model.reg_token.grad.abs().sum() > 0


def test_several_threads_read_from_one_model() -> None:
    model = build("vit_small_patch14_reg4_dinov2")
    batches = [torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(seed)) for seed in range(24)]
    ways = [normalized for _ in range(12) for normalized in (True, False)]

    def read(given: torch.Tensor, normalized: bool) -> torch.Tensor:
        with torch.no_grad():
            return regplug.read_registers(model, given, normalized=normalized)

    alone = list(map(read, batches, ways))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(read, batches, ways))
    assert all(map(torch.equal, alone, together))


def test_naflex_patches_of_several_sizes_are_read_in_one_batch() -> None:
    model = build("naflexvit_base_patch16_gap")
    patches = torch.randn(2, 6, 16 * 16 * 3)
    coords = torch.tensor([[[y, x] for y in range(2) for x in range(3)]] * 2)
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    inputs = {"patches": patches, "patch_coord": coords, "patch_valid": valid}
    registers = regplug.read_registers(model, inputs)
    assert registers.shape == (2, 4, 768)
    changed = patches.clone()
    changed[1, 4:] = 7.0  # padding, which no register may see
    assert torch.equal(regplug.read_registers(model, {**inputs, "patches": changed}), registers)


def test_a_compiled_model_is_recognised_as_the_model_inside() -> None:
    model, given = build("vit_small_patch14_reg4_dinov2"), images("vit_small_patch14_reg4_dinov2")
    compiled = torch.compile(model, backend="eager")
    assert regplug.layout_of(compiled) == regplug.layout_of(model)
    assert torch.equal(regplug.read_registers(compiled, given), regplug.read_registers(model, given))


def test_a_sequence_shorter_than_the_layout_is_refused() -> None:
    model = build("vit_small_patch14_reg4_dinov2")
    model.reg_token = None  # somebody's surgery, and the layout was asked before
    model.cls_token = None
    layout = regplug.TokenLayout(num_registers=4, hidden_dim=384, start=1, normalized=True)
    model.pos_embed = nn.Parameter(model.pos_embed[:, :4])

    short = regplug.BackboneEntry("short", build=build, layout=lambda _: layout, tokens="regplug_timm.reading:tokens")
    with registered(short), pytest.raises(regplug.ShapeError, match=r"with T >= 5, got \[3, 4, 384\]"):
        regplug.read_registers(model, images("vit_small_patch14_reg4_dinov2"), backbone="short")


@pytest.mark.parametrize("name", SCRIPTABLE)
def test_an_attached_readout_scripts_and_gives_the_same(name: str) -> None:
    model, given = build(name), images(name)
    whole = regplug.attach(model, "compress-concat", compressed_dim=8).eval()
    assert whole.spec.cond_dim == 8 * regplug.layout_of(model).num_registers
    with torch.no_grad():
        wanted = whole.readout(regplug.read_registers(model, given))
        assert torch.equal(whole(given), wanted)
        torch.testing.assert_close(torch.jit.script(whole)(given), wanted)


def test_an_attached_module_shares_the_models_weights_and_leaves_out_its_head() -> None:
    model = build("vit_small_patch14_reg4_dinov2")
    whole = regplug.attach(model, "pool", film_options={"kernel_hidden_dim": 8, "num_film_layers": 2})
    own = dict(model.named_parameters())
    shared = {key.removeprefix("tokens.model."): p for key, p in whole.named_parameters() if key.startswith("tokens.")}
    assert all(own[name] is parameter for name, parameter in shared.items())
    assert set(own) - set(shared) == {name for name in own if name.startswith("head.")}
    keys = {key for key in whole.state_dict() if not key.startswith("tokens.")}
    assert keys == {"conditioner.readout.logits"} | {
        f"conditioner.film.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    pairs = whole(images("vit_small_patch14_reg4_dinov2"))
    assert [(gamma.shape, beta.shape) for gamma, beta in pairs] == [((3, 8), (3, 8))] * 2


def test_a_named_model_is_built_and_attached() -> None:
    whole = regplug.attach(
        "timm:vit_small_patch14_reg4_dinov2", "concat", model_options={"img_size": 28, "depth": 1}, normalized=False
    )
    assert (whole.spec.cond_dim, whole.layout.normalized) == (4 * 384, False)
    assert (whole.source.model, whole.source.normalized) == ("vit_small_patch14_reg4_dinov2", False)
    assert whole(torch.zeros(2, 3, 28, 28)).shape == (2, 1536)


def test_a_model_that_somebody_built_is_described_so_that_it_can_be_built_again() -> None:
    model = timm.create_model("vit_medium_patch16_reg4_gap_256", img_size=64, in_chans=1, num_classes=7, depth=2)
    source = regplug.attach(model).source
    assert source.model == "vit_medium_patch16_reg4_gap_256"
    assert source.options == {"img_size": [64, 64], "in_chans": 1, "num_classes": 7, "depth": 2}
    again = timm.create_model(source.model, **source.options)
    again.load_state_dict(model.state_dict())


def test_what_comes_after_the_tokens_and_what_only_training_reads_does_not_keep_a_model_from_its_description() -> None:
    model = timm.create_model("vit_medium_patch16_reg4_gap_256", depth=1, num_heads=8, drop_path_rate=0.1)
    model.head, model.fc_norm = nn.Linear(512, 10), nn.Identity()
    assert regplug.attach(model).source.options == {"depth": 1}
    other = timm.create_model("vit_medium_patch16_reg4_gap_256", depth=1, num_heads=4)
    assert regplug.attach(other).source.options == {"depth": 1, "num_heads": 4}
    other.blocks[0].attn.scale *= 2
    assert "blocks.0.attn.scale differs" in str(regplug.attach(other).source)


def test_a_parametrized_model_is_read() -> None:
    model = build("vit_small_patch14_reg4_dinov2")
    given = images("vit_small_patch14_reg4_dinov2")
    wanted = regplug.read_registers(model, given)
    nn.utils.parametrize.register_parametrization(model, "reg_token", nn.Identity())
    assert torch.equal(regplug.read_registers(model, given), wanted)


def test_wrappers_of_torch_are_looked_through() -> None:
    model, given = build("vit_small_patch14_reg4_dinov2"), images("vit_small_patch14_reg4_dinov2")
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert regplug.layout_of(wrapped) == regplug.layout_of(model)
    assert torch.equal(regplug.read_registers(wrapped, given), regplug.read_registers(model, given))


def test_a_model_that_cannot_be_described_is_attached_all_the_same_and_says_why() -> None:
    odd = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=28, depth=1, qk_norm=True)
    source = regplug.attach(odd).source
    assert isinstance(source, regplug.SpecError)
    assert "expected options that can be read from the model" in str(source)
    bare = timm.models.VisionTransformer(img_size=28, patch_size=14, embed_dim=24, depth=1, num_heads=2, reg_tokens=2)
    source = regplug.attach(bare).source
    assert isinstance(source, regplug.SpecError)
    assert "expected one that timm.create_model made" in str(source)


def test_names_and_options_that_timm_refuses_are_user_errors() -> None:
    with pytest.raises(regplug.NameLookupError, match="'vit_smal_patch14_reg4_dinov2': not known to timm; closest"):
        regplug.attach("timm:vit_smal_patch14_reg4_dinov2")
    with pytest.raises(regplug.NameLookupError, match=r"backbone 'tim': not registered.*closest: timm"):
        regplug.attach("tim:vit_small_patch14_reg4_dinov2")
    with pytest.raises(regplug.SpecError, match="expected a model, as timm:vit_small"):
        regplug.attach("timm")
    with pytest.raises(regplug.SpecError, match="expected options that it takes, got {'colour': 'red'}"):
        regplug.attach("timm:vit_small_patch14_reg4_dinov2", model_options={"colour": "red"})
    for option in ("pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"):
        with pytest.raises(regplug.SpecError, match=f"{option}: expected no such option"):
            regplug.attach("timm:vit_small_patch14_reg4_dinov2", model_options={option: "x"})
    with pytest.raises(regplug.NameLookupError, match="not known to timm"):
        regplug.attach("timm:hf-hub:timm/vit_small_patch14_reg4_dinov2.lvd142m")
    with pytest.raises(regplug.SpecError, match="2 prefix tokens, none of them a register"):
        regplug.layout_of(timm.create_model("deit_tiny_distilled_patch16_224", depth=1))


def test_the_plugin_is_light_and_says_what_to_install_where_timm_is_missing() -> None:
    code = (
        "import sys, regplug, regplug_timm.plugin\n"
        "assert 'timm' in regplug.backbones()\n"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))\n"
        "sys.modules['timm'] = None\n"
        "try: regplug.attach('timm:vit_small_patch14_reg4_dinov2')\n"
        "except regplug.SpecError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    light, said = done.stdout.splitlines()
    assert light == "[]"
    assert "pip install 'regplug-timm[timm]'" in said

"""Bundles with a backbone: images in, conditioning vector or FiLM pairs out, in Python and in C++."""

import copy
import json
import subprocess

import pytest
import timm
import torch
from support.consumer import built, check_golden, run
from support.plugins import installed_with
from support.readouts import moved
from torch import nn

import regplug
from regplug.backends.interface import flatten
from regplug.bundle.golden import compare, largest_error
from regplug.bundle.io_signature import signature_of_conditioner
from regplug.bundle.load import module_run
from regplug.bundle.parity import _other_weights
from regplug.bundle.weights_file import fill
from regplug.bundle.wrong_inputs import wrong_inputs
from regplug.commands.info.describe import describe
from regplug.format.manifest import TensorSpec
from regplug.format.weights import load_tensors, read_metadata, save_tensors

SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 2, "num_classes": 0}
VIT, EVA = "timm:vit_small_patch14_reg4_dinov2", "timm:vit_small_patch16_dinov3"
FILM = {"kernel_hidden_dim": 5, "num_film_layers": 2, "init_type": "small_random", "init_std": 0.5}
BOTH = ["torchscript", "aotinductor"]
CPP = {"torchscript": "regplug_golden", "aotinductor": "regplug_aoti_golden"}


def whole(model=VIT, seed=0, **options):
    """A small timm vision transformer with a readout or, with ``film_options``, FiLM pairs; its weights are changed."""
    torch.manual_seed(seed)
    img_size = 28 if model == VIT else 32
    options = {"strategy": "compress-concat", "compressed_dim": 6, **options}
    # a LayerScale of 1e-5 would hide the image from the registers
    return moved(regplug.attach(model, model_options={"img_size": img_size, **SMALL}, **options).eval(), 0.1)


@pytest.fixture(scope="module")
def module():
    return whole(film_options=FILM)


@pytest.fixture(scope="module")
def bundle(module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "b"
    regplug.export(module.spec, module, folder, backends=BOTH)
    return folder


@pytest.mark.compiler
def test_a_model_with_its_backbone_is_loaded_bit_for_bit_and_its_programs_agree(module, bundle):
    images = torch.randn(2, 5, 28, 28)[:, 1:4]
    wanted = flatten(module(images))
    loaded = regplug.load(bundle)
    assert type(loaded) is type(module)
    assert (loaded.layout, loaded.spec, loaded.source) == (module.layout, module.spec, module.source)
    assert largest_error(flatten(loaded(images)), wanted) == 0
    for backend in BOTH:
        program = regplug.load(bundle, program=backend)
        assert largest_error(flatten(program(images)), wanted) < 1e-5
        assert largest_error(flatten(program(images)), flatten(module(images + 0.1))) > 1e-2
    assert regplug.verify(bundle).ok


@pytest.mark.compiler
def test_the_manifest_and_the_weights_file_name_the_backbone(bundle):
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert manifest["backbone"] == {
        "name": "regplug-timm:timm",
        "model": "vit_small_patch14_reg4_dinov2",
        "options": {"img_size": 28, **SMALL},
        "normalized": True,
    }
    assert manifest["input"] == {
        "name": "images",
        "dtype": "float32",
        "shape": ["B", 3, 28, 28],
        "min_batch": 0,
        "min_tokens": None,
    }
    assert manifest["layout"]["normalized"] is True
    assert read_metadata("weights", (bundle / "weights.safetensors").read_bytes())["backbone"] == manifest["backbone"]
    sizes = dict.fromkeys(["num_registers", "hidden_dim", "backbone"])
    assert describe(str(bundle), **sizes, options={}, follow_links=False)["backbone"] == manifest["backbone"]


@pytest.mark.slow
def test_a_readout_with_its_backbone_gives_the_conditioning_vector(tmp_path):
    module = whole(normalized=False)
    done = regplug.export(module.spec, module, tmp_path / "b")
    images = torch.randn(3, 3, 28, 28)
    assert done.manifest.holds == "readout"
    assert done.manifest.backbone.normalized is False
    assert torch.equal(regplug.load(tmp_path / "b")(images), module(images))
    assert torch.allclose(regplug.load(tmp_path / "b", program="torchscript")(images), module(images), atol=1e-5)


@pytest.mark.slow
def test_rotary_tables_come_from_the_bundle_and_the_state_dict_stays_as_attach_makes_it(tmp_path):
    module = whole(EVA)
    periods = module.tokens.model.rope.periods
    periods.mul_(1.5)  # as no installed class would make them
    done = regplug.export(module.spec, module, tmp_path / "b")
    stored = load_tensors("weights", (tmp_path / "b" / "weights.safetensors").read_bytes())
    assert torch.equal(stored["tokens.model.rope.periods"], periods)
    loaded = regplug.load(tmp_path / "b")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), module(images))
    assert set(loaded.state_dict()) == set(module.state_dict()) == set(stored) - {"tokens.model.rope.periods"}
    assert done.manifest.backbone.model == "vit_small_patch16_dinov3"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rotary_tables_keep_their_dtype_in_a_model_of_another_dtype(tmp_path, dtype):
    module = whole(EVA).to(dtype)
    done = regplug.export(module.spec, module, tmp_path / "b", backends=[])
    assert done.manifest.input.dtype == str(dtype).removeprefix("torch.")
    images = torch.randn(2, 3, 32, 32, dtype=dtype)
    assert torch.equal(regplug.load(tmp_path / "b")(images), module(images))


def test_exporting_under_autocast_is_as_without(tmp_path):
    module = whole()
    with torch.autocast("cpu", torch.bfloat16):
        done = regplug.export(module.spec, module, tmp_path / "b", backends=[])
    assert done.manifest.input.dtype == "float32"


def test_weights_fit_a_model_built_by_name_and_by_instance(tmp_path):
    by_name = whole(seed=1)
    network = timm.create_model(VIT.partition(":")[2], img_size=28, **SMALL)
    by_instance = regplug.attach(network, "compress-concat", compressed_dim=6).eval()
    assert by_name.source.options != by_instance.source.options
    regplug.export(by_instance.spec, by_instance, tmp_path / "b", backends=[])
    fill(by_name, str(tmp_path / "b" / "weights.safetensors"), by_name.spec)
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(by_name(images), by_instance(images))
    other = regplug.attach(network, "compress-concat", compressed_dim=6, normalized=False)
    with pytest.raises(regplug.BundleError, match="normalized: expected False, got True, as the file says of itself"):
        fill(other, str(tmp_path / "b" / "weights.safetensors"), other.spec)


def test_a_backbone_is_compared_with_its_weights_before_it_is_allocated(tmp_path):
    module = whole()
    regplug.export(module.spec, module, tmp_path / "b", backends=[])
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["backbone"]["options"]["mlp_ratio"] = 1e12  # terabytes
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(regplug.BundleError, match=r"weights\.safetensors: tensor 'tokens\.model\..*48000000000000"):
        regplug.load(tmp_path / "b")


@pytest.mark.slow
def test_each_weight_compiled_into_a_program_is_detected(module):
    """With the gate's second set of weights, each weight left at its first value is detected."""
    module = copy.deepcopy(module)
    owner, sizes = "whole", module.tokens.input_shape
    signature = signature_of_conditioner(owner, module, module.layout, sizes)
    moved, golden = _other_weights(owner, module, signature)
    assert all(bool(value.isfinite().all()) for value in golden.tensors.values())
    baked = copy.deepcopy(module)

    def seen(state):
        baked.load_state_dict(state)
        results = [compare(module_run("baked", baked), golden, case, signature.outputs) for case in golden.golden.cases]
        return not all(result.ok for result in results)

    assert not seen(moved)
    first = module.state_dict()
    unseen = [name for name in first if not seen({**moved, name: first[name]})]
    assert unseen == []


@pytest.mark.compiler
def test_every_wrong_image_is_refused_before_anything_runs(bundle):
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert manifest["input"]["shape"] == ["B", 3, 28, 28]
    for backend in BOTH:
        program = regplug.load(bundle, program=backend)
        named = dict(wrong_inputs(program.manifest))
        assert list(named) == ["wrong C", "wrong C, more", "wrong H", "wrong W", "wrong rank", "wrong dtype"]
        for inputs in named.values():
            with pytest.raises(regplug.ShapeError):
                program.run_flat(*inputs)
        with pytest.raises(regplug.ShapeError) as error:
            program(torch.zeros(1, 3, 224, 224))
        assert str(error.value) == f"program '{backend}': expected images [B, 3, 28, 28], got [1, 3, 224, 224]."


@pytest.mark.compiler
@pytest.mark.parametrize("backend", BOTH)
def test_cpp_gives_the_same_outputs_for_images_and_the_same_messages(bundle, backend):
    report = check_golden(built() / CPP[backend], bundle)
    assert sorted(report["cases"]) == ["batch_0", "batch_1", "batch_2", "batch_64", "batch_7", "slice"]
    loaded = regplug.load(bundle, program=backend)
    wrong = {"C": torch.zeros(2, 2, 28, 28), "H": torch.zeros(2, 3, 56, 28), "rank": torch.zeros(3, 28, 28)}
    wrong["dtype"] = torch.zeros(2, 3, 28, 28, dtype=torch.float64)
    for what, given in wrong.items():
        with pytest.raises(regplug.ShapeError) as error:
            loaded(given)
        assert report["refused"][what] == str(error.value)


@pytest.mark.compiler
def test_regplug_run_takes_images(bundle, tmp_path):
    images = torch.randn(2, 3, 28, 28)
    (tmp_path / "in.safetensors").write_bytes(save_tensors({"images": images}))
    command = [built() / "regplug-run" / "regplug-run", bundle, tmp_path / "in.safetensors"]
    subprocess.run([*command, tmp_path / "out.safetensors"], check=True)
    found = load_tensors("out", (tmp_path / "out.safetensors").read_bytes())
    pairs = regplug.load(bundle, program="aotinductor")(images)
    wanted = {
        f"{word}_{i}": one for i, pair in enumerate(pairs) for word, one in zip(["gamma", "beta"], pair, strict=True)
    }
    assert set(found) == set(wanted)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)
    (tmp_path / "in.safetensors").write_bytes(save_tensors({"registers": images}))
    assert run(*command, tmp_path / "out.safetensors")[0] == 1


class Patches(nn.Module):
    """A backbone in three lines: every register is a projection of the mean image."""

    def __init__(self, size: int = 8, has_size: bool = True):
        super().__init__()
        self.size, self.has_size = size, has_size
        self.project = nn.Linear(3, 8 * 6)


class Tokens(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.project = model.project
        if model.has_size:
            self.input_shape = (3, model.size, model.size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.project(images.mean((2, 3))).reshape(-1, 8, 6)


def nothing_today(model, normalized):
    raise regplug.SpecError("nothing today.")


def registry_of(hidden_dim=6, **fields):
    layout = regplug.TokenLayout(num_registers=2, hidden_dim=hidden_dim, start=1, normalized=False)
    given = {"layout": lambda model: layout, "tokens": lambda model, normalized: Tokens(model), **fields}
    return installed_with(regplug.BackboneEntry("patches", Patches, **given))


def test_a_bundle_loads_wherever_the_backbone_is_installed_and_nowhere_else(tmp_path):
    registry = registry_of()
    module = regplug.attach("patches", "mean", registry=registry)
    done = regplug.export(module.spec, module, tmp_path / "b", registry=registry)
    assert done.manifest.backbone.name == "acme:patches"
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(regplug.load(tmp_path / "b", registry=registry)(images), module(images))
    with pytest.raises(regplug.NameLookupError, match="backbone 'acme:patches'"):
        regplug.load(tmp_path / "b")
    assert regplug.load(tmp_path / "b", program="torchscript")(images).shape == (2, 6)
    with pytest.raises(regplug.BundleError, match=r"b: the installed acme:patches: nothing today\."):
        regplug.load(tmp_path / "b", registry=registry_of(tokens=nothing_today))
    shifted = regplug.TokenLayout(num_registers=2, hidden_dim=6, start=3, normalized=False)
    with pytest.raises(regplug.BundleError, match=r"layout: expected TokenLayout\(.*start=1.* from the installed acme"):
        regplug.load(tmp_path / "b", registry=registry_of(layout=lambda model: shifted))


def test_a_backbone_without_an_input_size_is_not_exported(tmp_path):
    registry = registry_of()
    module = regplug.attach("patches", "mean", model_options={"has_size": False}, registry=registry)
    with pytest.raises(regplug.ExportError, match="'mean': Tokens: expected a backbone that states"):
        regplug.export(module.spec, module, tmp_path / "b", registry=registry)


def test_a_model_that_its_plugin_cannot_describe_is_not_exported(tmp_path):
    registry = registry_of(classes=[f"{Patches.__module__}:Patches"])
    module = regplug.attach(Patches(), "mean", registry=registry)
    with pytest.raises(regplug.ExportError, match="expected a backbone that a bundle can name, got: backbone"):
        regplug.export(module.spec, module, tmp_path / "b", registry=registry)


def test_a_model_that_its_plugin_describes_wrongly_is_not_exported(tmp_path):
    fields = {"classes": [f"{Patches.__module__}:Patches"], "describe": lambda model: (None, {"size": 9})}
    registry = registry_of(**fields)
    model = Patches()
    model.project = nn.Linear(3, 48, bias=False)
    module = regplug.attach(model, "mean", registry=registry)
    with pytest.raises(regplug.ExportError, match="expected a module that its spec rebuilds, got another"):
        regplug.export(module.spec, module, tmp_path / "b", registry=registry)


def test_large_images_keep_the_cases_that_every_loader_needs_and_no_more(tmp_path):
    registry = registry_of()
    module = regplug.attach("patches", "mean", model_options={"size": 518}, registry=registry)
    done = regplug.export(module.spec, module, tmp_path / "b", backends=[], registry=registry)
    assert [case.case for case in done.manifest.golden.cases] == ["batch_0", "batch_1", "batch_2", "slice"]
    assert done.manifest.files["golden.safetensors"].size < 22_000_000
    module = regplug.attach("patches", "mean", model_options={"size": 2600}, registry=registry)
    with pytest.raises(regplug.ExportError, match="expected golden cases within 256000000 bytes, .* a smaller image"):
        regplug.export(module.spec, module, tmp_path / "c", backends=[], registry=registry)


@pytest.mark.compiler
def test_the_comparison_detects_a_wrong_pair(bundle):
    program = regplug.load(bundle, program="torchscript")
    outputs = program.run_flat(torch.randn(1, 3, 28, 28))
    assert [output.name for output in program.manifest.outputs] == ["gamma_0", "beta_0", "gamma_1", "beta_1"]
    assert isinstance(program.manifest.outputs[0], TensorSpec)
    assert largest_error(outputs, [outputs[1], outputs[0], *outputs[2:]]) > 1e-3

"""Weights that are made or loaded inside inference mode can be trained."""

import pytest
import torch

import regplug
from regplug.bundle.weights_file import build_filled
from regplug.format.weights import save_tensors

SIZES = {"num_registers": 4, "hidden_dim": 16}
SPEC = regplug.resolve("compress-concat", **SIZES, compressed_dim=3)
FILM = {"kernel_hidden_dim": 3, "num_film_layers": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "b"
    regplug.export(SPEC, SPEC.build().to(torch.bfloat16), folder, backends=[])
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "w"
    file.write_bytes(save_tensors(SPEC.build().double().state_dict()))
    return file


WAYS = {
    "create": lambda bundle, weights: regplug.create("attention", **SIZES),
    "build": lambda bundle, weights: SPEC.build(),
    "load": lambda bundle, weights: regplug.load(bundle),
    "a weights file": lambda bundle, weights: build_filled(SPEC.build, str(weights), SPEC),
    "pair": lambda bundle, weights: regplug.pair(SPEC, "kernel-film", **FILM),
    "attach": lambda bundle, weights: regplug.attach(
        "timm:vit_small_patch14_reg4_dinov2", film_options=FILM, model_options={"img_size": 28, "depth": 1}
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_made_inside_inference_mode_can_be_trained(way, bundle, weights):
    with torch.inference_mode():
        module = WAYS[way](bundle, weights)
        assert torch.is_inference_mode_enabled()
    tensors = [*module.parameters(), *module.buffers()]
    assert tensors
    assert not any(tensor.is_inference() for tensor in tensors)
    assert any(tensor.requires_grad for tensor in tensors)


def test_a_module_made_in_inference_mode_by_torch_alone_is_what_these_tests_refuse():
    with torch.inference_mode():
        assert torch.nn.Linear(2, 2).weight.is_inference()

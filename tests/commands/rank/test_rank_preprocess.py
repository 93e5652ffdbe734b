"""From an image to a backbone's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from support.picture_backbone import entry
from torchvision import transforms
from torchvision.transforms import InterpolationMode

import regplug
from regplug import ImagePreprocess, SpecError
from regplug.commands.rank.reading.preprocess import own_pipeline, published_pipeline
from regplug.nn.image_input import apply_preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DRAW = np.random.default_rng(0)


def picture(height, width, mode="RGB"):
    return Image.fromarray(DRAW.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


@pytest.mark.parametrize("size", [(60, 91), (91, 60), (32, 32), (20, 17), (33, 200)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize("fraction", [1.0, 0.875])
def test_resize_crop_and_normalisation_are_those_of_torchvision(size, interpolation, fraction):
    image = picture(*size)
    resized = int(32 / fraction)
    theirs = transforms.Compose(
        [
            transforms.Resize(resized, InterpolationMode(interpolation)),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )(image)
    ours = apply_preprocess(image, ImagePreprocess((32, 32), MEAN, STD, interpolation, fraction))
    assert ours.shape == (3, 32, 32)
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=0)


def test_squash_resizes_both_sides():
    image = picture(50, 80)
    ours = apply_preprocess(image, ImagePreprocess((16, 24), (0.0,) * 3, (1.0,) * 3, "bilinear", fit="squash"))
    wanted = np.asarray(image.resize((24, 16), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    assert np.allclose(ours.permute(1, 2, 0).numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode):
    image = picture(8, 8, "L").convert(mode) if mode == "LA" else picture(8, 8, mode)
    ours = apply_preprocess(image, ImagePreprocess((8, 8), (0.0,) * 3, (1.0,) * 3))
    assert np.allclose(ours.permute(1, 2, 0).numpy() * 255, np.asarray(image.convert("RGB")), atol=1e-4)


def test_one_mean_asks_for_grey_levels_and_sixteen_bits_are_scaled():
    grey = ImagePreprocess((2, 2), (0.0,), (1.0,))
    assert apply_preprocess(picture(8, 8), grey).shape == (1, 2, 2)
    levels = np.array([[0, 257], [257 * 100, 65535]], dtype=np.uint16)
    assert (apply_preprocess(Image.fromarray(levels), grey) * 255).round().flatten().tolist() == [0, 1, 100, 255]
    with pytest.raises(SpecError, match=r"image x: expected an image that can be read, got grey levels of 32 bits"):
        published_pipeline(grey)(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "image x")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": (224,)}, r"size: expected positive integers \(H, W\), got \(224,\)"),
        ({"size": 224}, "size: expected a list of numbers, got 224"),
        ({"size": (0, 4)}, "size: expected positive integers"),
        ({"mean": (1.0, 2.0)}, "mean: expected three numbers, or one for grey levels, got"),
        ({"mean": ("a", "b", "c")}, "mean: expected three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std: expected three numbers, or one for grey levels, above 0, got"),
        ({"std": (1.0,)}, "std: expected 3 numbers, as mean, got 1"),
        ({"interpolation": "cubic"}, "interpolation: expected one of nearest, bilinear, bicubic, lanczos, got 'cubic'"),
        ({"fit": "pad"}, "fit: expected one of crop, squash, got 'pad'"),
        ({"crop_fraction": 0}, "crop_fraction: expected more than 0 and at most 1, got 0"),
        ({"scale": -1}, "scale: expected a positive number, got -1"),
    ],
)
def test_wrong_fields_are_refused(fields, said):
    with pytest.raises(SpecError, match=f"^ImagePreprocess: {said}"):
        ImagePreprocess(**{"size": (8, 8), "mean": MEAN, "std": STD, **fields})


def test_its_text_has_all_that_it_does():
    how = ImagePreprocess([32, 32], list(MEAN), list(STD), crop_fraction=0.875)
    assert how == ImagePreprocess((32, 32), MEAN, STD, crop_fraction=0.875)
    assert str(how) == (
        "RGB, bicubic, crop to 32x32, keeping 0.875, scale 0.00392157, mean (0.485, 0.456, 0.406), "
        "std (0.229, 0.224, 0.225)"
    )


def test_an_own_function_is_named_with_a_digest_and_its_faults_are_reported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_preprocess.py").write_text(
        "import torch\ndef good(image): return torch.zeros(1, 2, 3)\ndef bad(image): return [1]\n"
        "def wrong(image): return 1 / 0\n"
    )
    good = own_pipeline("own_preprocess:good")
    assert good(picture(4, 4), "image x").shape == (1, 2, 3)
    assert good.text.startswith("own_preprocess:good (sha256 ")
    with pytest.raises(SpecError, match=r"preprocessing of image x: expected a tensor \[C, H, W\] of floats, got list"):
        own_pipeline("own_preprocess:bad")(picture(4, 4), "image x")
    with pytest.raises(SpecError, match=r"image x: expected an image that can be read, got division by zero"):
        own_pipeline("own_preprocess:wrong")(picture(4, 4), "image x")
    with pytest.raises(SpecError, match="--preprocess: expected to import 'own_preprocess:nothing'"):
        own_pipeline("own_preprocess:nothing")


def test_an_entry_refuses_a_preprocess_that_is_no_reference():
    with pytest.raises(SpecError, match="preprocess: expected 'module:attr' or a callable, got 3"):
        entry(preprocess=3)


@pytest.mark.parametrize("side", [8, 16])
def test_the_digits_backbone_reads_grey_images_of_its_size(side):
    from regplug_digits.preprocessing import preprocess

    found = apply_preprocess(picture(side, side), preprocess(None))
    assert found.shape == (1, 8, 8)
    assert regplug.default_registry().backbone_entry("digits-vit").preprocess is not None

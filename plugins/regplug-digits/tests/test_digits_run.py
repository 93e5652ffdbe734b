"""A bundle with the backbone, over images: tensors, and files as Hugging Face stores them."""

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import regplug
from regplug_digits import load_pretrained
from regplug_digits.data import load
from regplug_digits.preprocessing import preprocess


@pytest.fixture(scope="module")
def whole():
    """The backbone with a readout behind it."""
    torch.manual_seed(0)
    return regplug.attach(load_pretrained(), "compress-concat", compressed_dim=6).eval()


@pytest.fixture(scope="module")
def mapper(whole, tmp_path_factory):
    done = regplug.export(whole.spec, whole, tmp_path_factory.mktemp("b") / "whole", backends=())
    return regplug.BundleMapper(done.directory)


@pytest.fixture(scope="module")
def images():
    train, test = load()
    return torch.cat([train.images, test.images])[:20]


def rows_of(table):
    return np.stack([np.asarray(one) for one in table.column("conditioning").to_pylist()])


def test_images_as_tensors_give_what_the_backbone_and_the_readout_give(mapper, whole, images):
    with torch.inference_mode():
        wanted = whole(images).numpy()
    flat = pa.FixedSizeListArray.from_arrays(pa.array(images.numpy().reshape(-1)), images[0].numel())
    shaped = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), images.shape[1:]), flat)
    for column in (flat, shaped):
        np.testing.assert_allclose(rows_of(mapper(pa.table({"images": column}))), wanted, atol=1e-5)


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray((pixels / 16 * 255).round().astype(np.uint8)).save(file, "png")
    return file.getvalue()


def test_image_files_in_a_column_are_prepared_as_the_plugin_says(mapper, whole):
    files = [encoded(pixels) for pixels in load_digits().images[:20]]
    how = preprocess(load_pretrained())
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]).astype(np.float32)
    inputs = torch.from_numpy((pixels * np.float32(how.scale) - np.float32(how.mean[0])) / np.float32(how.std[0]))
    with torch.inference_mode():
        wanted = whole(inputs).numpy()
    structs = pa.array([{"bytes": file, "path": None} for file in files])
    for column in (structs, pa.array(files), pa.array(files, pa.large_binary())):
        np.testing.assert_allclose(rows_of(mapper(pa.table({"image": column}))), wanted, atol=1e-4)


def test_a_broken_image_is_named_by_its_row(mapper):
    files = [encoded(load_digits().images[0]), b"no image"]
    with pytest.raises(regplug.SpecError, match="column 'image': row 1: expected an image that Pillow reads"):
        mapper(pa.table({"image": pa.array(files)}))
    with pytest.raises(regplug.SpecError, match="row 1: expected an encoded image, got none"):
        mapper(pa.table({"image": pa.array([files[0], None])}))

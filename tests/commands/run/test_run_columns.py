"""How columns of data become a bundle's inputs: masks of integers, rounding, and which row a message names."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.commands import run_command
from support.readouts import moved
from support.token_files import D, R, lists, read_results, registers

import regplug


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    spec = regplug.resolve("mean", num_registers=None, hidden_dim=D)
    return regplug.export(spec, spec.build(), tmp_path_factory.mktemp("masked") / "bundle", mask=True).directory


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A bundle that takes float16."""
    spec = regplug.resolve("pool", num_registers=R, hidden_dim=D)
    return regplug.export(
        spec, spec.build().half(), tmp_path_factory.mktemp("halves") / "bundle", backends=()
    ).directory


@pytest.mark.parametrize("program", [None, "torchscript"])
def test_a_column_tokens_is_cut_by_the_layout_that_the_bundle_has(tmp_path, program):
    spec = regplug.resolve("concat", num_registers=R, hidden_dim=D)
    layout = regplug.TokenLayout(num_registers=R, hidden_dim=D, start=1)
    bundle = regplug.export(spec, spec.build(), tmp_path / "bundle", layout=layout).directory
    tokens = np.concatenate([np.full((2, 1, D), 7, np.float32), registers(2), np.ones((2, 5, D), np.float32)], 1)
    got = regplug.BundleMapper(bundle, program=program)({"tokens": tokens})
    np.testing.assert_array_equal(got["conditioning"], registers(2).reshape(2, -1))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_a_mask_may_be_integers_0_and_1_as_tokenizers_write_it(masked, dtype):
    mask = np.array([[1, 1, 0], [1, 0, 0]], dtype)
    tokens = registers(2)
    wanted = np.stack([tokens[0, :2].mean(0), tokens[1, 0]])
    mapper = regplug.BundleMapper(masked)
    np.testing.assert_allclose(mapper({"tokens": tokens, "mask": mask})["conditioning"], wanted, atol=1e-6)
    table = pa.table({"tokens": lists(tokens), "mask": pa.array(mask.tolist(), pa.list_(pa.from_numpy_dtype(dtype)))})
    got = np.stack(mapper(table).column("conditioning").to_pylist())
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_mask_of_other_integers_is_refused_with_its_row(masked):
    mask = np.array([[1, 1, 0], [1, 2, 0]])
    with pytest.raises(regplug.SpecError, match="column 'mask': row 1: expected a mask, bool or 0 and 1, got 2"):
        regplug.BundleMapper(masked)({"tokens": registers(2), "mask": mask})


def test_a_sample_without_a_token_that_counts_is_named_by_its_row(masked, tmp_path):
    mask = np.ones((30, R), bool)
    mask[25] = False
    table = pa.table({"tokens": lists(registers(30)), "mask": pa.array(mask.tolist())})
    with pa.OSFile(str(tmp_path / "a.arrows"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    code, _, err = run_command("run", masked, tmp_path, "-o", tmp_path / "out", "--batch", 10)
    assert code == 1
    assert "failed a: column 'mask': row 25: expected a token that counts, got none." in err


def test_columns_of_a_batch_with_different_numbers_of_rows_are_refused(masked):
    batch = {"tokens": registers(2), "mask": np.ones((3, R), bool)}
    with pytest.raises(regplug.SpecError, match=r"columns with the same number of rows, got tokens 2, mask 3\."):
        regplug.BundleMapper(masked)(batch)


def test_a_number_too_large_for_the_bundles_dtype_is_not_called_infinite(halves):
    rows = registers(3)
    rows[2, 0, 0] = 1e6
    mapper = regplug.BundleMapper(halves, cast=True)
    wanted = r"row 2: expected numbers up to 6\.55e\+04, the largest of float16, got 1e\+06\."
    with pytest.raises(regplug.SpecError, match=wanted):
        mapper({"registers": rows})
    rows[2, 0, 0] = np.inf
    with pytest.raises(regplug.SpecError, match="row 2: expected finite numbers, got inf"):
        mapper({"registers": rows})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_a_shorter_float_that_the_bundles_dtype_holds_exactly_needs_no_cast(halves, dtype):
    rows = torch.ones(2, R, D).to(dtype)
    got = regplug.BundleMapper(halves)({"registers": rows})["conditioning"]
    np.testing.assert_array_equal(got.float(), np.ones((2, D)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_float_that_the_bundles_dtype_may_round_needs_cast(halves, dtype):
    rows = torch.ones(2, R, D).to(dtype)
    with pytest.raises(regplug.SpecError, match="expected float16, got b?float.*allow rounding"):
        regplug.BundleMapper(halves)({"registers": rows})
    assert regplug.BundleMapper(halves, cast=True)({"registers": rows})["conditioning"].shape == (2, D)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "row 2: expected values, got null"),
        ([None] * D, "row 2: expected values, got null"),
        ([0.0], f"row 2: expected a list of {D}, as those before, got 1"),
    ],
)
def test_a_bad_token_in_lists_of_different_lengths_is_named_by_its_samples_row(masked, token, message):
    good = registers(1)[0].tolist()
    rows = [good[:2], good[:3], [good[0], token], good[:1]]
    table = pa.table({"tokens": pa.array(rows, pa.list_(pa.list_(pa.float32())))})
    with pytest.raises(regplug.SpecError, match=message):
        regplug.BundleMapper(masked)(table)


def test_carried_names_are_a_line_of_csv_so_that_one_may_have_a_comma(pool, tmp_path):
    table = pa.table({"id": [0, 1], "x, y": [2, 3], "registers": lists(registers(2))})
    pq.write_table(table, tmp_path / "a.parquet")
    given = ("run", pool[0], tmp_path / "a.parquet", "-o", tmp_path / "out", "--carry")
    assert run_command(*given, 'id, "x, y"')[0] == 0
    assert read_results(tmp_path / "out" / "a.parquet")["x, y"].tolist() == [2, 3]
    code, _, err = run_command(*given, "id\nlabel")
    assert code == 2
    assert "--carry: expected names as in a line of CSV" in err


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_a_program_with_its_backbone_reads_image_files(tmp_path):
    torch.manual_seed(0)
    sizes = {"img_size": 28, "depth": 1, "embed_dim": 48, "num_heads": 2, "num_classes": 0}
    whole = regplug.attach("timm:vit_small_patch14_reg4_dinov2", "pool", model_options=sizes).eval()
    whole = moved(whole, 0.1)  # its own weights hide the image from the registers
    bundle = regplug.export(whole.spec, whole, tmp_path / "bundle").directory
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    pq.write_table(pa.table({"image": pa.array([png(one) for one in pixels])}), tmp_path / "a.parquet")
    given = ("run", bundle, tmp_path / "a.parquet", "--program", "torchscript", "-o", tmp_path / "out")
    code, _, err = run_command(*given)
    assert code == 0, err
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet, as timm says
    images = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = whole(images).numpy()
    np.testing.assert_allclose(read_results(tmp_path / "out" / "a.parquet")["conditioning"], wanted, atol=1e-4)
    assert np.abs(wanted - wanted[::-1]).max() > 1e-2

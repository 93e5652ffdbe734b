"""``regplug.BundleMapper``: a bundle in other people's pipelines."""

import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.token_files import COLUMNS, D, R, lists, registers, table
from torch.utils.data import DataLoader, Dataset

import regplug
from regplug.commands.run import opened


@pytest.fixture
def mapper(pool):
    return regplug.BundleMapper(pool[0])


@pytest.fixture
def wanted(pool):
    with torch.inference_mode():
        return pool[1](torch.from_numpy(registers(20))).numpy()


def rows_of(column):
    return np.stack([np.asarray(one) for one in column.to_pylist()])


def test_arrays_give_arrays_and_tensors_give_tensors(mapper, wanted):
    batch = {"id": np.arange(20), "registers": registers(20)}
    got = mapper(batch)
    assert list(got) == ["id", "registers", "conditioning"]
    assert list(batch) == ["id", "registers"]
    np.testing.assert_allclose(got["conditioning"], wanted, atol=1e-6)
    got = mapper({"registers": torch.from_numpy(registers(20))})["conditioning"]
    assert isinstance(got, torch.Tensor)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_and_record_batches_get_a_column(mapper, wanted, name):
    whole = table(registers(20), COLUMNS[name])
    for batch in (whole, whole.to_batches()[0], pa.concat_tables([whole.slice(0, 7), whole.slice(7)])):
        got = mapper(batch)
        assert type(got) is type(batch)
        assert got.schema.names == ["id", "registers", "conditioning"]
        np.testing.assert_allclose(rows_of(got.column("conditioning")), wanted, atol=1e-6)


def test_outputs_are_plain_lists_next_to_plain_lists_and_of_a_fixed_size_otherwise(mapper):
    """Spark has no lists of a fixed size."""
    plain = mapper(table(registers(4), COLUMNS["plain lists"])).schema.field("conditioning").type
    assert plain == pa.list_(pa.float32())
    for name in ("lists", "tensors", "bytes"):
        fixed = mapper(table(registers(4), COLUMNS[name])).schema.field("conditioning").type
        assert fixed.list_size == D


def test_a_slice_of_a_table_is_read_where_it_begins(mapper, wanted):
    got = mapper(table(registers(20)).slice(5, 3))
    np.testing.assert_allclose(rows_of(got.column("conditioning")), wanted[5:8], atol=1e-6)


def test_a_column_that_the_bundle_writes_is_replaced(mapper, wanted):
    whole = table(registers(20)).append_column("conditioning", lists(np.zeros((20, 1, D), np.float32)))
    got = mapper(whole)
    assert got.schema.names == ["id", "registers", "conditioning"]
    np.testing.assert_allclose(rows_of(got.column("conditioning")), wanted, atol=1e-6)


def test_a_data_frame_of_arrays_gets_a_column(mapper, wanted):
    frame = pd.DataFrame({"id": range(20), "registers": list(registers(20))}, index=range(100, 120))
    got = mapper(frame)
    assert list(got.index) == list(range(100, 120))
    np.testing.assert_allclose(np.stack(list(got["conditioning"])), wanted, atol=1e-6)


class Rows(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"id": index, "registers": torch.from_numpy(registers(20)[index])}


def test_it_maps_a_data_loader_whose_workers_are_processes(mapper, wanted):
    loader = DataLoader(Rows(), batch_size=8, num_workers=1)
    got = torch.cat([batch["conditioning"] for batch in map(mapper, loader)])
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-6)


def test_a_pool_of_new_processes_gets_it_by_pickle(pool, wanted):
    context = multiprocessing.get_context("spawn")
    for mapper in (regplug.BundleMapper(pool[0]), regplug.BundleMapper(regplug.read_bundle(pool[0]))):
        with ProcessPoolExecutor(1, mp_context=context) as workers:
            got = workers.submit(mapper, {"registers": registers(20)}).result()["conditioning"]
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_the_pickle_of_a_path_is_small_and_that_of_the_bytes_needs_no_folder(pool, tmp_path):
    by_path = pickle.dumps(regplug.BundleMapper(pool[0]))
    assert len(by_path) < 5000
    (tmp_path / "copy").mkdir()
    for file in pool[0].iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    by_bytes = pickle.dumps(regplug.BundleMapper(regplug.read_bundle(tmp_path / "copy")))
    by_path = pickle.dumps(regplug.BundleMapper(tmp_path / "copy"))
    for file in (tmp_path / "copy").iterdir():
        file.unlink()
    opened._OPENED.clear()
    with pytest.raises(regplug.BundleError, match="manifest.json"):
        pickle.loads(by_path)({"registers": registers(2)})
    assert pickle.loads(by_bytes)({"registers": registers(2)})["conditioning"].shape == (2, D)


def test_workers_refuse_another_bundle_than_the_one_that_was_found(pool, concat, tmp_path):
    folder = tmp_path / "bundle"
    folder.symlink_to(pool[0])
    data = pickle.dumps(regplug.BundleMapper(folder))
    folder.unlink()
    folder.symlink_to(concat[0])
    opened._OPENED.clear()
    with pytest.raises(regplug.BundleError, match="sha256 is .*, pinned is"):
        pickle.loads(data)({"registers": registers(2)})


def test_a_bundle_is_opened_once_in_a_process(pool, monkeypatch):
    opened._OPENED.clear()
    opens = []
    monkeypatch.setattr(opened, "load_module", lambda *given: opens.append(1) or real(*given))
    real = regplug.bundle.load.load_module
    for _ in range(3):
        pickle.loads(pickle.dumps(regplug.BundleMapper(pool[0])))({"registers": registers(2)})
    assert opens == [1]


def test_making_one_imports_no_torch(pool):
    code = "import sys, regplug, pickle; pickle.dumps(regplug.BundleMapper(sys.argv[1])); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(pool[0])], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_program_is_run_if_it_is_named(pool, wanted):
    got = regplug.BundleMapper(pool[0], program="torchscript")({"registers": registers(20)})
    np.testing.assert_allclose(got["conditioning"], wanted, atol=1e-6)


def test_registers_are_taken_out_of_all_tokens(pool, wanted):
    layout = regplug.TokenLayout(num_registers=R, hidden_dim=D, start=2)
    tokens = np.concatenate([np.full((20, 2, D), 7, np.float32), registers(20), np.zeros((20, 4, D), np.float32)], 1)
    mapper = regplug.BundleMapper(pool[0], layout=layout)
    np.testing.assert_allclose(mapper({"tokens": tokens})["conditioning"], wanted, atol=1e-6)
    flat = pa.table({"tokens": lists(tokens)})
    np.testing.assert_allclose(rows_of(mapper(flat).column("conditioning")), wanted, atol=1e-6)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    spec = regplug.resolve("mean", num_registers=None, hidden_dim=D)
    return regplug.export(spec, spec.build(), tmp_path_factory.mktemp("m") / "b", mask=True).directory


def test_a_mask_is_a_column_or_the_lengths_of_lists(masked):
    tokens = registers(4)
    mask = np.arange(R) < np.array([[3], [1], [2], [3]])
    means = np.stack([row[kept].mean(0) for row, kept in zip(tokens, mask, strict=True)])
    mapper = regplug.BundleMapper(masked)
    padded = np.where(mask[..., None], tokens, np.nan).astype(np.float32)
    np.testing.assert_allclose(mapper({"tokens": padded, "mask": mask})["conditioning"], means, atol=1e-6)
    ragged = [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]
    for kind in (pa.list_(pa.list_(pa.float32(), D)), pa.large_list(pa.list_(pa.float32()))):
        got = mapper(pa.table({"tokens": pa.array(ragged, kind)}))
        np.testing.assert_allclose(rows_of(got.column("conditioning")), means, atol=1e-6)
    with pytest.raises(regplug.SpecError, match="expected a column 'mask' too, or lists of any length"):
        mapper({"tokens": tokens})


def test_a_mask_whose_column_was_named_and_is_missing_is_not_replaced_by_lengths(masked):
    mapper = regplug.BundleMapper(masked, columns={"mask": "valid"})
    ragged = pa.table({"tokens": pa.array([registers(1)[0].tolist()], pa.list_(pa.list_(pa.float32())))})
    with pytest.raises(regplug.SpecError, match="input 'mask': expected a column 'valid', got tokens"):
        mapper(ragged)


def test_a_layout_cuts_the_tokens_and_their_mask(masked):
    """Lists of different lengths, and a column with a mask of all tokens."""
    layout = regplug.TokenLayout(num_registers=None, hidden_dim=D, start=1)
    mapper = regplug.BundleMapper(masked, layout=layout)
    tokens = registers(2)
    wanted = np.stack([tokens[0, 1:].mean(0), tokens[1, 1:2].mean(0)])
    ragged = pa.table(
        {"tokens": pa.array([tokens[0].tolist(), tokens[1, :2].tolist()], pa.list_(pa.list_(pa.float32())))}
    )
    np.testing.assert_allclose(rows_of(mapper(ragged).column("conditioning")), wanted, atol=1e-6)
    mask = np.array([[True, True, True], [True, True, False]])
    np.testing.assert_allclose(mapper({"tokens": tokens, "mask": mask})["conditioning"], wanted, atol=1e-6)


def test_flat_lists_are_tokens_and_an_empty_list_is_named_by_its_row(masked):
    mapper = regplug.BundleMapper(masked)
    tokens = registers(2)
    rows = [tokens[0].reshape(-1).tolist(), tokens[1, :1].reshape(-1).tolist()]
    flat = pa.table({"tokens": pa.array(rows, pa.list_(pa.float32()))})
    wanted = np.stack([tokens[0].mean(0), tokens[1, 0]])
    np.testing.assert_allclose(np.stack(mapper(flat).column("conditioning").to_pylist()), wanted, atol=1e-6)
    with pytest.raises(regplug.SpecError, match="row 1: expected at least one token, got none"):
        mapper(pa.table({"tokens": pa.array([tokens[0].tolist(), []], pa.list_(pa.list_(pa.float32())))}))
    with pytest.raises(regplug.SpecError, match="row 0: expected a multiple of 8 numbers, got 3"):
        mapper(pa.table({"tokens": pa.array([[1.0, 2.0, 3.0]])}))


def test_gradients_flow_through_what_reads_the_outputs_and_inputs_are_not_shared(pool, concat):
    for bundle, program in ((pool[0], None), (concat[0], None), (concat[0], "torchscript")):
        given = torch.from_numpy(registers(2))
        got = regplug.BundleMapper(bundle, program=program)({"registers": given})["conditioning"]
        torch.nn.Linear(got.shape[1], 1)(got).sum().backward()
        got.zero_()
        np.testing.assert_array_equal(given.numpy(), registers(2))


def test_columns_of_pandas_are_read(mapper, wanted):
    """Lists of lists, as pandas reads them, and a column by itself."""
    nested = [[np.array(token) for token in row] for row in registers(20)]
    frame = pd.DataFrame({"registers": [np.array([*row, None], object)[:-1] for row in nested]})
    np.testing.assert_allclose(np.stack(list(mapper(frame)["conditioning"])), wanted, atol=1e-6)
    series = pd.Series(list(registers(20).reshape(20, -1)))
    np.testing.assert_allclose(mapper({"registers": series})["conditioning"], wanted, atol=1e-6)


def test_arrays_in_any_order_of_memory_and_exact_integers_are_read(mapper, wanted):
    for rows in (registers(20)[::-1], np.asfortranarray(registers(20)), registers(20).astype(">f4")):
        again = wanted[::-1] if rows.strides[0] < 0 else wanted
        np.testing.assert_allclose(mapper({"registers": rows})["conditioning"], again, atol=1e-6)
    ones = mapper({"registers": np.ones((1, R, D), np.int16)})["conditioning"]
    np.testing.assert_array_equal(ones, mapper({"registers": np.ones((1, R, D), np.float32)})["conditioning"])
    with pytest.raises(regplug.SpecError, match="expected a value in every row, got a masked array"):
        mapper({"registers": np.ma.masked_less(registers(2), 0)})


def test_vectors_of_a_join_are_columns(tmp_path):
    chosen = regplug.join(registers="mean", state=2)
    spec = chosen.resolve(regplug.TokenLayout(num_registers=R, hidden_dim=D, start=0))
    bundle = regplug.export(spec, spec.build(), tmp_path / "join").directory
    mapper = regplug.BundleMapper(bundle)
    name = mapper.manifest.input.name
    states = np.arange(8, dtype=np.float32).reshape(4, 2)
    got = mapper({name: registers(4), "state": states})
    np.testing.assert_allclose(got["conditioning"], np.concatenate([registers(4).mean(1), states], 1), atol=1e-6)
    mapper = regplug.BundleMapper(bundle, columns={"state": "pose"})
    np.testing.assert_array_equal(mapper({name: registers(4), "pose": states})["conditioning"][:, D:], states)


def test_bfloat16_is_read_from_bytes_and_written_as_float32(tmp_path):
    spec = regplug.resolve("concat", num_registers=R, hidden_dim=D)
    bundle = regplug.export(spec, spec.build().to(torch.bfloat16), tmp_path / "b").directory
    mapper = regplug.BundleMapper(bundle)
    dtype = mapper.manifest.input.dtype
    values = torch.from_numpy(registers(4)).to(getattr(torch, dtype))
    raw = [row.contiguous().view(torch.uint8).numpy().tobytes() for row in values]
    got = mapper(pa.table({"registers": pa.array(raw, pa.binary(len(raw[0])))}))
    np.testing.assert_array_equal(rows_of(got.column("conditioning")), values.float().flatten(1).numpy())


WRONG = {
    "R": ({"registers": registers(2)[:, :2]}, r"column 'registers': expected \[n, 3, 8\], got \[n, 2, 8\]"),
    "D": ({"registers": registers(2)[..., :5]}, r"expected \[n, 3, 8\], got \[n, 3, 5\]"),
    "flat of another width": ({"registers": np.zeros((2, 23), "f4")}, r"expected \[n, 3, 8\], got \[n, 23\]"),
    "a name twice": (
        pa.table([lists(registers(2))] * 2, ["registers"] * 2),
        "different names, got 'registers' more than",
    ),
    "no column": ({"x": registers(2)}, "input 'registers': expected a column 'registers' or 'tokens', got x"),
    "float64": ({"registers": registers(2).astype("f8")}, "expected float32, got float64; allow rounding, with --cast"),
    "integers": ({"registers": np.zeros((2, R, D), int)}, "expected float32, got int64"),
    "text": ({"registers": np.full((2, R, D), "a")}, "expected numbers of one shape in every row"),
    "rows of different shapes": ({"registers": [[1.0], [1.0, 2.0]]}, "expected numbers of one shape in every row"),
    "NaN": (
        {"registers": np.where(np.arange(2)[:, None, None] == 1, np.nan, registers(2)).astype("f4")},
        "row 1: .* nan",
    ),
    "null": (pa.table({"registers": pa.array([None, [[0.0] * D] * R])}), "row 0: expected values, got null"),
    "lists of different lengths": (
        pa.table({"registers": pa.array([[[0.0]], [[0.0], [1.0]]])}),
        "row 1: expected a list of 1, as those before, got 2",
    ),
    "texts in a table": (pa.table({"registers": ["a", "b"]}), "expected lists of numbers, or bytes .* got string"),
    "an object": (7, "batch: expected a mapping of arrays or tensors, .* got int"),
    "tokens without a layout": ({"tokens": registers(2)}, "expected a layout that says which tokens are registers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_batch_is_refused_by_name(mapper, name):
    batch, message = WRONG[name]
    with pytest.raises(regplug.SpecError, match=message):
        mapper(batch)


def test_wrong_choices_are_refused_where_it_is_made(pool):
    with pytest.raises(regplug.SpecError, match="input 'regs': not an input of the bundle; known: registers"):
        regplug.BundleMapper(pool[0], columns={"regs": "x"})
    with pytest.raises(regplug.BundleError, match="pinned is"):
        regplug.BundleMapper(pool[0], digest="0" * 64)
    with pytest.raises(regplug.SpecError, match="expected the digest"):
        regplug.BundleMapper(regplug.read_bundle(pool[0]), digest="0" * 64)
    with pytest.raises(regplug.SpecError, match="program 'onnx': not in bundle .*; known: torchscript"):
        regplug.BundleMapper(pool[0], program="onnx")
    with pytest.raises(regplug.SpecError, match="expected its files, got a bundle that was read without"):
        regplug.BundleMapper(regplug.read_bundle(pool[0]), program="torchscript")
    with pytest.raises(regplug.SpecError, match="expected a folder, or what regplug.read_bundle returned, got Regi"):
        regplug.BundleMapper(pool[1])
    with pytest.raises(regplug.SpecError, match="preprocess: expected none, as bundle .* takes registers"):
        regplug.BundleMapper(pool[0], preprocess="json:loads")


def test_a_layout_is_refused_by_a_bundle_that_finds_the_registers_itself(tmp_path):
    layout = regplug.TokenLayout(num_registers=R, hidden_dim=D, start=1)
    spec = regplug.resolve("mean", num_registers=R, hidden_dim=D)
    film = regplug.pair(spec, "kernel-film", kernel_hidden_dim=4, num_film_layers=1)
    bundle = regplug.export(spec, regplug.Conditioner(layout, spec.build(), film), tmp_path / "b").directory
    with pytest.raises(regplug.SpecError, match="layout: expected none, as bundle .* finds the registers itself"):
        regplug.BundleMapper(bundle, layout=layout)
    assert set(regplug.BundleMapper(bundle)({"tokens": np.zeros((2, R + 2, D), "f4")})) == {
        "tokens",
        "gamma_0",
        "beta_0",
    }


def test_rounding_is_allowed_by_name(pool, wanted):
    got = regplug.BundleMapper(pool[0], cast=True)({"registers": registers(20).astype("f8")})
    np.testing.assert_allclose(got["conditioning"], wanted, atol=1e-6)


@pytest.mark.slow
def test_ray_data_maps_it_and_its_own_checkpoint_works(pool, tmp_path):
    """A real pipeline of Ray Data: read, map, write, with the checkpoint that Ray keeps."""
    code = """
import json, sys
import pyarrow.parquet as pq, ray, regplug
source, bundle, out, checkpoint = sys.argv[1:]
ray.init(num_cpus=4, log_to_driver=False)
context = ray.data.DataContext.get_current()
context.checkpoint_config = ray.data.checkpoint.CheckpointConfig("id", checkpoint, delete_checkpoint_on_success=False)
mapper = regplug.BundleMapper(bundle)
for _ in range(2):  # the second finds all rows in the checkpoint
    read = ray.data.read_parquet(source)
    read.map_batches(mapper, batch_format="pyarrow").write_parquet(out)
print(json.dumps(sorted(pq.read_table(out).column("id").to_pylist())))
"""

    pq.write_table(table(registers(50)), tmp_path / "a.parquet")
    places = [str(tmp_path / "a.parquet"), str(pool[0]), str(tmp_path / "out"), f"file://{tmp_path}/checkpoint"]
    done = subprocess.run(
        [sys.executable, "-c", code, *places], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == list(range(50))

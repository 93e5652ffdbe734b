"""``regplug run``: from files of registers to files of conditioning vectors."""

import json
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.commands import run_command
from support.token_files import (
    COLUMNS,
    read_results,
    registers,
    write_arrow,
    write_parquet,
    write_safetensors,
    write_stream,
)

from regplug.commands.run import units
from regplug.commands.run.addresses import find_files

WRITERS = {
    **{f"{name} in a.parquet": partial(write_parquet, column=one) for name, one in COLUMNS.items()},
    **{f"{name} in b.arrow": partial(write_arrow, column=one) for name, one in COLUMNS.items()},
    "a stream.arrow": write_stream,
    "tensors.safetensors": write_safetensors,
}


def wanted(module, rows):
    with torch.inference_mode():
        return module(torch.from_numpy(rows)).numpy()


def run(*arguments):
    code, out, err = run_command("run", *arguments)
    assert code == 0, out + err
    return out


def test_the_results_of_every_kind_of_file_are_the_modules_in_the_order_of_its_rows(pool, tmp_path):
    bundle, module = pool
    rows = registers(250)
    (tmp_path / "in").mkdir()
    for name, write in WRITERS.items():
        write(tmp_path / "in" / name, rows)
    out = run(bundle, tmp_path / "in", "-o", tmp_path / "out", "--carry", "id", "--batch", 64)
    assert f"wrote {250 * len(WRITERS):,} rows to" in out
    assert f"; files: {len(WRITERS)} written\n" in out
    for name in WRITERS:
        got = read_results(tmp_path / "out" / f"{Path(name).stem}.arrow")
        np.testing.assert_allclose(got["conditioning"], wanted(module, rows), atol=1e-6)
        np.testing.assert_array_equal(got["id"], np.arange(250))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "safetensors"])
def test_every_format_can_be_written_from_every_other_and_says_where_it_comes_from(pool, tmp_path, kind):
    bundle, module = pool
    rows = registers(30)
    write_stream(tmp_path / "a.arrow", rows)
    write_parquet(tmp_path / "b.parquet", rows)
    write_safetensors(tmp_path / "c.safetensors", rows)
    inputs = [tmp_path / name for name in ("a.arrow", "b.parquet", "c.safetensors")]
    run(bundle, *inputs, "-o", tmp_path / "out", "--carry", "id", "--format", kind)
    found = [read_results(tmp_path / "out" / f"{name}.{kind}") for name in "abc"]
    for one in found:
        np.testing.assert_allclose(one["conditioning"], wanted(module, rows), atol=1e-6)
        np.testing.assert_array_equal(one["id"], np.arange(30))
    path = tmp_path / "out" / f"a.{kind}"
    if kind == "parquet":
        said = pq.read_schema(path).metadata[b"regplug"]
    elif kind == "arrow":
        said = pa.ipc.open_file(str(path)).schema.metadata[b"regplug"]
    else:
        with safe_open(path, "pt") as file:
            said = file.metadata()["regplug"]
    said = json.loads(said)
    assert said["strategy"] == "regplug:pool"
    assert len(said["bundle"]) == 64


def test_a_large_file_becomes_parts_that_together_have_its_rows(pool, tmp_path, monkeypatch):
    bundle, module = pool
    rows = registers(1000)
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)
    write_parquet(tmp_path / "a.parquet", rows)
    run(bundle, tmp_path / "a.parquet", "-o", tmp_path / "out", "--carry", "all")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert len(names) > 2
    assert names[0] == f"a-00000-of-{len(names):05}.parquet"
    got = read_results(tmp_path / "out")
    np.testing.assert_array_equal(got["id"], np.arange(1000))
    np.testing.assert_allclose(got["conditioning"], wanted(module, rows), atol=1e-6)


def test_one_worker_and_three_give_the_same_bytes(pool, tmp_path, monkeypatch):
    bundle, _ = pool
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)
    write_parquet(tmp_path / "a.parquet", registers(1000))
    for workers in (1, 3):
        run(bundle, tmp_path / "a.parquet", "-o", tmp_path / f"out{workers}", "--workers", workers)
    for path in (tmp_path / "out1").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "out3" / path.name).read_bytes()


def test_a_folder_keeps_its_folders_and_leaves_out_hidden_files(pool, tmp_path):
    bundle, _ = pool
    for name in ("day=1", "day=2", ".hidden", "_log"):
        (tmp_path / "in" / name).mkdir(parents=True)
        write_parquet(tmp_path / "in" / name / "part.parquet", registers(5))
    run(bundle, tmp_path / "in", "-o", tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.parquet"))
    assert found == ["day=1/part.parquet", "day=2/part.parquet"]


def test_a_pattern_names_files(pool, tmp_path):
    bundle, _ = pool
    for name in ("a", "b", "c"):
        write_parquet(tmp_path / f"{name}.parquet", registers(5))
    run(bundle, tmp_path / "[ab].parquet", "-o", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == ["a.parquet", "b.parquet"]


def test_an_address_is_read_by_fsspec(pool, tmp_path):
    bundle, module = pool
    rows = registers(20)
    write_parquet(tmp_path / "a.parquet", rows)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.parquet", "deep/a.parquet")
    run(bundle, f"zip://deep/*.parquet::file://{tmp_path}/all.zip", "-o", tmp_path / "out")
    np.testing.assert_allclose(
        read_results(tmp_path / "out" / "a.parquet")["conditioning"], wanted(module, rows), atol=1e-6
    )


def test_a_file_without_rows_has_results_without_rows(pool, tmp_path):
    bundle, _ = pool
    some = pq.read_table(write_parquet(tmp_path / "b.parquet", registers(5)))
    pq.write_table(some.slice(0, 0), tmp_path / "a.parquet")
    run(bundle, tmp_path / "a.parquet", "-o", tmp_path / "out", "--carry", "id")
    found = pq.read_table(tmp_path / "out" / "a.parquet")
    assert found.num_rows == 0
    assert found.schema.field("conditioning").type.list_size == 8


def test_results_below_the_folder_of_the_inputs_are_no_inputs(pool, tmp_path):
    bundle, _ = pool
    write_parquet(tmp_path / "a.parquet", registers(5))
    for state in ("1 written", "1 done before"):
        assert f"files: {state}\n" in run(bundle, tmp_path, "-o", tmp_path / "out")


def test_hidden_files_are_left_out_by_folders_patterns_and_addresses_alike(tmp_path):
    (tmp_path / "in" / "_d").mkdir(parents=True)
    for name in ("a.parquet", "B.PARQUET", ".h.parquet", "_u.parquet", "_d/q.parquet"):
        write_parquet(tmp_path / "in" / name, registers(2))
    (tmp_path / "in" / "folder.parquet").mkdir()
    output = tmp_path / "out"
    for given, count in ((tmp_path / "in", 2), (f"file://{tmp_path}/in", 2), (tmp_path / "in" / "**" / "*.parquet", 1)):
        assert len(find_files([str(given)], output)) == count
    assert len(find_files([str(tmp_path / "in" / "_u.parquet")], output)) == 1


def test_a_file_that_is_named_twice_is_read_once(tmp_path):
    write_parquet(tmp_path / "a.parquet", registers(2))
    found = find_files([str(tmp_path), str(tmp_path / "a.parquet")], tmp_path / "out")
    assert [one.name for one in found] == ["a"]


def test_a_tensor_without_a_row_for_each_sample_is_left_out(pool, tmp_path):
    bundle, module = pool
    rows = registers(4)
    save_file(
        {"registers": torch.from_numpy(rows), "scale": torch.ones(1), "id": torch.arange(4)}, tmp_path / "a.safetensors"
    )
    run(bundle, tmp_path / "a.safetensors", "-o", tmp_path / "out", "--carry", "all")
    got = read_results(tmp_path / "out" / "a.safetensors")
    assert set(got) == {"id", "conditioning"}
    np.testing.assert_allclose(got["conditioning"], wanted(module, rows), atol=1e-6)


def test_a_wrong_option_of_a_layout_is_one_line(pool, tmp_path):
    write_parquet(tmp_path / "a.parquet", registers(2))
    code, _, err = run_command("run", pool[0], tmp_path / "a.parquet", "-o", tmp_path / "out", "--layout", "strat=1")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "strat" in err


def test_results_of_other_inputs_with_the_same_names_are_not_replaced_silently(pool, tmp_path):
    bundle, module = pool
    for name, seed in (("train", 1), ("test", 2)):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name / "a.parquet", registers(5, seed))
    run(bundle, tmp_path / "train", "-o", tmp_path / "out")
    code, _, err = run_command("run", bundle, tmp_path / "test", "-o", tmp_path / "out")
    assert code == 2
    assert "expected a to have results of" in err
    got = read_results(tmp_path / "out" / "a.parquet")["conditioning"]
    np.testing.assert_allclose(got, wanted(module, registers(5, 1)), atol=1e-6)
    run(bundle, tmp_path / "test", "-o", tmp_path / "out", "--force")
    got = read_results(tmp_path / "out" / "a.parquet")["conditioning"]
    np.testing.assert_allclose(got, wanted(module, registers(5, 2)), atol=1e-6)


def test_results_of_inputs_that_are_not_named_now_are_counted(pool, tmp_path):
    bundle, _ = pool
    for name in ("a", "b"):
        write_parquet(tmp_path / f"{name}.parquet", registers(5))
    run(bundle, tmp_path / "a.parquet", tmp_path / "b.parquet", "-o", tmp_path / "out")
    out = run(bundle, tmp_path / "a.parquet", "-o", tmp_path / "out")
    assert "files: 1 done before, 1 of inputs that were not named now" in out


def test_an_input_inside_the_output_folder_is_refused_and_stays(pool, tmp_path):
    bundle, _ = pool
    write_parquet(tmp_path / "a.parquet", registers(5))
    run(bundle, tmp_path / "a.parquet", "-o", tmp_path / "out", "--carry", "registers")
    before = (tmp_path / "out" / "a.parquet").read_bytes()
    for given in (tmp_path / "out", tmp_path / "out" / "a.parquet"):
        code, _, err = run_command("run", bundle, given, "-o", tmp_path / "out", "--force")
        assert code == 2
        assert "expected files outside the output" in err
    assert (tmp_path / "out" / "a.parquet").read_bytes() == before


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "safetensors"])
def test_the_command_itself_imports_no_torch_as_only_its_workers_need_it(pool, tmp_path, run_python, suffix):
    write = {"parquet": write_parquet, "arrow": write_arrow, "safetensors": write_safetensors}[suffix]
    write(tmp_path / f"a.{suffix}", registers(5))
    given = ["run", str(pool[0]), str(tmp_path / f"a.{suffix}"), "-o", str(tmp_path / "out"), "--carry", "id"]
    done = run_python(
        "import sys\nfrom click.testing import CliRunner\nfrom regplug.commands.main import group\n"
        f"print(CliRunner().invoke(group, {given!r}).output, {{'torch', 'pandas'}} & {{*sys.modules}})"
    )
    assert "wrote 5 rows" in done.stdout, done
    assert done.stdout.endswith(" set()\n")

"""The memory of a run does not grow with a row group, a record batch or a tensor, however large."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from support.environment import clean_environment
from support.token_files import lists

import regplug

R, D = 4, 96
LARGE, SMALL = 300 << 20, 1 << 20  # bytes of registers
MOST_MORE = 180 << 10  # KiB; results are written in groups of 64 MiB
MOST = 600 << 10

MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "regplug", "run", *sys.argv[1:]], capture_output=True, text=True)
print(json.dumps([done.returncode, done.stderr, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def rows_of(nbytes):
    return np.resize(np.random.default_rng(0).standard_normal((1000, R, D)).astype(np.float32), (nbytes // 1536, R, D))


def write_one_group(path, rows):
    pq.write_table(table_of(rows), path, row_group_size=len(rows), compression="none", use_dictionary=False)


def write_one_batch(path, rows):
    table = table_of(rows)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write_one_batch_as_stream(path, rows):
    table = table_of(rows)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def write_tensor(path, rows):
    save_file({"registers": torch.from_numpy(rows)}, path)


def table_of(rows):
    return pa.table({"registers": lists(rows)})


WRITERS = {
    "parquet": write_one_group,
    "arrow": write_one_batch,
    "ipc": write_one_batch_as_stream,
    "safetensors": write_tensor,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    spec = regplug.resolve("pool", num_registers=R, hidden_dim=D)
    folder = tmp_path_factory.mktemp("bundle") / "b"
    regplug.export(spec, spec.build(), folder, backends=())
    return folder


def peak_of(*arguments):
    """The largest memory that the run or its worker ever had, in KiB."""
    words = [sys.executable, "-c", MEASURE, *map(str, arguments), "--workers", "1"]
    own = {"PYTHONPATH": str(Path(regplug.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=clean_environment() | own, capture_output=True, text=True, check=True)
    code, err, peak = json.loads(done.stdout)
    assert code == 0, err
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_memory_does_not_grow_with_a_row_group_a_record_batch_or_a_tensor(bundle, tmp_path, kind):
    peaks = []
    for name, nbytes in (("small", SMALL), ("large", LARGE)):
        path = tmp_path / f"{name}.{kind}"
        WRITERS[kind](path, rows_of(nbytes))
        peaks.append(peak_of(bundle, path, "-o", tmp_path / name, "--format", "parquet"))
        path.unlink()
    small, large = peaks
    assert large - small < MOST_MORE, f"{large - small:,} KiB more"
    assert large < MOST, f"{large:,} KiB"

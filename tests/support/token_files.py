"""Rows of registers in every kind of file that ``regplug run`` reads."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

R, D = 3, 8


def registers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, R, D)).astype(np.float32)


def lists(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows[0].size)


def nested_lists(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(lists(rows.reshape(-1, rows.shape[-1])), rows.shape[1])


def plain_lists(rows: np.ndarray) -> pa.Array:
    return pa.array(rows.tolist(), pa.list_(pa.list_(pa.float32())))


def tensors(rows: np.ndarray) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), rows.shape[1:]), lists(rows))


def raw_bytes(rows: np.ndarray) -> pa.Array:
    return pa.array([row.tobytes() for row in rows], pa.binary(rows[0].nbytes))


COLUMNS: dict[str, Callable[[np.ndarray], pa.Array]] = {
    "lists": lists,
    "nested lists": nested_lists,
    "plain lists": plain_lists,
    "tensors": tensors,
    "bytes": raw_bytes,
}


def table(rows: np.ndarray, column: Callable[[np.ndarray], pa.Array] = lists) -> pa.Table:
    return pa.table({"id": pa.array(range(len(rows))), "registers": column(rows)})


def write_parquet(path: Path, rows: np.ndarray, column: Any = lists, group: int = 100) -> Path:
    pq.write_table(table(rows, column), path, row_group_size=group)
    return path


def write_arrow(path: Path, rows: np.ndarray, column: Any = lists, group: int = 100) -> Path:
    whole = table(rows, column)
    with pa.ipc.new_file(str(path), whole.schema) as writer:
        writer.write_table(whole, max_chunksize=group)
    return path


def write_stream(path: Path, rows: np.ndarray, column: Any = lists, group: int = 100) -> Path:
    whole = table(rows, column)
    with pa.ipc.new_stream(str(path), whole.schema) as writer:
        writer.write_table(whole, max_chunksize=group)
    return path


def write_safetensors(path: Path, rows: np.ndarray) -> Path:
    save_file({"registers": torch.from_numpy(rows), "id": torch.arange(len(rows))}, path)
    return path


def read_results(path: Path) -> Mapping[str, np.ndarray]:
    """The columns of a file of results, or of all files in a folder, by name."""
    if path.is_dir():
        parts = [
            read_results(one) for one in sorted(path.rglob("*")) if one.suffix in (".parquet", ".arrow", ".safetensors")
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if path.suffix == ".safetensors":
        return {
            name: one.float().numpy() if one.is_floating_point() else one.numpy()
            for name, one in load_file(path).items()
        }
    if path.suffix == ".parquet":
        whole = pq.read_table(path)
    else:
        with pa.memory_map(str(path)) as file:
            whole = pa.ipc.open_file(file).read_all()
    columns = {name: whole.column(name).to_pylist() for name in whole.schema.names}
    return {name: np.array(values) for name, values in columns.items()}

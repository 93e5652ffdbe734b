"""Batches of data pipelines: mappings of arrays or tensors, Arrow tables and record batches, pandas data frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from regplug.commands.extras import import_extra
from regplug.commands.run.arrow_columns import arrow_column, list_column, plain
from regplug.errors import SpecError, class_name


def columns_of(batch: Any) -> Mapping[str, Any]:
    """The columns of a batch by name.

    Raises:
        SpecError: It is no batch of a known kind.
    """
    if isinstance(batch, Mapping):
        return batch
    if _is_arrow(batch):
        names = batch.schema.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SpecError(f"batch: expected columns with different names, got {twice!r} more than once.")
        return {name: batch.column(name) for name in batch.schema.names}
    if _is_pandas(batch):
        return {str(name): batch[name].to_numpy() for name in batch.columns}
    raise SpecError(
        "batch: expected a mapping of arrays or tensors, an Arrow table or record batch, or a pandas data frame, "
        f"got {class_name(batch)}; most libraries have a method to_arrow()."
    )


def add_columns(batch: Any, outputs: Mapping[str, Tensor]) -> Any:
    """A new batch of the same kind, with outputs as further columns; a column of the same name is replaced.

    In a table that has plain lists, as those of Spark, the outputs are plain lists; otherwise lists of a fixed size.
    """
    if isinstance(batch, Mapping):
        as_tensors = any(isinstance(one, Tensor) for one in batch.values())
        return {**batch, **(outputs if as_tensors else {name: plain(one).numpy() for name, one in outputs.items()})}
    if _is_pandas(batch):
        return batch.assign(**{name: list(plain(one).numpy()) for name, one in outputs.items()})
    types = import_extra("run", "pyarrow").types
    has_plain_lists = any(types.is_list(field.type) for field in batch.schema)
    for name, one in outputs.items():
        column = list_column(one) if has_plain_lists else arrow_column(one)
        if name in batch.schema.names:
            batch = batch.set_column(batch.schema.names.index(name), name, column)
        else:
            batch = batch.append_column(name, column)
    return batch


def _is_arrow(batch: Any) -> bool:
    return hasattr(batch, "schema") and hasattr(batch, "column")


def _is_pandas(batch: Any) -> bool:
    return hasattr(batch, "columns") and hasattr(batch, "assign")

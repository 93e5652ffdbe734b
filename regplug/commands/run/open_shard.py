"""Opens a file of samples by its kind."""

from __future__ import annotations

from regplug.commands.run.addresses import InputFile
from regplug.commands.run.shard import Shard


def open_shard(file: InputFile) -> Shard:
    """The file, opened by its kind.

    Raises:
        SpecError: It is not a file of this kind.
    """
    if file.kind == "parquet":
        from regplug.commands.run.parquet_shard import ParquetShard

        return ParquetShard(file)
    if file.kind == "arrow":
        from regplug.commands.run.arrow_shard import ArrowShard

        return ArrowShard(file)
    from regplug.commands.run.safetensors_shard import SafetensorsShard

    return SafetensorsShard(file)

"""Runs one unit: reads it in batches, and writes its results atomically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from queue import Queue
from threading import Thread
from typing import Any

from regplug.commands.run.addresses import stamp_now
from regplug.commands.run.job import Job
from regplug.commands.run.open_shard import open_shard
from regplug.commands.run.results import TEMPORARY, Written
from regplug.commands.run.shard import Shard
from regplug.commands.run.sink import HashedSink
from regplug.commands.run.units import Unit
from regplug.commands.run.writers import open_writer
from regplug.errors import SpecError
from regplug.format.durable import sync_folder
from regplug.format.temporary import locked_file

AHEAD = 2  # batches that are read before they are needed


def run_unit(job: Job, unit: Unit, said: Callable[[int], None] = lambda rows: None) -> Written:
    """Run a unit. Its results are complete at their path, or not there.

    Args:
        job: What to do.
        unit: The unit.
        said: Called with the number of rows of each batch that is done.

    Raises:
        RegplugError: The file is damaged or was changed, or its columns are not what the bundle takes.
        OSError: The results cannot be written.
    """
    target = job.output / job.file_name(unit.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(target.parent, TEMPORARY, 0o666) as (descriptor, path):
        sink = HashedSink(descriptor)
        try:
            with closing(open_shard(unit.file)) as shard:
                rows = _write(job, unit, shard, sink, said)
        finally:
            _check_unchanged(unit)  # a better reason than what reading a mixture raised
        if rows != unit.rows:
            raise SpecError(f"{unit.file.owner}: expected {unit.rows:,} rows, got {rows:,}.")
        sha256, mtime_ns = sink.finish()
        path.rename(target)
        sync_folder(target.parent)
        return Written(rows, sink.size, mtime_ns, sha256)


def _write(job: Job, unit: Unit, shard: Shard, sink: HashedSink, said: Callable[[int], None]) -> int:
    inputs = job.mapper.input_columns(shard.names)
    carried = job.carried(shard.names)
    writer = open_writer(job.format, sink, job.facts())
    wanted = list(dict.fromkeys([*inputs.values(), *carried]))
    rows = 0
    batches = shard.batches(range(*unit.pieces), wanted, job.batch) if unit.rows else iter([shard.empty(wanted)])
    try:
        for batch in read_ahead(batches):
            count = len(batch[wanted[0]])
            outputs = job.mapper.outputs({name: batch[name] for name in inputs.values()}, unit.first + rows)
            writer.write({name: batch[name] for name in carried}, outputs)
            rows += count
            said(count)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    return rows


def _check_unchanged(unit: Unit) -> None:
    file = unit.file
    if stamp_now(file) != file.stamp:
        raise SpecError(
            f"{file.owner}: expected a file that is not changed while it is read, got another size or time."
        )


def read_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, read by another thread while the last ones are used."""
    waiting: Queue[tuple[Any, BaseException | None]] = Queue(AHEAD)
    stopped = False

    def read() -> None:
        error: BaseException | None = None
        try:
            for batch in batches:
                waiting.put((batch, None))
                if stopped:
                    return
        except BaseException as found:  # raised again by the thread that uses the batches
            error = found
        waiting.put((None, error))

    thread = Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            batch, error = waiting.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        stopped = True
        while thread.is_alive():  # it may wait to put a batch
            if not waiting.empty():
                waiting.get_nowait()
            thread.join(0.01)

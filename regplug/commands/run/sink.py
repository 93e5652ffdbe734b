"""An open file that is hashed while it is written."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

from regplug.format.durable import write_fully


class HashedSink:
    """Writes to a descriptor; pyarrow and ``write`` use it as a file.

    Args:
        descriptor: Open for writing, at its start; it is not closed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        self._hashing = ThreadPoolExecutor(1)  # it takes half of the time of writing
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Write all of the data, which must not change afterwards."""
        view = memoryview(data).cast("B")
        write_fully(self._descriptor, view)
        self._hashing.submit(self._hash.update, data)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        """How much was written."""
        return self.size

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The descriptor's owner closes it."""
        self.closed = True

    def finish(self) -> tuple[str, int]:
        """Sync the file; its sha256, and the time of its last change in nanoseconds."""
        os.fsync(self._descriptor)
        self._hashing.shutdown()
        return self._hash.hexdigest(), os.fstat(self._descriptor).st_mtime_ns

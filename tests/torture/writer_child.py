"""Writes a bundle or single files. Marks in the system calls before and after show strace which calls to fail.

``writer_child.py folder|files PLACE SOURCE [--lazy]``: SOURCE holds the files to write; prints "ok", or the error.
"""

import signal
import sys
from pathlib import Path

from regplug.errors import ExportError
from regplug.format import durable, temporary
from regplug.format.single_file import write_files
from regplug.format.write_bundle import write_folder


def mark(word: str) -> None:
    Path(f"/regplug-mark-{word}").exists()


def forget_to_sync(modules: list) -> None:
    """Make the writer wrong, as a test of the checker: it never syncs a folder."""
    for module in modules:
        module.sync_folder = lambda folder: None


what, place, source = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if "--lazy" in sys.argv:
    forget_to_sync(
        [durable, temporary, sys.modules["regplug.format.write_bundle"], sys.modules["regplug.format.single_file"]]
    )
files = {file.name: file.read_bytes() for file in sorted(source.iterdir())}
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a parent in the background ignores it
mark("begin")
try:
    if what == "folder":
        write_folder(place, files, force=True)
    else:
        write_files({place / name: data for name, data in files.items()}, force=True)
except ExportError as error:
    mark("end")
    print(error)
    sys.exit(1)
except KeyboardInterrupt:
    mark("end")
    print("interrupted")
    sys.exit(130)
mark("success")
print("ok")

"""A sample of reads while writers replace a bundle; and a writer that writes in place is detected."""

import pytest

from torture import replacing
from torture.bundles import in_memory

IN_PLACE = replacing.WRITER.replace(
    "write_folder(place, files, force=True)", "[(place / name).write_bytes(data) for name, data in files.items()]"
)


@pytest.mark.torture
def test_readers_see_no_mixture_while_four_writers_replace_a_bundle(tmp_path):
    python, cpp, first = replacing.run(tmp_path, 0.1, 0, lambda word: None)
    assert (python.ok, cpp.ok, first.ok) == (True, True, True), (python, cpp, first)
    assert (python.tried, cpp.tried, first.tried) == (50, 1000, 5)


def test_writers_that_write_in_place_are_detected(tmp_path):
    with in_memory(tmp_path) as work:
        command = replacing.python(replacing.READER, work / "place", 200)
        [figure] = replacing.read_beside(work, {"Python": (200, command)}, IN_PLACE)
    assert figure.tried == 200
    assert figure.bad["errors"] > 0

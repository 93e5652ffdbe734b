"""A sample of crashes of the machine; and the model of them detects a writer that does not sync."""

import random

import pytest

from torture import crashing, failing
from torture.bundles import in_memory
from torture.disk import Change, Disk, Node, crashes


@pytest.mark.torture
def test_a_crash_of_the_machine_at_any_call_leaves_the_old_or_the_new_bundle(tmp_path):
    figures = crashing.run(tmp_path, 0.15, 0, lambda word: None)
    assert len(figures) == 5
    for figure in figures:
        assert figure.ok, figure
        assert figure.tried >= 3


@pytest.mark.slow
def test_a_writer_that_syncs_no_folder_is_detected(tmp_path):
    with in_memory(tmp_path) as work:
        new, replaced, files, _ = failing.scenarios(work)
        found = [
            crashing.crash_everywhere(crashing.recorded(one, work / "p", lazy=True), work, 0.5, 0, lambda word: None)
            for one in (new, replaced, files)
        ]
    assert found[1].bad[crashing.LOST] > 0
    assert all(figure.bad[crashing.UNDONE] > 0 and not figure.ok for figure in found)


FOLDER, FILE, OTHER = Node(True, 1), Node(False, 2), Node(False, 3)


@pytest.mark.parametrize(
    ("synced", "left"),
    [
        ([], [{}, {"a": b""}, {"a": b"\0\0"}, {"a": b"x"}, {"a": b"xy"}]),
        ([FILE], [{}, {"a": b"xy"}]),
        ([FOLDER], [{"a": b""}, {"a": b"\0\0"}, {"a": b"x"}, {"a": b"xy"}]),
        ([FILE, FOLDER], [{"a": b"xy"}]),
    ],
)
def test_unsynced_changes_may_be_lost(synced, left):
    changes = [Change(FOLDER, {"a": FILE}), Change(FILE, data=b"xy")]
    disk = Disk(FOLDER, changes, [0, 1], [(2 + n, node) for n, node in enumerate(synced)], calls=4)
    found = {repr(tree): tree for tree in crashes(disk, 4, random.Random(0))}
    assert sorted(found.values(), key=repr) == sorted(left, key=repr)


def test_an_exchange_is_atomic_and_later_deletions_may_reach_the_disk_before_it():
    changes = [Change(FOLDER, {"a": FILE, "b": OTHER}), Change(FOLDER, {"a": OTHER, "b": FILE})]
    changes.append(Change(FOLDER, {"b": None}))
    disk = Disk(FOLDER, changes, [0, 2, 3], [(1, FOLDER)], calls=4)
    found = {tuple(sorted(tree)) for tree in crashes(disk, 4, random.Random(0))}
    assert found == {("a", "b"), ("a",)}
    assert {repr(tree) for tree in crashes(disk, 2, random.Random(0))} == {"{'a': b'', 'b': b''}"}

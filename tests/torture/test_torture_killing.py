"""A sample of killed workers and killed runs; and what a kill must not leave is detected."""

import random

import pytest

from torture import killing


@pytest.mark.torture
def test_no_row_is_lost_or_twice_after_workers_and_runs_were_killed(tmp_path):
    workers, runs = killing.run(tmp_path, 0.3, 0, lambda word: None)
    assert (workers.ok, runs.ok) == (True, True), (workers, runs)
    assert (workers.tried, runs.tried) == (3, 3)


class Early(random.Random):
    """A moment at which most of the files are left."""

    def randrange(self, *limits: int) -> int:
        return 1

    def random(self) -> float:
        return 0.0


@pytest.mark.slow
def test_a_rerun_that_does_nothing_is_detected(tmp_path, monkeypatch):
    place = killing.Place(tmp_path)
    status = killing.run_to_end("--status", place.undisturbed)
    assert status.process.returncode == 0
    monkeypatch.setattr(killing, "run_to_end", lambda *arguments: status)
    assert killing.INCOMPLETE in killing.kill_run(place, Early(0))

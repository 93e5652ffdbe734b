"""A share of the plugins that misbehave, and the judge of what they do to others."""

import pytest

from torture.plugins import bad_of, run


@pytest.mark.torture
def test_no_plugin_takes_another_one_along(tmp_path):
    [found] = run(tmp_path, 0.1, 0, lambda word: None)
    assert found.tried >= 12
    assert (found.ok, found.bad) == (True, found.bad)


def test_the_judge_sees_a_process_that_a_plugin_ends(tmp_path):
    """Nothing in the process can help against this one, which is why no kind of the battery does it."""
    bad = bad_of(tmp_path, "import os; os._exit(0)")
    assert bad == {
        "hangs": 0, "tracebacks": 0, "stdout that is no JSON": 1, "silent failures": 2, "other exit codes": 0,
    }  # fmt: skip

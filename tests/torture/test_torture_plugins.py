"""A share of the plugins that misbehave; and the judge detects one that ends the process."""

import pytest

from torture.plugins import bad_of, run


@pytest.mark.torture
def test_no_plugin_breaks_another(tmp_path):
    [found] = run(tmp_path, 0.1, 0, lambda word: None)
    assert found.tried >= 12
    assert (found.ok, found.bad) == (True, found.bad)


def test_the_judge_detects_a_plugin_that_ends_the_process(tmp_path):
    """Nothing in the process can prevent this, so no plugin of the battery does it."""
    bad = bad_of(tmp_path, "import os; os._exit(0)")
    assert bad == {
        "hangs": 0, "tracebacks": 0, "stdout that is no JSON": 1, "silent failures": 2, "other exit codes": 0,
    }  # fmt: skip

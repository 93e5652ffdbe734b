"""The effect on LeRobot's own diffusion U-Net, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "lerobot_effect.py"


@pytest.mark.slow
def test_lerobots_own_blocks_are_measured_and_three_defects_in_them_are_found():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    cases = json.loads(done.stdout.splitlines()[-1])
    assert {one["sites"] for one in cases.values()} == {8}
    harmed = {name: cases.pop(name)["defects"] for name in ("no_weight", "normalised", "mixed")}
    assert len(cases) == 4
    assert [one["defects"] for one in cases.values()] == [[]] * 4
    assert harmed == {
        "no_weight": [["zero-last-layer", "down_modules.0.0"]],
        "normalised": [["undone-by-norm", "mid_modules.0"]],
        "mixed": [["batch-mixed", "up_modules.0.0"]],
    }

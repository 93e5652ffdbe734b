"""Parameters that only `make torture` runs: each costs a compile, and mostly repeats what another one shows."""

from __future__ import annotations

from typing import Any

import pytest


def in_battery(*values: Any) -> list[Any]:
    """The values as parameters of a test, marked ``torture``."""
    return [pytest.param(value, marks=pytest.mark.torture) for value in values]

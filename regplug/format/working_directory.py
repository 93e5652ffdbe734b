"""Detects a deleted working directory: Intel's MKL ends the process then, at the first matrix product."""

from __future__ import annotations

from pathlib import Path

GONE = "the working directory no longer exists, and torch needs one; change to another (cd), then try again"


def is_gone() -> bool:
    """Whether the working directory was deleted or replaced."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False

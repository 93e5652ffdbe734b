"""The working directory may be gone; Intel's MKL ends the process then, at the first product of matrices."""

from __future__ import annotations

from pathlib import Path

GONE = "the working directory no longer exists, and torch needs one; change to another (cd), then try again"


def is_gone() -> bool:
    """Whether the working directory was deleted, or replaced by another of its name."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False

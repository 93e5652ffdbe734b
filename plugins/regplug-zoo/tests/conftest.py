from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # tensors this small wait for each other when the machine is busy
    torch.set_num_threads(1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No program of an earlier test, nor of the user's own cache."""
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"

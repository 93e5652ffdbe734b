from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # tensors this small wait for each other when the machine is busy
    torch.set_num_threads(1)

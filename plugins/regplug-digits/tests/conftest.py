from __future__ import annotations

import pytest
import torch

import regplug_digits
from regplug_digits.data import Digits, load
from regplug_digits.model import DigitsViT


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # tensors this small wait for each other when the machine is busy
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parts() -> tuple[Digits, Digits]:
    return load()


@pytest.fixture(scope="session")
def shipped() -> DigitsViT:
    return regplug_digits.load_pretrained()

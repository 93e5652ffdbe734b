"""One model of every family: its real class and width, by its default configuration, one layer deep."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers_cases import CASES, Case


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # tensors this small wait for each other when the machine is busy
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found = CASES[request.param]
    if found.model is None:
        torch.manual_seed(0)
        found.model = found.build(num_hidden_layers=1).eval()
        for name, parameter in found.model.named_parameters():
            if "norm" in name or "register" in name:  # ones and zeros would hide a norm or a token that is another's
                nn.init.normal_(parameter, mean=1.0)
    return found

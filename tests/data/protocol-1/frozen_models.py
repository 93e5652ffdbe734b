"""What the entries of protocol 1 name."""

from torch import nn

import regplug


class Line(nn.Module):
    def __init__(self, hidden_dim: int, width: int = 3):
        super().__init__()
        self.linear = nn.Linear(hidden_dim, width)

    def forward(self, registers):
        return self.linear(registers).mean(1)


class Hooked(nn.Linear):
    def __init__(self, in_features: int):
        super().__init__(in_features, 5)

    def forward(self, registers):
        return super().forward(registers[:, -1])


class ViT(nn.Module):
    pass


def layout_of(model):
    return regplug.TokenLayout(num_registers=4, hidden_dim=8, start=1)


def film_sites(model):
    return [regplug.FiLMSite("blocks.0", features=16, num_layers=2)]

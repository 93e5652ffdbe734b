"""The effect on LeRobot's own U-Net, without a defect and with three; run as a program, as lerobot_conditioning is.

``python lerobot_effect.py`` prints one JSON object: the findings by case, each kind and module.
"""

import json
import sys
import types
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.lerobot_conditioning import Placeholders, configurations
from support.readouts import moved

BATCH, WIDTH = 16, 10


def unet(is_scaled, is_trained):
    """A narrow U-Net, as it starts or moved from there."""
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionConditionalUnet1d

    config = configurations()["pusht keypoints"]
    config.down_dims, config.use_film_scale_modulation = (16, 32), is_scaled
    torch.manual_seed(0)
    network = DiffusionConditionalUnet1d(config, global_cond_dim=WIDTH).eval()
    return moved(network, 0.1) if is_trained else network


def no_weight(network):
    """The first block's generator lost its weight."""
    nn.init.zeros_(network.down_modules[0][0].cond_encoder[1].weight)


def normalised(network):
    """An instance norm behind the modulation."""
    block = network.mid_modules[0]
    block.conv2 = nn.Sequential(nn.InstanceNorm1d(32), block.conv2)


def mixed(network):
    """A block gets its neighbour's pair."""
    network.up_modules[0][0].cond_encoder.register_forward_hook(lambda _, __, pair: pair.roll(1, 0))


def found(network):
    """The kinds and modules of what is found."""
    import regplug

    generator = torch.Generator().manual_seed(1)
    inputs = {
        "x": torch.randn(BATCH, 16, 2, generator=generator),
        "timestep": torch.arange(BATCH),
        "global_cond": torch.randn(BATCH, WIDTH, generator=generator),
    }
    report = regplug.effect(network, inputs)
    return {"sites": len(report.sites), "defects": [[one.kind, one.module] for one in report.defects]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.meta_path.insert(0, Placeholders())
    import lerobot

    policies = types.ModuleType("lerobot.policies")  # its __init__ imports packages that are not installed
    policies.__path__ = [f"{lerobot.__path__[0]}/policies"]
    sys.modules["lerobot.policies"] = policies
    cases = {
        f"scale {is_scaled}, trained {is_trained}": found(unet(is_scaled, is_trained))
        for is_scaled in (False, True)
        for is_trained in (False, True)
    }
    for harm in (no_weight, normalised, mixed):
        harmed = unet(True, True)
        harm(harmed)
        cases[harm.__name__] = found(harmed)
    print(json.dumps(cases))

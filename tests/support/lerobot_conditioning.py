"""What LeRobot's diffusion policy conditions on, computed by its own code; run as a program.

``python lerobot_conditioning.py FILE`` writes each configuration's sizes, inputs and conditioning vector. It runs in a
process of its own, because it replaces packages that LeRobot imports for its data sets.
"""

import importlib.machinery
import sys
import types
from unittest import mock

import torch

# imported by LeRobot's files of data sets and tools, used by none of what is called here
ABSENT = (
    "accelerate",
    "av",
    "datasets",
    "deepdiff",
    "imageio",
    "pandas",
    "pyarrow",
    "serial",
    "typing_inspect",
    "wandb",
)
BATCH = 3


class Placeholders:
    """Finds the absent packages, as modules in which every name exists."""

    def find_spec(self, name, path=None, target=None):
        """A spec for an absent package."""
        known = name.partition(".")[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec):
        """A module in which every name exists."""
        return mock.MagicMock(__path__=[], __spec__=spec, __name__=spec.name)

    def exec_module(self, module):
        """Nothing to run."""


def configurations():
    """PushT by images or keypoints; four cameras and 14 joints, as ALOHA; all inputs; an encoder for each camera."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    def made(state, env=None, cameras=0, size=96, **options):
        features = {"observation.state": PolicyFeature(FeatureType.STATE, (state,))}
        for number in range(cameras):
            features[f"observation.images.{number}"] = PolicyFeature(FeatureType.VISUAL, (3, size, size))
        if env:
            features["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (env,))
        action = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
        return DiffusionConfig(input_features=features, output_features=action, device="cpu", **options)

    return {
        "pusht": made(2, cameras=1),
        "pusht keypoints": made(2, env=16),
        "aloha": made(14, cameras=4, size=128),
        "all": made(7, env=5, cameras=2, n_obs_steps=3, spatial_softmax_num_keypoints=8),
        "encoder for each camera": made(7, cameras=2, use_separate_rgb_encoder_per_camera=True),
    }


def computed(config):
    """The sizes of the policy as it is shipped, and numbers from one with a narrow U-Net."""
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel

    with torch.device("meta"):
        whole = DiffusionModel(config)
    film = whole.unet.down_modules[0][0].cond_encoder[1].in_features
    torch.manual_seed(0)
    config.down_dims = (8, 16, 32)
    policy = DiffusionModel(config).eval()
    steps, cameras = config.n_obs_steps, len(config.image_features)
    given = {"observation.state": torch.randn(BATCH, steps, config.robot_state_feature.shape[0])}
    found = {"film": film, "steps": steps, "time": config.diffusion_step_embed_dim, "state": given["observation.state"]}
    if config.env_state_feature:
        found["env"] = torch.randn(BATCH, steps, config.env_state_feature.shape[0])
        given["observation.environment_state"] = found["env"]
    with torch.no_grad():
        if cameras:
            height = next(iter(config.image_features.values())).shape[1]
            images = given["observation.images"] = torch.rand(BATCH, steps, cameras, 3, height, height)
            shared = not config.use_separate_rgb_encoder_per_camera
            encoders = [policy.rgb_encoder] * cameras if shared else policy.rgb_encoder
            # [B, steps * cameras, width]: an image's features are a token
            each = [encoder(images[:, :, n].flatten(0, 1)) for n, encoder in enumerate(encoders)]
            found["tokens"] = torch.stack([one.unflatten(0, (BATCH, steps)) for one in each], 2).flatten(1, 2)
        found["global_cond"] = policy._prepare_global_conditioning(given)
    return found


if __name__ == "__main__":
    sys.meta_path.insert(0, Placeholders())
    import lerobot

    # its __init__ imports every policy, and one fails without packages that are not installed
    policies = types.ModuleType("lerobot.policies")
    policies.__path__ = [f"{lerobot.__path__[0]}/policies"]
    sys.modules["lerobot.policies"] = policies
    torch.save({name: computed(config) for name, config in configurations().items()}, sys.argv[1])

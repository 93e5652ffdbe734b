"""The checks on published readouts of other packages, registered unchanged: which they fail is known, and why."""

import pytest
from support.plugins import installed_with
from support.strategies import D, R

import regplug
from regplug.conformance import check_readout

NOT_SCRIPTABLE = "transformers' GELUTanh keeps a functools.partial, which TorchScript cannot hold"


def siglip_head(hidden_dim: int):
    """transformers' pooling head; its constructor takes a configuration."""
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    return SiglipMultiheadAttentionPoolingHead(
        SiglipVisionConfig(hidden_size=hidden_dim, num_attention_heads=4, intermediate_size=32)
    )


# strategy -> its options, the advisory checks that it fails, and the others that it fails, with the reason
OTHERS = {
    "timm-latent": ({"num_heads": 4}, {"refuses-num-registers"}, {}),
    "siglip": ({}, {"refuses-num-registers"}, {"script": NOT_SCRIPTABLE, "program[torchscript]": NOT_SCRIPTABLE}),
    "nvsubquadratic-pool": ({}, {"refuses-hidden-dim"}, {}),
    "nvsubquadratic-compress-concat": ({"compressed_dim": 6}, {"refuses-num-registers", "refuses-rank"}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", OTHERS)
def test_a_readout_of_another_package_fails_the_known_checks_and_no_others(strategy):
    options, takes, fails = OTHERS[strategy]
    registry = installed_with(
        regplug.ReadoutEntry("timm-latent", "timm.layers:AttentionPoolLatent", sizes={"in_features": "hidden_dim"}),
        regplug.ReadoutEntry("siglip", siglip_head),
    )
    spec = registry.resolve(strategy, num_registers=R, hidden_dim=D, **options)
    results = check_readout(
        spec, registry=registry, backends=["torchscript"], compiler="eager", expected_failures=fails
    )
    assert all(result.ok for result in results), results
    verdicts = {verdict: {one.check for one in results if one.verdict == verdict} for verdict in ("advisory", "passed")}
    assert verdicts["advisory"] == takes
    assert {"film", "gradients", "state-dict", "compile", "export", "threads"} <= verdicts["passed"]

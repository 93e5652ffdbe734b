from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.plugins import registered

import regplug
from regplug.conformance import check_backbone
from regplug_digits.kernel import SirenKernel
from regplug_digits.model import DigitsViT, film_sites, layout_of

READOUTS = ("compress-concat", "pool", "mean", "concat", "digits-gate")


def test_listing_imports_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys, regplug, regplug_digits.plugin\n"
        "assert 'digits-vit' in regplug.backbones() and 'digits-gate' in regplug.strategies()\n"
        "print(sorted({'torch', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_registry_knows_who_brought_the_strategy_and_the_backbone() -> None:
    registry = regplug.default_registry()
    for entry in (registry.readout_entry("digits-gate"), registry.backbone_entry("digits-vit")):
        assert entry.provenance is not None
        assert (entry.provenance.distribution, entry.provenance.version) == ("regplug-digits", "0.1.0")


def test_backbone_offers_the_strategies_and_its_default_is_what_it_builds() -> None:
    entry = regplug.default_registry().backbone_entry("digits-vit")
    assert tuple(entry.readouts) == READOUTS
    options = DigitsViT().options
    assert (options["readout"], options["readout_options"]) == (entry.default, dict(entry.options))


def test_sizes_are_known_without_allocating_anything() -> None:
    sizes = regplug.measure_backbone(regplug.default_registry().backbone_entry("digits-vit"))
    assert sizes.layout == regplug.TokenLayout(num_registers=4, hidden_dim=48, start=-4, normalized=True)
    assert sizes.film_sites == (
        regplug.FiLMSite("blocks.0.mixer.kernel", 32, 2),
        regplug.FiLMSite("blocks.1.mixer.kernel", 32, 2),
    )


@pytest.mark.parametrize(
    ("readout", "options", "width"),
    [
        ("compress-concat", None, 48),
        ("compress-concat", {"compressed_dim": 7}, 28),
        ("pool", None, 48),
        ("mean", None, 48),
        ("concat", None, 192),
        ("digits-gate", None, 48),
        ("regplug-digits:digits-gate", None, 48),
    ],
)
def test_every_film_width_follows_the_chosen_strategy(readout: str, options: dict[str, int] | None, width: int) -> None:
    model = DigitsViT(readout, options)
    assert model.cond_dim == width
    assert [block.film.mlp[0].in_features for block in model.blocks] == [width, width]
    assert model(torch.zeros(3, 8, 8)).shape == (3, 10)
    assert model(torch.zeros(3, 8, 8), torch.zeros(3, width)).shape == (3, 10)


def test_film_widths_follow_a_strategy_that_somebody_else_registered() -> None:
    class Ends(torch.nn.Module):
        def forward(self, registers: torch.Tensor) -> torch.Tensor:
            return torch.cat([registers[:, 0], registers[:, -1, :5]], dim=1)

    with registered(regplug.ReadoutEntry("ends", build=Ends)):
        model = DigitsViT("ends")
    assert model.cond_dim == 53
    assert model(torch.zeros(2, 8, 8)).shape == (2, 10)


def test_an_unknown_strategy_is_refused_by_name() -> None:
    with pytest.raises(regplug.NameLookupError, match="'digits-gat'.*closest: digits-gate"):
        DigitsViT("digits-gat")


def test_film_sites_name_the_kernels_and_what_they_take() -> None:
    model = DigitsViT(kernel_features=20, num_film_layers=3)
    for site in film_sites(model):
        kernel = model.get_submodule(site.where)
        assert isinstance(kernel, SirenKernel)
        assert (kernel.first.out_features, len(kernel.layers)) == (site.features, site.num_layers) == (20, 3)


@pytest.mark.parametrize("num_registers", [1, 4, 7])
def test_registers_are_found_where_the_layout_says(num_registers: int) -> None:
    model = DigitsViT("concat", num_registers=num_registers).eval()
    with torch.no_grad():
        # marks: no image can tell the register tokens from each other but by what they start with
        model.registers.copy_(torch.arange(1, num_registers + 1)[:, None] * torch.ones(model.registers.shape[1]))
        for block in model.blocks:
            block.gather.out.weight.zero_()
            block.gather.out.bias.zero_()
            block.mlp[-1].weight.zero_()
            block.mlp[-1].bias.zero_()
            block.norm = torch.nn.Identity()
        tokens = model.last_tokens(torch.zeros(2, 8, 8))
    positions = layout_of(model).positions(tokens.shape[1])
    assert tokens[0, list(positions), 0].tolist() == list(range(1, num_registers + 1))
    assert tokens.shape == (2, 16 + num_registers, 48)


@pytest.mark.parametrize("options", [{}, {"readout": "pool", "num_registers": 7, "num_blocks": 1}])
def test_it_passes_every_check_of_a_backbone(options: dict[str, object]) -> None:
    rows = check_backbone("digits-vit", options=options)
    assert {row.check: (row.verdict, row.detail) for row in rows if row.verdict != "passed"} == {}


def test_a_readout_on_top_of_it_reads_what_its_last_block_reads() -> None:
    model = DigitsViT().eval()
    images = torch.randn(3, 8, 8)
    registers = model.last_tokens(images)[:, -4:]
    torch.testing.assert_close(regplug.read_registers(model, images), registers, rtol=0, atol=0)
    assert regplug.attach(model, "pool")(images).shape == (3, 48)

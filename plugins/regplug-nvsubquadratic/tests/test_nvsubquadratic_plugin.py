"""What the plugin offers by name, light, and the rules of Mamba-Reg and the official ViT-5."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run_command

import regplug
from regplug.conformance import check_backbone
from regplug_nvsubquadratic import mamba_reg_layout, official, vit5_layout
from regplug_nvsubquadratic.shipped import CONFIGURATIONS, Configuration, build


def test_listing_imports_neither_torch_nor_nvsubquadratic() -> None:
    code = (
        "import sys, regplug, regplug_nvsubquadratic.plugin\n"
        "known = {entry.name for entry in regplug.default_registry().backbone_entries()}\n"
        "assert {'nvsubquadratic', 'mamba-reg', 'vit5'} <= known, known\n"
        "assert 'nvsubquadratic-pool' in regplug.strategies()\n"
        "print(sorted({'torch', 'numpy', 'nvsubquadratic', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_widths_are_printed_site_by_site() -> None:
    code, text, err = run_command(
        "cond-dim", "--backbone", "nvsubquadratic:hybrid_hhha_learnable_omega_blockdiag_film", "--json"
    )
    assert code == 0, err
    sites = json.loads(text)["film_sites"]
    kernel = "sequence_mixer.inner_mixer.mixer.global_conv.kernel"
    assert [site["where"] for site in sites] == [f"blocks.{i}.{kernel}" for i in (0, 1, 2, 4, 5, 6, 8, 9, 10)]
    assert {(site["features"], site["num_layers"], site["cond_dim"]) for site in sites} == {(32, 3, 384)}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("vit5:small", {"num_registers": 4, "hidden_dim": 384, "start": -4, "num_tokens": 201, "normalized": True}),
        ("vit5:xlarge", {"num_registers": 4, "hidden_dim": 1152, "start": -4, "num_tokens": 201}),
        ("mamba-reg:base", {"num_registers": 12, "hidden_dim": 768, "num_tokens": 208, "normalized": True}),
        ("mamba-reg:large", {"num_registers": 16, "hidden_dim": 1024, "num_tokens": 212}),
        ("nvsubquadratic:hybrid_ha", {"num_registers": 4, "hidden_dim": 384, "start": 197, "normalized": False}),
        ("nvsubquadratic", {"num_registers": 14, "hidden_dim": 384, "start": 196, "num_tokens": None}),
    ],
)
def test_a_backbone_is_described_by_name(name: str, layout: dict[str, object]) -> None:
    code, text, err = run_command("info", name, "--json")
    assert code == 0, err
    assert json.loads(text)["layout"].items() >= layout.items()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nvsubquadratic:hybrid_hah", "(closest: hybrid_ha)."),
        ("nvsubquadratic:hyena_gap_pretrain", "carries no register tokens (num_registers=0)"),
        (
            "mamba-reg:smal",
            "backbone 'mamba-reg': expected one of its models, got 'smal'; known: base, large, small, tiny",
        ),
        ("vit5:tiny", "backbone 'vit5': expected one of its models, got 'tiny'; known: base, large, small, xlarge"),
    ],
)
def test_a_model_that_is_not_there_or_has_no_registers_is_a_wrong_use(name: str, message: str) -> None:
    code, out, err = run_command("info", name)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("backbone", ["nvsubquadratic", "mamba-reg", "vit5"])
@pytest.mark.parametrize("model", ["", ":{}"])
def test_options_are_refused_where_a_name_says_all(backbone: str, model: str) -> None:
    name = backbone + model.format("r14_f3after_A" if backbone == "nvsubquadratic" else "base")
    assert run_command("cond-dim", "--backbone", name, *(["-O", "ratio=4"] if backbone == "mamba-reg" else []))[0] == 0
    code, out, err = run_command("cond-dim", "--backbone", name, "-M", "foo=1", "-M", "bar=2")
    assert (code, out) == (2, "")
    assert f"backbone {backbone!r}: expected a model's name without options, got bar, foo." in err


@pytest.mark.parametrize(
    ("model", "options", "formula"),
    [
        pytest.param("r4_f2_A", (), "D", marks=pytest.mark.torture),
        ("r4_cc4_f3after_v2", ("-O", "compressed_dim=96"), "R*c"),
    ],
)
@pytest.mark.slow
def test_the_sizes_of_a_shipped_network_change_and_its_widths_follow(
    model: str, options: tuple[str, ...], formula: str
) -> None:
    code, out, _ = run_command("audit", f"nvsubquadratic:{model}", *options, "--json")
    found = json.loads(out)
    assert (code, found["summary"]) == (0, "12 FiLM inputs: 12 follow, 0 wrong, 0 unknown")
    assert {one["given_formula"] for one in found["findings"]} == {formula}
    assert (found["fixed"], len(found["sizes"])) == ([], 6)


def test_a_size_that_no_configuration_can_have_is_refused() -> None:
    with pytest.raises(regplug.SpecError, match="hidden_dim: expected 1 to 65536, got 0"):
        build(hidden_dim=0)
    with pytest.raises(regplug.SpecError, match="compressed_dim: expected none, as this configuration compresses"):
        build("r4_f2_A", compressed_dim=96)


def test_a_network_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvsubquadratic.lazy_config", None)  # what Python finds where nothing is installed
    with pytest.raises(regplug.SpecError, match=r"use pip install 'regplug-nvsubquadratic\[nvsubquadratic\]'"):
        build()


def test_a_published_network_has_no_tokens_to_read() -> None:
    with pytest.raises(regplug.SpecError, match="expected a backbone that says how its tokens are read, got none"):
        regplug.attach("vit5:small")


# ---- rules


def sequence(num_patches: int, num_registers: int) -> list[str]:
    """Mamba-Reg's sequence, token by token: as many patches in each gap, what is left behind the last register."""
    gap = num_patches // (num_registers + 1)
    return (["patch"] * gap + ["register"]) * num_registers + ["patch"] * (num_patches - gap * num_registers)


@given(st.integers(1, 400), st.integers(1, 20))
def test_mamba_reg_puts_a_register_after_every_gap(num_patches: int, num_registers: int) -> None:
    tokens = sequence(num_patches, num_registers)
    layout = mamba_reg_layout(num_patches, num_registers, 8)
    positions = layout.positions(len(tokens))
    assert positions == tuple(at for at, token in enumerate(tokens) if token == "register")
    assert layout.normalized is True


@given(st.integers(1, 400), st.integers(1, 20))
def test_the_official_vit5_ends_in_its_registers(num_patches: int, num_registers: int) -> None:
    tokens = ["class"] + ["patch"] * num_patches + ["register"] * num_registers
    layout = vit5_layout(num_patches, num_registers, 8)
    assert layout.positions(len(tokens)) == tuple(at for at, token in enumerate(tokens) if token == "register")
    with pytest.raises(regplug.ShapeError):
        layout.positions(len(tokens) + 1)


@pytest.mark.parametrize("sizes", [(0, 4, 8), (196, 0, 8), (196, 4, 0), (196.0, 4, 8), (True, 4, 8)])
@pytest.mark.parametrize("rule", [mamba_reg_layout, vit5_layout])
def test_a_rule_refuses_sizes_that_are_not_positive_integers(rule: object, sizes: tuple[int, int, int]) -> None:
    with pytest.raises(regplug.SpecError, match="positive integer"):
        rule(*sizes)  # type: ignore[operator]


def test_the_blocks_of_the_readme_run_one_after_another() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    first, second = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    values: dict[str, Any] = {}
    exec(first, values)
    assert regplug.read_registers(values["network"], values["images"]).shape == (1, 14, 384)
    exec(second, values)
    assert values["cond_dim"] == 384


def test_the_examples_in_docstrings_hold() -> None:
    result = doctest.testmod(official)
    assert (result.attempted, result.failed) == (2, 0)


@pytest.mark.parametrize("readout", ["gap", "cls"])
def test_a_small_network_passes_every_check_of_a_backbone(monkeypatch: pytest.MonkeyPatch, readout: str) -> None:
    small = Configuration(4, readout, "HA" if readout == "cls" else "HH", 2, hidden_dim=24, image_size=64)
    monkeypatch.setitem(CONFIGURATIONS, "small", small)
    rows = check_backbone("nvsubquadratic:small")
    assert {row.check: row.detail for row in rows if not row.ok} == {}
    assert [row.check for row in rows if row.verdict == "not applicable"] == ["describe", "own-forward", "preprocess"]


@pytest.mark.parametrize("name", ["mamba-reg:base", "vit5"])
def test_a_backbone_of_sizes_only_passes_what_applies(name: str) -> None:
    rows = {row.check: row.verdict for row in check_backbone(name)}
    assert {check for check, verdict in rows.items() if verdict == "passed"} == {
        "light-plugin", "meta", "refusals", "strategies",
    }  # fmt: skip
    assert set(rows.values()) == {"passed", "not applicable"}

"""The effect finds every seeded defect in every architecture, and nothing in the unharmed ones."""

from __future__ import annotations

from pathlib import Path

import effect_table
import pytest
import torch
from support.seeded_defects import AT_START, DEFECTS
from support.seeded_networks import ARCHITECTURES, Architecture
from torch import nn

import regplug
from regplug.commands.audit.tensor_trees import tensors_in
from regplug.commands.effect.findings import INFO_KINDS, KINDS

SEEDED = [(kind, name) for kind, some in DEFECTS.items() for name in some]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def test_at_least_twelve_kinds_are_seeded_and_most_in_three_architectures():
    assert len(DEFECTS) >= 12
    assert sum(len(some) >= 3 for some in DEFECTS.values()) >= 12
    assert {name for some in DEFECTS.values() for name in some} == set(ARCHITECTURES)
    assert set(DEFECTS) <= set(KINDS) - set(INFO_KINDS)


@pytest.mark.parametrize(("kind", "name"), SEEDED, ids=[f"{kind} in {name}" for kind, name in SEEDED])
def test_a_seeded_defect_is_found_and_names_the_module(kind, name):
    report = effect_table.measured(kind, name)
    found = [one for one in report.defects if one.kind == kind]
    assert found
    paths = {*dict(ARCHITECTURES[name].trained().named_modules())}
    for one in found:
        assert any(one.module.startswith(path) for path in paths if path)
        assert one.unit == KINDS[kind].unit
        assert KINDS[kind].do == one.do
    assert report.as_json(["any", kind])["ok"] is False


@pytest.mark.parametrize("is_drawn", [False, True], ids=["given", "drawn"])
@pytest.mark.parametrize("state", ["start", "trained"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_unharmed_network_has_no_findings(name, state, is_drawn):
    if is_drawn and not ARCHITECTURES[name].is_tried:
        pytest.skip("no inputs that fit are found by trying")
    report = effect_table.unharmed(name, state, is_drawn)
    assert report.defects == ()
    assert report.state == ("trained" if state == "trained" else "at-start")
    assert len(report.sites) > 0
    assert report.noise == 0


def trained_for(architecture: Architecture, steps: int, rate: float) -> nn.Module:
    """The network after a few steps towards random targets."""
    network, inputs = architecture.start().train(), architecture.inputs()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    names = {"actions", "latent", "hidden_states"}
    targets = None
    for _ in range(steps):
        made = network(**inputs) if isinstance(inputs, dict) and names & set(inputs) else network(inputs)
        outputs = [one for one in tensors_in(made) if one.is_floating_point()]
        targets = targets or [torch.randn_like(one) for one in outputs]
        loss = sum(((one - target) ** 2).mean() for one, target in zip(outputs, targets, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@pytest.mark.parametrize(("steps", "rate"), [(1, 1e-4), (10, 1e-3), (100, 1e-3)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_on_its_way_has_no_findings_even_if_it_is_called_trained(name, steps, rate):
    architecture = ARCHITECTURES[name]
    network = trained_for(architecture, steps, rate)
    for trained in (None, True):
        report = regplug.effect(network, architecture.inputs(), layout=architecture.layout, trained=trained)
        assert report.defects == ()
    assert network.training


def test_the_table_says_found_missed_and_not_applicable(monkeypatch):
    monkeypatch.setattr(effect_table, "DEFECTS", {"no-effect": {"dit": lambda network: None}})
    assert effect_table.verdict("no-effect", "dit") == effect_table.MISSED
    assert effect_table.verdict("no-effect", "digits") == effect_table.NOT_APPLICABLE
    monkeypatch.setattr(effect_table, "DEFECTS", {"no-effect": DEFECTS["no-effect"]})
    assert effect_table.verdict("no-effect", "dit") == effect_table.FOUND


def test_defects_at_the_start_are_seeded_in_networks_at_their_start():
    assert set(AT_START) <= set(DEFECTS)
    for kind in AT_START:
        for name in DEFECTS[kind]:
            assert effect_table.measured(kind, name).state == "at-start"


PAGE = Path(__file__).resolve().parents[2] / "docs" / "effect.md"


def test_the_page_has_the_table_and_every_kind():
    text = PAGE.read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    [heads] = [row for row in rows if row == ["kind", *ARCHITECTURES]]
    shown = {row[0]: row[1:] for row in rows[rows.index(heads) + 1 :]}
    for kind, some in DEFECTS.items():
        assert shown[kind] == ["found" if name in some else "-" for name in ARCHITECTURES], kind
    unharmed = {head: cells for head, cells in shown.items() if head.startswith("unharmed")}
    assert len(unharmed) == 4
    assert {cell for cells in unharmed.values() for cell in cells} == {"0", "-"}
    described = [row for row in rows if len(row) == 3 and row[0] in KINDS]
    assert sorted(row[0] for row in described) == sorted(KINDS)

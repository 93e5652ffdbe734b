from __future__ import annotations

import doctest

import pytest
import torch

import regplug
import regplug_digits
from regplug_digits import gate, kernel, model
from regplug_digits.gate import DigitsGate


@pytest.mark.parametrize("module", [regplug_digits, gate, kernel, model])
def test_the_examples_in_docstrings_hold(module: object) -> None:
    result = doctest.testmod(module, extraglobs={"torch": torch})  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


def trained_like() -> DigitsGate:
    torch.manual_seed(0)
    readout = DigitsGate(num_registers=3, hidden_dim=5)
    torch.nn.init.normal_(readout.bias)
    return readout


def test_gate_is_what_its_formula_says() -> None:
    readout, registers = trained_like(), torch.randn(2, 3, 5)
    gates = [torch.sigmoid(registers[:, r] @ readout.gate.weight.T + readout.bias[r]) for r in range(3)]
    expected = sum(gates[r] * registers[:, r] for r in range(3)) / 3
    torch.testing.assert_close(readout(registers), expected)


def test_gate_distinguishes_registers_and_samples() -> None:
    readout, registers = trained_like(), torch.randn(2, 3, 5)
    assert not torch.allclose(readout(registers), readout(registers.flip(1)))
    assert not torch.allclose(readout(registers + 1) - readout(registers), torch.ones(2, 5))


def test_gate_scripts_and_the_script_refuses_wrong_sizes_too() -> None:
    readout, registers = trained_like(), torch.randn(2, 3, 5)
    scripted = torch.jit.script(readout)
    torch.testing.assert_close(scripted(registers), readout(registers))
    assert scripted.out_dim == 5
    with pytest.raises(Exception, match=r"expected registers \[B, 3, 5\], got \[2, 4, 5\]"):
        scripted(torch.randn(2, 4, 5))


def test_gate_compiles_as_one_graph() -> None:
    readout, registers = trained_like(), torch.randn(2, 3, 5)
    compiled = torch.compile(readout, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(registers), readout(registers))


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 6), (3, 5), (1, 2, 3, 5)])
def test_gate_refuses_registers_of_other_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(regplug.ShapeError) as caught:
        trained_like()(torch.zeros(shape))
    assert str(caught.value) == f"readout 'digits-gate': expected registers [B, 3, 5], got {list(shape)}."


@pytest.mark.parametrize("sizes", [(0, 5), (3, 0), (-1, 5)])
def test_gate_refuses_sizes_that_are_not_positive(sizes: tuple[int, int]) -> None:
    with pytest.raises(regplug.SpecError, match="expected a positive integer"):
        DigitsGate(*sizes)

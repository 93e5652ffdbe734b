"""The width that an entry states: it costs no torch, and is held to what the readout gives."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import EVERY, D, R
from torch import nn

import regplug
from regplug.entries import ReadoutEntry, load_reference
from regplug.spec import specify, specify_unmeasured

Python = Callable[..., subprocess.CompletedProcess[str]]
ENTRIES = {entry.name: entry for entry in regplug.default_registry().only("regplug").readout_entries()}
COMMAND = """
import sys
from regplug.cli import answer
for words in {commands!r}:
    sys.argv = ["regplug", *words]
    code = answer()
    print(code, *(name for name in ("torch", "torch._dynamo", "numpy") if name in sys.modules))
"""


def arguments(name: str) -> dict[str, Any]:
    return EVERY[f"regplug:{name}"][0]


def words_of(options: dict[str, Any]) -> list[str]:
    return [
        word for key, value in options.items() for word in ("-O", f"{key}={value}".replace("(", "[").replace(")", "]"))
    ]


def test_the_width_of_a_built_in_imports_no_torch(run_python: Python) -> None:
    sizes = ["--num-registers", str(R), "--hidden-dim", str(D)]
    commands = [["cond-dim", name, *sizes, *words_of(arguments(name))] for name in sorted(ENTRIES)]
    done = run_python(COMMAND.format(commands=commands))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1::2] == ["0"] * len(commands), done.stderr
    resolved = [regplug.resolve(name, num_registers=R, hidden_dim=D, **arguments(name)) for name in sorted(ENTRIES)]
    assert [int(line) for line in lines[::2]] == [spec.cond_dim for spec in resolved]


def test_what_it_refuses_it_refuses_in_the_same_words_without_torch(run_python: Python) -> None:
    for words, options in (
        (["mamba-reg", "--num-registers", "4", "--hidden-dim", "9"], {}),
        (
            ["compress-concat", "--num-registers", "4", "--hidden-dim", "9", "-O", "compressed_dim=0"],
            {"compressed_dim": 0},
        ),
        (["attention", "--num-registers", "4", "--hidden-dim", "16", "-O", "gelu=soft"], {"gelu": "soft"}),
        (["select-concat", "--num-registers", "4", "--hidden-dim", "9", "-O", "indices=[9]"], {"indices": [9]}),
        (["concat", "--num-registers", "4", "--hidden-dim", "9", "-O", "dim=3"], {"dim": 3}),
    ):
        done = run_python(COMMAND.format(commands=[["cond-dim", *words]]))
        assert done.stdout.split() == ["2"]
        with pytest.raises(regplug.SpecError) as refused:
            specify(ENTRIES[words[0]], int(words[2]), int(words[4]), options)
        assert done.stderr == f"error: {refused.value}\n"


@pytest.mark.parametrize("name", ENTRIES)
def test_a_built_in_states_its_width_for_what_its_constructor_takes(name: str) -> None:
    entry = ENTRIES[name]
    width, readout = (load_reference(name, reference or "") for reference in (entry.cond_dim, entry.build))
    taken = [dict(inspect.signature(one).parameters) for one in (width, readout)]
    assert [(one.name, one.default) for one in taken[0].values()] == [
        (one.name, one.default) for one in taken[1].values()
    ]
    hints = [inspect.get_annotations(one, eval_str=True) for one in (width, readout.__init__)]
    assert {word: hints[0][word] for word in taken[0]} == {word: hints[1][word] for word in taken[1]}


def test_a_spec_from_a_stated_width_is_measured_as_it_is_built() -> None:
    spec = specify_unmeasured(ENTRIES["concat"], 2, 3, {})
    assert (spec.cond_dim, spec.measured) == (6, False)
    assert spec.build()(torch.zeros(1, 2, 3)).shape == (1, 6)
    assert regplug.resolve("concat", num_registers=2, hidden_dim=3).measured


class Last(nn.Module):
    """Reads one register."""

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__()

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        """``[B, D]``."""
        return registers[:, -1]


def flat(num_registers: int, hidden_dim: int) -> int:
    """Right for one register alone."""
    return num_registers * hidden_dim


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (flat, "cond_dim: expected 3, as its forward gives, got 6 from the entry."),
        (lambda num_registers: 3.0, "cond_dim: expected a positive integer, got 3.0."),
        (lambda **words: None, "cond_dim: expected a positive integer, got None."),
        (lambda dim: dim, "missing 1 required positional argument: 'dim'"),
    ],
)
def test_a_stated_width_that_is_another_than_the_readouts_is_refused(width: Any, words: str) -> None:
    entry = ReadoutEntry("last", Last, cond_dim=width)
    with pytest.raises(regplug.SpecError) as refused:
        specify(entry, 2, 3, {})
    assert words in str(refused.value) or "got an unexpected keyword argument" in str(refused.value)
    if width is flat:
        assert specify(entry, 1, 3, {}).cond_dim == 3
        spec = specify_unmeasured(entry, 2, 3, {})
        with pytest.raises(regplug.SpecError, match="expected 3, as its forward gives, got 6"):
            spec.build()


def test_what_is_no_reference_is_refused_by_the_entry() -> None:
    with pytest.raises(regplug.SpecError, match="ReadoutEntry 'last': cond_dim: expected 'module:attr' or a callable"):
        ReadoutEntry("last", Last, cond_dim="not a reference")

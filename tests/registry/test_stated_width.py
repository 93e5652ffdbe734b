"""The width that an entry states: it needs no torch, and is compared with what the readout gives."""

from __future__ import annotations

import functools
import inspect
import json
import math
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.strategies import EVERY, D, R, spec_of
from torch import nn

import regplug
from regplug.registry.entries import ReadoutEntry
from regplug.registry.references import load_reference
from regplug.registry.spec import specify, specify_unmeasured
from regplug.registry.stored_values import plain

Python = Callable[..., subprocess.CompletedProcess[str]]
ENTRIES = {entry.full_name: entry for entry in regplug.default_registry().readout_entries() if entry.full_name in EVERY}
ODD = (None, 0, -1, 1, 2, 5, 1.0, 2.5, 1e-30, True, math.nan, math.inf, "3", "tanh", (), (3, 1), (1, 1), (9,))
COMMAND = """
import sys
from regplug.commands.main import answer
for words in {commands!r}:
    sys.argv = ["regplug", *words]
    code = answer()
    print(code, *(name for name in ("torch", "torch._dynamo", "numpy") if name in sys.modules))
"""


def words_of(options: dict[str, Any]) -> list[str]:
    return [word for key, value in options.items() for word in ("-O", f"{key}={json.dumps(plain(value))}")]


def test_every_strategy_here_states_its_width() -> None:
    assert set(ENTRIES) == set(EVERY)
    assert [name for name, entry in ENTRIES.items() if entry.cond_dim is None] == []


def test_a_stated_width_imports_no_torch(run_python: Python) -> None:
    sizes = ["--num-registers", str(R), "--hidden-dim", str(D)]
    commands = [["cond-dim", name, *sizes, *words_of(EVERY[name][0])] for name in sorted(ENTRIES)]
    done = run_python(COMMAND.format(commands=commands))
    assert done.returncode == 0, done.stderr
    # what comes before each exit status ends with the width; a join prints its parts first
    lines = [line.split() for line in done.stdout.splitlines()]
    ends = [index for index, line in enumerate(lines) if line[0] == "0"]
    assert [lines[index] for index in ends] == [["0"]] * len(commands), done.stderr
    widths = [spec_of(name).cond_dim for name in sorted(ENTRIES)]
    assert [int(lines[index - 1][-1]) for index in ends] == widths


def test_invalid_arguments_give_the_same_message_without_torch(run_python: Python) -> None:
    for words, options in (
        (["mamba-reg", "--num-registers", "4", "--hidden-dim", "9"], {}),
        (
            ["compress-concat", "--num-registers", "4", "--hidden-dim", "9", "-O", "compressed_dim=0"],
            {"compressed_dim": 0},
        ),
        (["attention", "--num-registers", "4", "--hidden-dim", "16", "-O", "gelu=soft"], {"gelu": "soft"}),
        (["select-concat", "--num-registers", "4", "--hidden-dim", "9", "-O", "indices=[9]"], {"indices": [9]}),
        (["concat", "--num-registers", "4", "--hidden-dim", "9", "-O", "dim=3"], {"dim": 3}),
        (["gem", "--num-registers", "4", "--hidden-dim", "9", "-O", "p=-1.0"], {"p": -1.0}),
        (["efficient-probing", "--num-registers", "4", "--hidden-dim", "9"], {}),
        (["concat-linear", "--num-registers", "4", "--hidden-dim", "9"], {}),
        (["digits-gate", "--num-registers", "4", "--hidden-dim", "9", "-O", "bias=1"], {"bias": 1}),
    ):
        done = run_python(COMMAND.format(commands=[["cond-dim", *words]]))
        assert done.stdout.split() == ["2"]
        with pytest.raises(regplug.SpecError) as refused:
            specify(regplug.default_registry().readout_entry(words[0]), int(words[2]), int(words[4]), options)
        assert done.stderr == f"error: {refused.value}\n"


def check_parameters(width: Callable[..., Any], readout: type[nn.Module]) -> None:
    """Both take the same words, with the same defaults and type hints."""
    taken = [dict(inspect.signature(one).parameters) for one in (width, readout)]
    assert [(one.name, one.default) for one in taken[0].values()] == [
        (one.name, one.default) for one in taken[1].values()
    ]
    hints = [inspect.get_annotations(one, eval_str=True) for one in (width, readout.__init__)]
    assert {word: hints[0][word] for word in taken[0]} == {word: hints[1][word] for word in taken[1]}


def built_width(readout: type[nn.Module], **arguments: Any) -> int | None:
    """Its ``out_dim``, which is what its forward gives if it is not None."""
    with torch.device("meta"):
        built = readout(**arguments)
        given = built(torch.zeros(2, arguments["num_registers"] or 3, arguments["hidden_dim"] or 1)).shape[1]
    assert built.out_dim in (None, given)
    return built.out_dim


def answer(ask: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What it gives, or the words in which it refuses."""
    try:
        return ask(**arguments)
    except (regplug.SpecError, TypeError) as error:  # Python's own, where an iterable is expected
        return str(error)


def check_answers(width: Callable[..., Any], readout: type[nn.Module], options: dict[str, Any]) -> None:
    """Both give the same width, or the same error, over a grid of sizes and for invalid arguments."""
    defaults = {word: one.default for word, one in inspect.signature(readout).parameters.items()}
    required = {word: value for word, value in options.items() if defaults[word] is inspect.Parameter.empty}
    sizes = [{"num_registers": registers, "hidden_dim": dim} for registers in (1, 2, 7) for dim in (1, 9, 24, 64)]
    grid = [{**some, **given} for some in sizes for given in (options, required)]
    grid += [{"num_registers": R, "hidden_dim": D, **options, word: odd} for word in defaults for odd in ODD]
    stated = [answer(width, arguments) for arguments in grid]
    for arguments, one in zip(grid, stated, strict=True):
        assert one == answer(functools.partial(built_width, readout), arguments), arguments
    assert {int, str} <= {type(one) for one in stated}


def both(name: str) -> tuple[Callable[..., Any], Any]:
    entry = ENTRIES[name]
    return load_reference(name, entry.cond_dim or ""), load_reference(name, entry.build)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_strategy_states_its_width_for_what_its_constructor_takes(name: str) -> None:
    check_parameters(*both(name))
    check_answers(*both(name), EVERY[name][0])


MEAN_STD = both("regplug-zoo:mean-std")


def unchecked(num_registers: int | None, hidden_dim: int, eps: float = 1e-6) -> int:
    """Right, but refuses nothing."""
    return 2 * hidden_dim


def too_narrow(num_registers: int | None, hidden_dim: int, eps: float = 1e-6) -> int:
    """Right for small registers alone."""
    return min(MEAN_STD[0](num_registers, hidden_dim, eps), 48)


def in_other_words(num_registers: int | None, hidden_dim: int, eps: float = 1e-6) -> int:
    """Right, and refuses the same, but says something else."""
    try:
        return MEAN_STD[0](num_registers, hidden_dim, eps)
    except regplug.SpecError as error:
        raise regplug.SpecError(str(error).replace("positive, finite", "positive")) from error


def another_default(num_registers: int | None, hidden_dim: int, eps: float = 1e-5) -> int:
    """Right, with another default."""
    return MEAN_STD[0](num_registers, hidden_dim, eps)


def without_hints(num_registers, hidden_dim, eps=1e-6):  # type: ignore[no-untyped-def]
    """Right, but the registry would let ``eps="1"`` through to it."""
    return MEAN_STD[0](num_registers, hidden_dim, eps)


@pytest.mark.parametrize("width", [unchecked, too_narrow, in_other_words])
def test_a_stated_width_that_differs_from_the_measured_one_is_found(width: Callable[..., Any]) -> None:
    check_parameters(width, MEAN_STD[1])
    with pytest.raises(AssertionError):
        check_answers(width, MEAN_STD[1], {})


@pytest.mark.parametrize("width", [another_default, without_hints])
def test_a_stated_width_with_other_arguments_than_the_constructor_is_found(width: Callable[..., Any]) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check_parameters(width, MEAN_STD[1])


def test_a_spec_from_a_stated_width_is_measured_as_it_is_built() -> None:
    spec = specify_unmeasured(ENTRIES["regplug:concat"], 2, 3, {})
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
        (flat, "cond_dim: expected 3, which its forward gives, got 6 from the entry."),
        (lambda num_registers: 3.0, "cond_dim: expected a positive integer, got 3.0."),
        (lambda **words: None, "cond_dim: expected a positive integer, got None."),
        (lambda dim: dim, "missing 1 required positional argument: 'dim'"),
    ],
)
def test_a_stated_width_that_differs_from_the_readouts_is_refused(width: Any, words: str) -> None:
    entry = ReadoutEntry("last", Last, cond_dim=width)
    with pytest.raises(regplug.SpecError) as refused:
        specify(entry, 2, 3, {})
    assert words in str(refused.value) or "got an unexpected keyword argument" in str(refused.value)
    if width is flat:
        assert specify(entry, 1, 3, {}).cond_dim == 3
        spec = specify_unmeasured(entry, 2, 3, {})
        with pytest.raises(regplug.SpecError, match="expected 3, which its forward gives, got 6"):
            spec.build()


def test_an_invalid_reference_is_refused_by_the_entry() -> None:
    with pytest.raises(regplug.SpecError, match="ReadoutEntry 'last': cond_dim: expected 'module:attr' or a callable"):
        ReadoutEntry("last", Last, cond_dim="not a reference")

"""What messages show of errors of other libraries: the reason, and the place in the user's file."""

import inspect
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import regplug
from regplug.backends.graph import export_graph
from regplug.backends.torchscript import TorchScriptBackend
from regplug.errors import MAX_MESSAGE, class_name, one_line
from regplug.torch_private import torchscript_without_warnings

X = torch.zeros(2, 4, 16)


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class TooManyArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return self.inner(registers, 1)  # here


class WrongOverload(nn.Module):
    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return torch.mean(registers, "a")  # here


class LooksAtNumbers(nn.Module):
    def forward(self, registers):
        if registers.sum() > 0:  # here
            return registers.mean(1)
        return registers.amax(1)


class Reshapes(nn.Module):
    def forward(self, registers):
        return registers.reshape(3, 5)  # here


class Raises(nn.Module):
    def forward(self, registers):
        raise ValueError("registers: expected 3, got 4")  # here


class OneBatch(nn.Module):
    def forward(self, registers):
        return registers.reshape(2, 64)


class MissingName(nn.Module):
    def forward(self, registers):
        return torch.no_such_name(registers)  # here


class Opens(nn.Module):
    def forward(self, registers):
        print(input("?"), file=registers)  # here
        return registers.mean(1)


def scripted(module):
    with torchscript_without_warnings():
        return torch.jit.script(module)


def exported(module):
    return torch.export.export(module, (X,), dynamic_shapes=({0: torch.export.Dim("B", min=1)},))


def compiled(module):
    return torch.compile(module, fullgraph=True, backend="eager")(X)


def run_scripted(module):
    return scripted(module)(X)


def report_of(way, cls):
    torch.compiler.reset()
    module = cls()
    try:
        way(module)
    except Exception as error:
        return one_line(error)
    raise AssertionError(f"{way.__name__} took {cls.__name__}")


def place_in(cls):
    """``test_reasons.py:LINE`` of the class's line that ends with "# here"."""
    lines, first = inspect.getsourcelines(cls)
    return f"test_reasons.py:{first + next(i for i, line in enumerate(lines) if '# here' in line)})"


@pytest.mark.parametrize(
    ("way", "cls", "reason"),
    [
        (scripted, TooManyArguments, "Expected at most 2 arguments but found 3 positional arguments"),
        (scripted, WrongOverload, "Expected a value of type 'Optional[List[int]]' for argument 'dim'"),
        (scripted, MissingName, "object has no attribute no_such_name"),
        (run_scripted, Raises, "ValueError: registers: expected 3, got 4"),
        (compiled, LooksAtNumbers, "Data-dependent branching"),
        (compiled, Reshapes, "shape '[3, 5]' is invalid for input of size 128"),
        (compiled, Raises, "ValueError('registers: expected 3, got 4')"),
        (compiled, MissingName, "AttributeError"),
        (compiled, Opens, "Dynamo does not know how to trace builtin operator `input`"),
        (exported, LooksAtNumbers, "Could not guard on data-dependent expression"),
    ],
)
def test_a_compilers_error_shows_its_reason_and_the_place_in_the_users_file(way, cls, reason):
    said = report_of(way, cls)
    assert reason in said
    assert said.endswith(place_in(cls))
    assert len(said.splitlines()) == 1
    assert len(said) <= MAX_MESSAGE


def test_where_no_line_is_known_the_reason_is_shown_alone():
    said = report_of(exported, OneBatch)
    assert "your code specialized it to be a constant (2)" in said
    assert "TORCH_LOGS" not in said


@pytest.mark.parametrize(("cls", "backend"), [(TooManyArguments, "torchscript"), (Reshapes, "onnx")])
def test_export_shows_the_same(cls, backend, tmp_path):
    from regplug.backends.interface import Source
    from regplug.format.manifest import InputSpec, TensorSpec

    given = InputSpec("registers", "float32", ("B", 4, 16), 1, None)
    source = Source(cls(), X, given, [TensorSpec("conditioning", "float32", ("B", 16))], {}, {})
    make = TorchScriptBackend().export if backend == "torchscript" else partial(export_graph, backend, source.module)
    with pytest.raises(regplug.ExportError) as refused:
        make(source)
    assert str(refused.value).endswith(place_in(cls))


class Strict(nn.Module):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__()
        what = f"Error in call to target 'acme.Pool':\nValueError('{hidden_dim} is odd')\nfull_key: head"
        raise ValueError(what)  # here


def test_a_constructors_error_has_all_its_lines_and_the_place():
    from regplug.registry.cond_dim import construct

    with pytest.raises(regplug.SpecError) as refused:
        construct("strategy 'strict'", Strict, {"num_registers": 4, "hidden_dim": 7})
    said = str(refused.value)
    assert "Error in call to target 'acme.Pool': ValueError('7 is odd') full_key: head" in said
    assert said.endswith(place_in(Strict))


def test_an_error_of_pydantic_names_the_field_and_no_link():
    import pydantic

    config = pydantic.create_model("Config", width=(int, ...))
    with pytest.raises(pydantic.ValidationError) as error:
        config(width="a")
    said = one_line(error.value)
    assert said.startswith("1 validation error for Config width Input should be a valid integer")
    assert "errors.pydantic.dev" not in said


def test_an_error_of_load_state_dict_names_the_keys():
    with pytest.raises(RuntimeError) as error:
        nn.Linear(3, 4).load_state_dict({"other": torch.zeros(3)})
    assert 'Missing key(s) in state_dict: "weight", "bias". Unexpected key(s) in state_dict: "other".' in one_line(
        error.value
    )


def test_an_error_without_a_message_shows_its_class_and_a_long_reason_keeps_both_ends():
    assert one_line(KeyError()) == class_name(KeyError()) == "KeyError"
    said = one_line(ValueError("begin " + "x" * 10_000 + " end"))
    assert said.startswith("begin x")
    assert said.endswith("x end")
    assert len(said) < MAX_MESSAGE - 100


def test_regplugs_own_message_gets_no_place():
    with pytest.raises(regplug.SpecError) as refused:
        regplug.resolve("mean", num_registers=0, hidden_dim=4)
    assert not re.search(r"\.py:\d+", one_line(refused.value))


@pytest.mark.parametrize(
    ("words", "variable"), [(["--traceback"], ""), ([], "1"), ([], "")], ids=["option", "variable", "neither"]
)
def test_the_full_traceback_is_printed_if_the_user_wants_it(words, variable, tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_TRACEBACK", variable)
    command = ["cond-dim", "compress-concat", "--num-registers", "4", "--hidden-dim", "24", "-O", "compressed_dim=-1"]
    done = subprocess.run(
        [sys.executable, "-m", "regplug", *command, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert ("Traceback (most recent call last)" in done.stderr) == bool(words or variable)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    if words or variable:
        assert "direct cause of the following" in done.stderr


def test_every_command_takes_traceback():
    import click

    from regplug.commands.main import group

    def commands(command, context):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            yield child
            if isinstance(child, click.Group):
                yield from commands(child, context)

    found = list(commands(group, click.Context(group)))
    assert len(found) > 12
    assert [one.name for one in found if not any("--traceback" in p.opts for p in one.params)] == []


def test_a_key_error_of_a_constructor_is_named_as_one():
    from regplug.registry.cond_dim import construct

    class ByKey(nn.Module):
        def __init__(self, mode: str) -> None:
            super().__init__()
            self.act = {"gelu": nn.GELU}[mode]()

    with pytest.raises(regplug.SpecError, match="got mode='relu': KeyError: 'relu'"):
        construct("strategy 'keyed'", ByKey, {"mode": "relu"})

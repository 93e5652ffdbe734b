"""Which programs run without libtorch, and where users read it."""

import subprocess

import pytest
import torch
from support.commands import run_command
from support.damage import edit_manifest
from torch import nn

import regplug
from regplug.backends.elf import called_functions
from regplug.backends.runtime import what_it_needs

pytestmark = pytest.mark.compiler


GRAPH = torch.export.export(nn.Identity(), (torch.ones(2),))


def library(folder, code):
    (folder / "f.c").write_text(code)
    path = folder / "f.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, folder / "f.c", "-lm"], check=True)
    return path.read_bytes()


def test_a_library_that_calls_only_what_the_runtime_has_needs_nothing(tmp_path):
    code = "int aoti_torch_clone(); double exp(double); double f(double x) { return exp(x) + aoti_torch_clone(); }"
    data = library(tmp_path, code)
    assert called_functions(data) == ["aoti_torch_clone"]
    assert what_it_needs(data, GRAPH) == "nothing"


def test_a_library_that_calls_another_function_needs_libtorch(tmp_path):
    code = "int aoti_torch_clone(); int aoti_torch_cpu_sort(); "
    code += "int f() { return aoti_torch_clone() + aoti_torch_cpu_sort(); }"
    data = library(tmp_path, code)
    assert called_functions(data) == ["aoti_torch_clone", "aoti_torch_cpu_sort"]
    assert what_it_needs(data, GRAPH) == "libtorch (aoti_torch_cpu_sort)"


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")  # of torch in its own code
def test_a_transposed_convolution_needs_libtorch(tmp_path):
    data = library(tmp_path, "int aoti_torch_clone(); int f() { return aoti_torch_clone(); }")
    graphs = [
        torch.export.export(part, (torch.ones(1, 2, 4),)) for part in (nn.Conv1d(2, 2, 2), nn.ConvTranspose1d(2, 2, 2))
    ]
    needed = "libtorch (transposed convolution)"
    assert [what_it_needs(data, graph) for graph in graphs] == ["nothing", needed]
    assert what_it_needs(data, graphs[1].run_decompositions()) == needed


def test_export_and_info_say_which_programs_run_without_libtorch(tmp_path):
    sizes = ["--num-registers", "4", "--hidden-dim", "24"]
    code, out, _ = run_command("export", "mean", *sizes, "--backend", "aotinductor", "-o", tmp_path / "b")
    assert code == 0
    line = "program 'aotinductor x86-64-v3': runs without libtorch"
    assert out.splitlines()[-1] == line
    file = "program.aotinductor.x86-64-v3.so"
    assert f"programs: aotinductor ({file}, runs without libtorch)\n" in run_command("info", tmp_path / "b")[1]
    [program] = regplug.verify(tmp_path / "b").manifest.programs
    assert program.properties["needs"] == "nothing"
    edit_manifest(tmp_path / "b", lambda values: values["programs"][0]["properties"].update(needs="libtorch (f)"))
    assert f"programs: aotinductor ({file}, needs libtorch (f))\n" in run_command("info", tmp_path / "b")[1]
    edit_manifest(tmp_path / "b", lambda values: values["programs"][0]["properties"].pop("needs"))
    assert f"programs: aotinductor ({file})\n" in run_command("info", tmp_path / "b")[1]  # of an older regplug

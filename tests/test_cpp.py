"""The C++ loader: built by a consumer's CMake project from the wheel, held to the same golden cases and messages."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from consumer import CONSUMER, LAYOUTS, SITE, build, built, check_golden, conditioner, installed, readout, run, tool
from damage import DAMAGES, PROGRAM, to_link

import regplug
from regplug.weights import save_tensors

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def programs():
    return built()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    regplug.export(*readout("compress-concat"), folder)
    return folder


@pytest.mark.parametrize("strategy", ["mean", "concat", "pool", "compress-concat"])
def test_every_readout_gives_its_golden_outputs_in_cpp_and_refuses_wrong_inputs(programs, tmp_path, strategy):
    spec, module = readout(strategy)
    regplug.export(spec, module, tmp_path / "b")
    report = check_golden(programs / "regplug_golden", tmp_path / "b")
    assert sorted(report["cases"]) == ["batch_0", "batch_1", "batch_2", "batch_64", "batch_7", "slice"]
    assert report["cond_dim"] == spec.cond_dim
    program = regplug.load(tmp_path / "b", program="torchscript")
    wrong = {"R": torch.zeros(2, 3, 24), "D": torch.zeros(2, 4, 48), "rank": torch.zeros(4, 24)}
    wrong["dtype"] = torch.zeros(2, 4, 24, dtype=torch.float64)
    for what, given in wrong.items():
        with pytest.raises(regplug.ShapeError) as error:
            program(given)
        assert report["refused"][what] == str(error.value)


@pytest.mark.parametrize("place", LAYOUTS)
def test_every_layouts_conditioner_gives_its_golden_pairs_in_cpp(programs, tmp_path, place):
    regplug.export(*conditioner(place), tmp_path / "b")
    report = check_golden(programs / "regplug_golden", tmp_path / "b")
    least = LAYOUTS[place].num_tokens or f"T, 24] with T >= {LAYOUTS[place].min_tokens}"
    assert str(least) in report["refused"]["T"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_in_cpp_too(programs, tmp_path, dtype):
    spec, module = readout("compress-concat")
    regplug.export(spec, module.to(dtype), tmp_path / "b")
    check_golden(programs / "regplug_golden", tmp_path / "b")


def test_the_golden_check_in_cpp_sees_a_wrong_value(programs, bundle, tmp_path):
    """A tolerance of zero is what no float32 program keeps; the check must then fail."""
    folder = shutil.copytree(bundle, tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for case in ("batch_2", "batch_7", "slice"):
        manifest["programs"][0]["cases"][case]["tolerance"] = 0.0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, out = run(programs / "regplug_golden", folder)
    report = json.loads(out)
    assert code == 1
    assert [case for case, found in report["cases"].items() if not found["ok"]] == ["batch_2", "batch_7", "slice"]


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_bundle_is_refused_in_cpp_with_the_same_words(programs, bundle, tmp_path, case):
    folder = shutil.copytree(bundle, tmp_path / "b")
    damage, message = DAMAGES[case]
    damage(folder)
    assert run(programs / "regplug_open", folder, "--torchscript") == (1, message.replace("DIR", str(folder)) + "\n")


def test_a_good_bundle_opens_in_cpp_pinned_and_through_links(programs, bundle, tmp_path):
    digest = regplug.verify(bundle).digest
    assert run(programs / "regplug_open", bundle, "--torchscript") == (0, "ok\n")
    assert run(programs / "regplug_open", bundle, "--pin", digest) == (0, "ok\n")
    code, out = run(programs / "regplug_open", bundle, "--torchscript", "--pin", "0" * 64)
    assert (code, out) == (1, f"bundle {bundle}: manifest.json: sha256 is {digest}, pinned is {'0' * 64}.\n")
    folder = shutil.copytree(bundle, tmp_path / "b")
    to_link(folder)
    assert run(programs / "regplug_open", folder, "--follow-links") == (0, "ok\n")


def test_an_archive_that_is_none_is_one_line_in_both_languages(programs, bundle, tmp_path):
    from damage import repin

    folder = shutil.copytree(bundle, tmp_path / "b")
    (folder / PROGRAM).write_bytes(b"PK\5\6" + bytes(18))
    repin(folder)
    code, out = run(programs / "regplug_open", folder, "--torchscript")
    assert code == 1
    assert out.startswith(f"bundle {folder}: ")
    assert out.count("\n") == 1
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(folder, program="torchscript")
    assert "\n" not in str(error.value)


def test_weights_are_swapped_whole_while_threads_run_and_others_are_refused(programs, bundle, tmp_path):
    torch.manual_seed(1)
    (tmp_path / "w.safetensors").write_bytes(save_tensors({"compress.weight": torch.randn(6, 24)}))
    code, out = run(programs / "regplug_reload", bundle, tmp_path / "w.safetensors")
    assert code == 0, out
    (tmp_path / "v.safetensors").write_bytes(save_tensors({"compress.weight": torch.randn(6, 23)}))
    code, out = run(programs / "regplug_reload", bundle, tmp_path / "v.safetensors")
    assert code == 1
    assert "tensor 'compress.weight': expected float32 [6, 24], got float32 [6, 23]" in out


def test_an_unchanged_module_of_nvsubquadratic_runs_in_cpp(programs, install_plugin, run_python, tmp_path):
    folder = install_plugin(
        "acme-nv",
        {},
        {"regplug_readouts_v1": {"nv-compress": "nvsubquadratic.modules.film:RegisterCompressConcat"}},
    )
    code = f"""
import torch, regplug
spec = regplug.resolve("nv-compress", num_registers=4, hidden_dim=24, compressed_dim=6)
regplug.export(spec, spec.build(), {str(tmp_path / "b")!r})
assert regplug.verify({str(tmp_path / "b")!r}).ok
print(type(regplug.load({str(tmp_path / "b")!r})).__module__, spec.cond_dim)
"""
    done = run_python(code, [folder])
    assert done.stdout.split() == ["nvsubquadratic.modules.film", "24"], done.stderr
    report = check_golden(programs / "regplug_golden", tmp_path / "b")
    assert report["cond_dim"] == 24


def test_the_wheel_unzipped_builds_as_cpp20_with_no_python_on_the_path(bundle, tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(pip, check=True)
    [wheel] = tmp_path.glob("regplug-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unzipped")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("c++", "g++", "gcc", "cc", "as", "ld", "ar", "ranlib", "ld.bfd", "nm", "strip", "objcopy", "sh"):
        if path := shutil.which(name):
            (tools / name).symlink_to(path)
    env = {"PATH": str(tools), "HOME": str(tmp_path)}
    assert shutil.which("python3", path=env["PATH"]) is None
    prefix = f"{tmp_path / 'unzipped' / 'regplug'};{SITE}"
    # the two include all headers; what is fast does not matter here, and takes twice as long to compile
    settings = {"CMAKE_CXX_STANDARD": 20, "CMAKE_PREFIX_PATH": prefix, "CMAKE_BUILD_TYPE": "Debug"}
    folder = build(tmp_path / "build", settings=settings, target="regplug_golden regplug-run", env=env)
    check_golden(folder / "regplug_golden", bundle)
    assert os.access(folder / "regplug-run" / "regplug-run", os.X_OK)


@pytest.mark.parametrize("kernels", ["", "default", "avx2", "avx512"])
def test_the_torch_free_parts_hold_and_name_atens_cpu_capability(programs, run_python, tmp_path, kernels):
    env = {"ATEN_CPU_CAPABILITY": kernels} if kernels else {}
    code, out = run(programs / "regplug_units", tmp_path, env={**os.environ, **env})
    assert code == 0, out
    assert out == run_python("import torch; print(torch.backends.cpu.get_cpu_capability())", env=env).stdout


def test_the_cmake_package_names_a_component_that_it_does_not_know(tmp_path):
    lines = ["cmake_minimum_required(VERSION 3.23)", "project(x LANGUAGES CXX)"]
    lines += ["find_package(regplug REQUIRED COMPONENTS onnx)"]
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines))
    configure = [tool("cmake"), "-S", tmp_path, "-B", tmp_path / "b", "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DCMAKE_PREFIX_PATH={installed()}"]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "onnx: no such component; known: aotinductor, torchscript." in " ".join(done.stderr.split())


def test_the_headers_that_need_torch_are_each_the_first_of_a_program():
    lines = [
        re.search(r"#include .+", (CONSUMER / f"{name}.cpp").read_text())[0] for name in ("golden", "open", "reload")
    ]
    alone = re.search(r"set\(torch_headers (.+)\)", (CONSUMER / "CMakeLists.txt").read_text())[1].split()
    assert sorted(lines) == [f"#include <regplug/{name}.h>" for name in sorted(alone)]

"""The C++ loader, built by a consumer's CMake project: the same golden cases and messages as in Python."""

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
from support import cpp_build
from support.battery import in_battery
from support.consumer import (
    CONSUMER,
    LAYOUTS,
    SITE,
    built,
    built_with,
    check_golden,
    conditioner,
    installed,
    open_damaged,
    readout,
    run,
    tool,
)
from support.damage import DAMAGES, PROGRAM, change_golden, edit_manifest, negate_outputs, to_link
from support.forked_python import ForkedPython
from support.strategies import BUILT_IN, EVERY, spec_of, trained

import regplug
from regplug.format.weights import load_tensors, save_tensors

pytestmark = pytest.mark.compiler

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def programs():
    return built()


@pytest.fixture(scope="module")
def forked():
    python = ForkedPython("import torch")
    yield python
    python.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    regplug.export(*readout("compress-concat"), folder)
    return folder


@pytest.mark.parametrize("strategy", ["mean", "concat", "pool", "compress-concat"])
def test_every_readout_gives_its_golden_outputs_in_cpp_and_rejects_wrong_inputs(programs, tmp_path, strategy):
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
def test_a_conditioner_of_every_layout_gives_its_golden_pairs_in_cpp(programs, tmp_path, place):
    regplug.export(*conditioner(place), tmp_path / "b")
    report = check_golden(programs / "regplug_golden", tmp_path / "b")
    least = LAYOUTS[place].num_tokens or f"T, 24] with T >= {LAYOUTS[place].min_tokens}"
    assert str(least) in report["refused"]["T"]


@pytest.mark.parametrize("strategy", [*BUILT_IN, "digits-gate", "conditioner"])
def test_autocast_in_the_host_does_not_change_outputs_and_stays_on(programs, tmp_path, strategy):
    known = {name.partition(":")[2]: name for name in EVERY}.get(strategy)
    made = (spec_of(known), trained(known)) if known else conditioner("prefix")
    regplug.export(*made, tmp_path / "b")
    assert check_golden(programs / "regplug_golden", tmp_path / "b", "--autocast")["autocast"] is True
    assert check_golden(programs / "regplug_golden", tmp_path / "b")["autocast"] is False


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_in_cpp(programs, tmp_path, dtype):
    spec, module = readout("compress-concat")
    regplug.export(spec, module.to(dtype), tmp_path / "b")
    check_golden(programs / "regplug_golden", tmp_path / "b")


def test_the_golden_check_in_cpp_detects_a_wrong_value(programs, bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "b")
    negate_outputs(folder, "batch_2", "batch_7", "slice")
    code, out = run(programs / "regplug_golden", folder)
    report = json.loads(out)
    assert code == 1
    assert [case for case, found in report["cases"].items() if not found["ok"]] == ["batch_2", "batch_7", "slice"]


def set_case(index, key, value):
    return lambda values: values["golden"]["cases"][index].update({key: value})


def set_result(name, key, value):
    return lambda values: values["programs"][0]["cases"][name].update({key: value})


def forge_tolerances(values):
    """A forged manifest that puts any program within its tolerance."""
    for case in [*values["golden"]["cases"], *values["programs"][0]["cases"].values()]:
        case["tolerance"] = 1e308


TOLERANCES = {
    "of a program": (
        set_result("batch_2", "tolerance", 1.5),
        "programs.0.cases.batch_2.tolerance: expected GIVEN, got 1.5",
    ),
    "errors of a program": (
        set_result("batch_7", "error", 0.25),
        "programs.0.cases.batch_7.error: expected at most GIVEN, got 0.25",
    ),
    "of every case": (forge_tolerances, "golden.cases.0.tolerance: expected 0.0, got 1e+308"),
    "an error of eager for no outputs": (
        set_case(0, "eager_error", 1e-300),
        "golden.cases.0.eager_error: expected at most 0.0, got 1e-300",
    ),
    "a different error of eager": (
        set_case(1, "eager_error", 0.0),
        "golden.cases.1.tolerance: expected ROUNDING, got GIVEN",
    ),
    "a huge error of eager": (
        set_case(1, "eager_error", 1e9),
        "golden.cases.1.eager_error: expected at most LARGEST, got 1000000000.0",
    ),
}


def shown(value):
    text = f"{value:.12g}"
    return text if set(text) & set(".e") else text + ".0"


def assert_both_reject(programs, folder, said):
    """C++ and Python give this message."""
    assert run(programs / "regplug_open", folder) == (1, f"bundle {folder}: {said}\n")
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(folder)
    assert str(error.value) == f"bundle {folder}: {said}"


@pytest.mark.parametrize("case", TOLERANCES)
def test_a_tolerance_that_does_not_follow_the_formula_is_rejected(programs, bundle, tmp_path, case):
    folder = shutil.copytree(bundle, tmp_path / "b")
    cases = {one["case"]: one for one in json.loads((folder / "manifest.json").read_bytes())["golden"]["cases"]}
    change, message = TOLERANCES[case]
    edit_manifest(folder, change)
    name = next((name for name in cases if name in message), "batch_1")
    tensors = load_tensors("golden", (folder / "golden.safetensors").read_bytes())
    scale = tensors["batch_1.output.conditioning"].abs().max().item()
    message = message.replace("GIVEN", shown(cases[name]["tolerance"]))
    message = message.replace("ROUNDING", shown(4 * 2**-23 * scale))
    message = message.replace("LARGEST", shown(16 * 2**-11.5 * scale))
    assert_both_reject(programs, folder, f"manifest.json: {message}.")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_golden_outputs_that_are_not_finite_are_rejected(programs, bundle, tmp_path, value):
    folder = shutil.copytree(bundle, tmp_path / "b")
    change_golden(folder, lambda tensors: tensors["batch_2.output.conditioning"][1].fill_(value))
    assert_both_reject(programs, folder, "golden.safetensors: case 'batch_2': expected finite outputs, got inf or nan.")


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 2**-52), (torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_the_formula_of_tolerances_holds_for_every_dtype(programs, tmp_path, dtype, eps):
    """The largest allowed error of eager is accepted with its tolerance, and no larger one."""
    spec, module = readout("pool")
    regplug.export(spec, module.to(dtype), tmp_path / "b", backends=[])
    tensors = load_tensors("golden", (tmp_path / "b" / "golden.safetensors").read_bytes())
    scale = tensors["batch_1.output.conditioning"].abs().max().item()
    most = scale * min(1 / 8, 16 * eps**0.5)

    def change(error):
        return lambda values: values["golden"]["cases"][1].update(
            eager_error=error, tolerance=4 * (error + eps * scale)
        )

    edit_manifest(tmp_path / "b", change(most))
    assert run(programs / "regplug_open", tmp_path / "b") == (0, "ok\n")
    edit_manifest(tmp_path / "b", change(most * (1 + 1e-6)))
    refused = shown(most * (1 + 1e-6))
    said = f"manifest.json: golden.cases.1.eager_error: expected at most {shown(most)}, got {refused}."
    assert_both_reject(programs, tmp_path / "b", said)


def test_a_manifest_with_eager_as_the_reference_has_no_error_of_eager(programs, bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "b")

    def to_eager(tensors):
        for name in tensors:
            tensors[name] = tensors[name].float()

    change_golden(folder, to_eager)
    tensors = load_tensors("golden", (folder / "golden.safetensors").read_bytes())

    def change(values, error=0.0):
        values["golden"]["truth"] = "eager"
        for case in values["golden"]["cases"]:
            outputs = tensors[f"{case['case']}.output.conditioning"]
            scale = outputs.abs().max().item() if outputs.numel() else 0.0
            case.update(eager_error=error, tolerance=1e-5 * scale)
            for program in values["programs"]:
                program["cases"][case["case"]] = {"error": 0.0, "tolerance": 1e-5 * scale}

    edit_manifest(folder, change)
    assert run(programs / "regplug_open", folder, "--torchscript") == (0, "ok\n")
    edit_manifest(folder, lambda values: change(values, 1e-9))
    said = "manifest.json: golden.cases.0.eager_error: expected at most 0.0, got 1e-09."
    assert_both_reject(programs, folder, said)


DENSE = "expected a dense tensor on the CPU, got "
OWN_KEY = "one with an extra dispatch key; use the tensor inside it."
VIEWS = {
    "negated": "one that is negated lazily; use resolve_neg().",
    "imaginary": "one that is negated lazily; use resolve_neg().",
    "complex": "one that is conjugated lazily; use resolve_conj().",
    "undefined": "no tensor.",
    "sparse": "another layout; use to_dense().",
    "mkldnn": "another layout; use to_dense().",
    "meta": "one on the meta device, which has no data.",
    "zeros": "one of zeros without memory; use clone().",
    "quantized": "a quantized one; use dequantize().",
    "nested": "a nested one; use to_padded_tensor().",
    "batched": OWN_KEY,
    "functional": OWN_KEY,
}
RUNS = {
    "negated": "",  # the right numbers
    "imaginary": "",
    "complex": "expected dtype float32, got complex64.",
    "undefined": "expected registers [B, 4, 24], got no tensor.",
    "sparse": "expected a dense tensor, got another layout.",
    "mkldnn": "expected a dense tensor, got another layout.",
    "meta": "expected device cpu, got meta.",
    "zeros": DENSE + VIEWS["zeros"],
    "quantized": "expected dtype float32, got qint8.",
    "nested": "expected a dense tensor, got a nested one.",
    "batched": DENSE + OWN_KEY,
    "functional": DENSE + OWN_KEY,
}
MOVED_FROM = "bundle: expected an open bundle, got one that was moved from."


def test_a_tensor_without_plain_memory_is_rejected_or_gives_the_right_numbers(programs, bundle):
    report = check_golden(programs / "regplug_golden", bundle)
    assert report["view_of"] == {name: f"tensor: {DENSE}{got}" for name, got in VIEWS.items()}
    assert report["run"] == {name: text and f"program 'torchscript': {text}" for name, text in RUNS.items()}
    assert report["moved_from"] == [MOVED_FROM] * 3
    far = report["to_tensor"].pop("far")
    assert far.startswith("tensor: ")
    assert "1152921504606846980 bytes" in far
    assert report["to_tensor"] == {
        "nothing": "tensor: expected a tensor, got none.",
        "backward": "tensor: expected strides >= 0, got [-1]; use Tensor::copy_of.",
        "short": "tensor: expected 16 bytes, got 4.",
    }


@pytest.fixture(scope="module")
def damaged(programs, bundle, tmp_path_factory):
    """The actual and the expected message for each damaged bundle."""
    return open_damaged(programs / "regplug_open", bundle, tmp_path_factory.mktemp("damaged"), "--torchscript")


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_bundle_is_rejected_in_cpp_with_the_same_message(damaged, case):
    got, expected = damaged[case]
    assert got == expected


def test_a_good_bundle_opens_in_cpp_pinned_and_through_links(programs, bundle, tmp_path):
    digest = regplug.verify(bundle).digest
    assert run(programs / "regplug_open", bundle, "--torchscript") == (0, "ok\n")
    assert run(programs / "regplug_open", bundle, "--pin", digest) == (0, "ok\n")
    code, out = run(programs / "regplug_open", bundle, "--torchscript", "--pin", "0" * 64)
    assert (code, out) == (1, f"bundle {bundle}: manifest.json: sha256 is {digest}, pinned is {'0' * 64}.\n")
    folder = shutil.copytree(bundle, tmp_path / "b")
    to_link(folder)
    assert run(programs / "regplug_open", folder, "--follow-links") == (0, "ok\n")


def test_an_invalid_archive_gives_a_message_of_one_line_in_both_languages(programs, bundle, tmp_path):
    from support.damage import repin

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


def test_a_reload_is_atomic_while_threads_run_and_wrong_weights_are_rejected(programs, bundle, tmp_path):
    torch.manual_seed(1)
    (tmp_path / "w.safetensors").write_bytes(save_tensors({"compress.weight": torch.randn(6, 24)}))
    code, out = run(programs / "regplug_reload", bundle, tmp_path / "w.safetensors")
    assert code == 0, out
    (tmp_path / "v.safetensors").write_bytes(save_tensors({"compress.weight": torch.randn(6, 23)}))
    code, out = run(programs / "regplug_reload", bundle, tmp_path / "v.safetensors")
    assert code == 1
    assert "tensor 'compress.weight': expected float32 [6, 24], got float32 [6, 23]" in out


def test_an_unmodified_module_of_nvsubquadratic_runs_in_cpp(programs, install_plugin, forked, tmp_path):
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
    done = forked.run(["-c", code], tmp_path, {**os.environ, "PYTHONPATH": str(folder)})
    assert done.stdout.split() == ["nvsubquadratic.modules.film", "24"], done.stderr
    report = check_golden(programs / "regplug_golden", tmp_path / "b")
    assert report["cond_dim"] == 24


@pytest.mark.torture
def test_the_unzipped_wheel_builds_as_cpp20_without_python_on_the_path(bundle, tmp_path):
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
    # these two include all headers; optimization does not matter here, and takes twice as long to compile
    settings = {"CMAKE_CXX_STANDARD": 20, "CMAKE_BUILD_TYPE": "Debug"}
    folder = built_with(settings, "regplug_golden regplug-run", prefix=prefix, env=env)
    check_golden(folder / "regplug_golden", bundle)
    assert os.access(folder / "regplug-run" / "regplug-run", os.X_OK)


@pytest.mark.parametrize("kernels", ["", "default", "avx2", "avx512"])
def test_the_unit_tests_pass_and_report_atens_cpu_capability(programs, forked, tmp_path, kernels):
    env = {"ATEN_CPU_CAPABILITY": kernels} if kernels else {}
    code, out = run(programs / "regplug_units", tmp_path, env={**os.environ, **env})
    assert code == 0, out
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    assert out == forked.run(["-c", code], tmp_path, {**os.environ, **env}).stdout


def test_the_unit_tests_pass_with_a_german_locale(programs, tmp_path):
    command = ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"]
    if shutil.which("localedef") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the system has no sources of locales")
    code, out = run(programs / "regplug_units", tmp_path, env={**os.environ, "LOCPATH": str(tmp_path)})
    assert code == 0, out


def test_the_cmake_package_names_an_unknown_component(tmp_path):
    lines = ["cmake_minimum_required(VERSION 3.23)", "project(x LANGUAGES CXX)"]
    lines += ["find_package(regplug REQUIRED COMPONENTS onnx)"]
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines))
    configure = [tool("cmake"), "-S", tmp_path, "-B", tmp_path / "b", "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DCMAKE_PREFIX_PATH={installed()}"]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "onnx: no such component; known: aotinductor, torchscript, runtime." in " ".join(done.stderr.split())


# headers that tests compile alone anyway, because a program begins with them
FIRST = {
    "aotinductor.h": ROOT / "regplug" / "share" / "regplug-run" / "main.cpp",
    "bundle.h": ROOT / "tests" / "commands" / "test_canary.py",
    "golden.h": CONSUMER / "torch_free_programs.cpp",
    "manifest.h": CONSUMER / "verdict.cpp",
    "safetensors.h": CONSUMER / "fuzz.cpp",
    "torchscript.h": CONSUMER / "torch_programs.cpp",
}
IN_BATTERY = {*FIRST, "torch_tensor.h"}  # which every program with torchscript.h includes
ALONE = sorted({path.name for path in (cpp_build.HEADERS / "regplug").glob("*.h")} - IN_BATTERY)


@pytest.mark.parametrize("header", FIRST)
def test_a_program_begins_with_the_public_header(header):
    assert re.findall("^#include (.*)", FIRST[header].read_text(), re.MULTILINE)[0] == f"<regplug/{header}>"


@pytest.mark.parametrize("header", [*ALONE, *in_battery(*sorted(IN_BATTERY))])
def test_a_public_header_compiles_alone(header):
    cpp_build.check_alone(f"regplug/{header}")

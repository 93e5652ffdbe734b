"""The C++ loader under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; nothing is suppressed."""

import json
import os
import subprocess

import pytest
import torch
from support.consumer import CONSUMER, built_with, conditioner, open_damaged, readout
from support.damage import DAMAGES

import regplug
from regplug.format.weights import save_tensors

pytestmark = pytest.mark.compiler

OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def sanitized(sanitizers, target="all", source=CONSUMER):
    flags = f"-fsanitize={sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O0"
    settings = {
        "CMAKE_CXX_STANDARD": 17,
        "CMAKE_CXX_FLAGS": flags,
        "CMAKE_BUILD_TYPE": "None",
        "WITHOUT_TORCHSCRIPT": "ON",
    }
    return built_with(settings, target, source)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    regplug.export(*readout("compress-concat"), folder / "one", backends=["torchscript", "aotinductor"])
    regplug.export(*conditioner("prefix"), folder / "film", backends=["aotinductor"])
    torch.manual_seed(1)
    spec = regplug.resolve("attention", num_registers=None, hidden_dim=24)
    regplug.export(spec, spec.build(), folder / "masked", backends=["aotinductor"], mask=True)
    (folder / "weights.safetensors").write_bytes(save_tensors({"compress.weight": torch.randn(6, 24)}))
    (folder / "in.safetensors").write_bytes(save_tensors({"registers": torch.randn(3, 4, 24)}))
    return folder


@pytest.fixture(scope="module")
def checked():
    """The programs with AddressSanitizer and UndefinedBehaviorSanitizer."""
    return sanitized("address,undefined")


def run(program, *arguments):
    """Exit status and output; a sanitizer's report fails the test."""
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **OPTIONS},
        check=False,
    )
    for word in ("Sanitizer", "runtime error"):
        assert word not in done.stderr, done.stderr[-6000:]
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", ["one", "film", "masked"])
def test_golden_cases_and_rejected_inputs_have_no_memory_error(checked, bundles, name):
    code, out = run(checked / "regplug_aoti_golden", bundles / name)
    assert code == 0, out


@pytest.mark.parametrize("name", ["units", "more_inputs"])
def test_the_unit_tests_have_no_memory_error(checked, short_path, name):
    code, out = run(checked / f"regplug_{name}", short_path)
    assert code == 0, out


@pytest.fixture(scope="module")
def damaged(checked, bundles, tmp_path_factory):
    """The actual and the expected message for each damaged bundle."""
    folder = tmp_path_factory.mktemp("damaged")
    return open_damaged(checked / "regplug_aoti_open", bundles / "one", folder, "--aotinductor", run=run)


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_bundle_is_rejected_without_a_report(damaged, case):
    got, expected = damaged[case]
    assert got == expected


def test_regplug_run_has_no_memory_error(checked, bundles, tmp_path):
    program = checked / "regplug_run"
    assert run(program, bundles / "one", bundles / "in.safetensors", tmp_path / "out.safetensors") == (0, "")
    assert run(program, bundles / "one", bundles / "weights.safetensors", tmp_path / "out.safetensors") == (1, "")


def test_results_and_moved_bundles_have_no_memory_error(checked, bundles):
    """Also bundles that live until the process ends."""
    code, out = run(checked / "regplug_aoti_life", bundles / "one", bundles / "one")
    assert code == 0
    assert json.loads(out)["outlives"]


def test_concurrent_runs_reloads_and_opens_leak_nothing(checked, bundles):
    code, out = run(checked / "regplug_aoti_reload", bundles / "one", bundles / "weights.safetensors", 20)
    assert code == 0, out


@pytest.mark.torture
def test_concurrent_runs_reloads_and_opens_do_not_race(bundles):
    program = sanitized("thread", "aoti_reload_alone") / "aoti_reload_alone"
    code, out = run(program, bundles / "one", bundles / "weights.safetensors", 20, bundles / "film")
    assert code == 0, out
    assert json.loads(out)["neither"] == 0


@pytest.mark.torture
def test_the_runtime_without_libtorch_has_no_memory_error(bundles, tmp_path):
    """Products, attention and convolution in a whole vision transformer, and what the other programs do."""
    programs = sanitized("address,undefined", "torch_free_programs", CONSUMER / "runtime")
    options = {"img_size": 28, "depth": 1, "embed_dim": 48, "num_heads": 2, "num_classes": 0}
    vit = regplug.attach("timm:vit_small_patch14_reg4_dinov2", "attention", model_options=options)
    regplug.export(vit.spec, vit, tmp_path / "vit", backends=["aotinductor"])
    for name in (bundles / "one", bundles / "film", tmp_path / "vit"):
        code, out = run(programs / "regplug_aoti_golden", name)
        assert code == 0, out
    folder = tmp_path / "damaged"
    folder.mkdir()
    damaged = open_damaged(programs / "regplug_aoti_open", bundles / "one", folder, "--aotinductor", run=run)
    assert [case for case, (got, expected) in damaged.items() if got != expected] == []
    code, out = run(programs / "regplug_aoti_life", bundles / "one", bundles / "one")
    assert code == 0
    assert json.loads(out)["outlives"]
    code, out = run(programs / "regplug_aoti_reload", bundles / "one", bundles / "weights.safetensors", 20)
    assert code == 0, out


@pytest.mark.torture
def test_concurrent_runs_and_reloads_without_libtorch_do_not_race(bundles):
    programs = sanitized("thread", "torch_free_programs", CONSUMER / "runtime")
    command = (programs / "regplug_aoti_reload", bundles / "one", bundles / "weights.safetensors", 20)
    code, out = run(*command, bundles / "film")
    assert code == 0, out
    assert json.loads(out)["neither"] == 0


PLANTED = {
    "address": "#include <vector>\nint main() { std::vector<int> v(3); volatile int i = 3; return v.data()[i]; }",
    "undefined": "int main(int n, char**) { volatile int i = 2147483647; return (i + n) != 0; }",
    "thread": "#include <thread>\nint n; int main() { std::thread t([] { ++n; }); ++n; t.join(); return n; }",
}


@pytest.mark.parametrize("sanitizer", PLANTED)
def test_each_sanitizer_reports_a_planted_error(tmp_path, sanitizer):
    (tmp_path / "fault.cpp").write_text(PLANTED[sanitizer])
    command = ["c++", f"-fsanitize={sanitizer}", "-pthread", "-o", tmp_path / "fault", tmp_path / "fault.cpp"]
    subprocess.run(command, check=True)
    with pytest.raises(AssertionError, match=r"Sanitizer|runtime error"):
        run(tmp_path / "fault")

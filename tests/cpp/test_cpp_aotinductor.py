"""The C++ loader of AOTInductor programs: golden cases, messages, weights, threads, and the program regplug-run."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from support.battery import in_battery
from support.consumer import (
    LAYOUTS,
    built,
    built_with,
    built_without_libtorch,
    check_golden,
    conditioner,
    installed,
    open_damaged,
    readout,
    run,
)
from support.damage import DAMAGES, WEIGHTS, edit_manifest, negate_outputs, repin, replace_weights, to_link

import regplug
from regplug.format.weights import load_tensors, save_tensors

pytestmark = pytest.mark.compiler

LIBRARY = "program.aotinductor.x86-64-v3.so"
BOTH = ["torchscript", "aotinductor"]
NO_CONTAINER = "AOTInductorModelContainerCreateWithDevice"


@pytest.fixture(scope="module", params=["libtorch", "runtime"])
def programs(request):
    """The C++ programs, over libtorch and without it."""
    return built() if request.param == "libtorch" else built_without_libtorch()


@pytest.fixture(scope="module")
def programs_with_libtorch():
    return built()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    regplug.export(*readout("compress-concat"), folder, backends=BOTH)
    return folder


def other_weights(path, seed=1):
    torch.manual_seed(seed)
    path.write_bytes(save_tensors({"compress.weight": torch.randn(6, 24)}))
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A bundle with another program."""
    folder = tmp_path_factory.mktemp("film") / "bundle"
    regplug.export(*conditioner("prefix"), folder, backends=["aotinductor"])
    return folder


def open_in_cpp(programs, folder, *arguments):
    return run(programs / "regplug_aoti_open", folder, "--aotinductor", *arguments)


@pytest.mark.parametrize("strategy", ["compress-concat", *in_battery("mean", "concat", "pool")])
def test_every_readout_gives_its_golden_outputs_and_rejects_wrong_inputs_as_python(programs, tmp_path, strategy):
    spec, module = readout(strategy)
    regplug.export(spec, module, tmp_path / "b", backends=["aotinductor"])
    report = check_golden(programs / "regplug_aoti_golden", tmp_path / "b")
    assert sorted(report["cases"]) == ["batch_0", "batch_1", "batch_2", "batch_64", "batch_7", "slice"]
    assert report["cond_dim"] == spec.cond_dim
    assert report["isa"] == "x86-64-v3"
    program = regplug.load(tmp_path / "b", program="aotinductor")
    wrong = {"R": torch.zeros(2, 3, 24), "D": torch.zeros(2, 4, 48), "rank": torch.zeros(4, 24)}
    wrong["dtype"] = torch.zeros(2, 4, 24, dtype=torch.float64)
    for what, given in wrong.items():
        with pytest.raises(regplug.ShapeError) as error:
            program(given)
        assert report["refused"][what] == str(error.value)
    for what in ("nothing", "null"):
        assert report["refused"][what] == "program 'aotinductor': expected registers [B, 4, 24], got no tensor."
    assert report["refused"]["call"] == f"bundle {tmp_path / 'b'}: holds a readout; use run."


@pytest.mark.parametrize("place", ["prefix", *in_battery(*(name for name in LAYOUTS if name != "prefix"))])
def test_a_conditioner_of_every_layout_gives_its_golden_pairs(programs, tmp_path, place):
    regplug.export(*conditioner(place), tmp_path / "b", backends=["aotinductor"])
    report = check_golden(programs / "regplug_aoti_golden", tmp_path / "b")
    least = LAYOUTS[place].num_tokens or f"T, 24] with T >= {LAYOUTS[place].min_tokens}"
    assert str(least) in report["refused"]["T"]


@pytest.mark.torture
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_run(programs, tmp_path, dtype):
    spec, module = readout("compress-concat")
    regplug.export(spec, module.to(dtype), tmp_path / "b", backends=["aotinductor"])
    check_golden(programs / "regplug_aoti_golden", tmp_path / "b")


def test_a_bundle_opened_after_another_was_closed_runs_its_own_code(programs, bundle, film):
    """The dynamic linker looks libraries up by path: with a reused descriptor it would find the first one."""
    check_golden(programs / "regplug_aoti_golden", bundle, film)
    check_golden(programs / "regplug_aoti_golden", film, bundle)


def test_the_golden_check_detects_a_wrong_value(programs, bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "b")
    negate_outputs(folder, "batch_2", "batch_7", "slice")
    code, out = run(programs / "regplug_aoti_golden", folder)
    assert code == 1
    cases = json.loads(out)["cases"]
    assert [case for case, found in cases.items() if not found["ok"]] == ["batch_2", "batch_7", "slice"]
    negate_outputs(folder, "batch_1")
    code, out = open_in_cpp(programs, folder)
    assert code == 1
    assert out.startswith(f"bundle {folder}: program 'aotinductor': case 'batch_1': error ")
    assert re.search(r" is above the tolerance \d.*e-0[67]\.\n$", out)


@pytest.fixture(scope="module")
def damaged(programs, bundle, tmp_path_factory):
    """The actual and the expected message for each damaged bundle."""
    return open_damaged(programs / "regplug_aoti_open", bundle, tmp_path_factory.mktemp("damaged"), "--aotinductor")


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_bundle_is_rejected_with_the_same_message(damaged, case):
    got, expected = damaged[case]
    assert got == expected


def set_property(folder, name, change):
    def edit(values):
        properties = values["programs"][1]["properties"]
        properties[name] = change(properties[name])

    edit_manifest(folder, edit)


def replace_library(folder, data):
    (folder / LIBRARY).write_bytes(data)
    repin(folder)


def compile_library(folder, code):
    """Replace the program with a library compiled from this code."""
    (folder / ".source.cpp").write_text(code)
    command = ["c++", "-shared", "-fPIC", "-o", folder / LIBRARY, folder / ".source.cpp"]
    subprocess.run(command, check=True, timeout=60)
    repin(folder)


def drop_program(folder):
    (folder / LIBRARY).unlink()

    def change(values):
        del values["programs"][1]
        del values["files"][LIBRARY]

    edit_manifest(folder, change)


def add_weight(folder):
    set_property(
        folder, "weights", lambda text: json.dumps({**json.loads(text), "more": ["float32", [1]]}, sort_keys=True)
    )
    replace_weights(folder, lambda state: {**state, "more": torch.zeros(1)})


MADE = f"made with torch {torch.__version__}"
OWN_DAMAGES = {
    "no such program": (drop_program, "program 'aotinductor': not in this bundle; known: torchscript."),
    "a CPU flag that no CPU has": (
        lambda f: set_property(f, "cpu_flags", lambda text: f"{text} xx_second xx_first"),
        "program 'aotinductor': expected a CPU with xx_first xx_second, got one without; export with --isa x86-64-v3.",
    ),
    "weights of a program that are not the bundle's": (
        lambda f: set_property(f, "weights", lambda text: text.replace("24", "23")),
        "weights.safetensors: tensor 'compress.weight': expected float32 [6, 23], got float32 [6, 24].",
    ),
    "weights of a program that are not JSON": (
        lambda f: set_property(f, "weights", lambda text: text[:-1]),
        f"{LIBRARY}: weights: expected the JSON text of {{name: [dtype, sizes]}}.",
    ),
    "weights of a program with a fractional size": (
        lambda f: set_property(f, "weights", lambda text: text.replace("24", "24.0")),
        f"{LIBRARY}: weights: expected the JSON text of {{name: [dtype, sizes]}}.",
    ),
    "a file that is not a library": (
        lambda f: replace_library(f, b"nothing"),
        f"{LIBRARY}: expected a shared library, got another file; {MADE}.",
    ),
    "a library with an undefined symbol": (
        lambda f: compile_library(f, 'extern "C" int aoti_torch_none(); int f() { return aoti_torch_none(); }'),
        f"{LIBRARY}: undefined symbol: aoti_torch_none; {MADE}.",
    ),
    "a library that is not a model library": (
        lambda f: compile_library(f, "int f() { return 0; }"),
        f"{LIBRARY}: expected a model library of AOTInductor, got one without {NO_CONTAINER}; {MADE}.",
    ),
    "one weight more than the library takes": (
        add_weight,
        f"{LIBRARY}: expected inputs 3 and outputs 1, got inputs 2 and outputs 1.",
    ),
}


# the runtime says what it lacks before the dynamic linker does
OVER_RUNTIME = {
    f"undefined symbol: aoti_torch_none; {MADE}.": "expected functions that regplug::runtime has, got aoti_torch_none; "
    f"a program with it needs libtorch; {MADE}.",
}


@pytest.mark.parametrize("case", OWN_DAMAGES)
def test_a_program_that_does_not_fit_is_rejected_by_name(programs, bundle, tmp_path, case):
    folder = shutil.copytree(bundle, tmp_path / "b")
    damage, message = OWN_DAMAGES[case]
    damage(folder)
    if programs == built_without_libtorch():
        message = message.replace(*next(iter(OVER_RUNTIME.items())))
    assert open_in_cpp(programs, folder) == (1, f"bundle {folder}: {message}\n")


PYTHON_REJECTS = [case for case in OWN_DAMAGES if "CPU" in case or "program" in case]


@pytest.mark.parametrize("case", PYTHON_REJECTS)
def test_python_rejects_such_a_program_with_the_same_message(bundle, tmp_path, case):
    folder = shutil.copytree(bundle, tmp_path / "b")
    damage, message = OWN_DAMAGES[case]
    damage(folder)
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(folder, program="aotinductor")
    assert str(error.value) == f"bundle {folder}: {message}"


def test_an_error_inside_the_program_is_one_line(programs, bundle, tmp_path):
    """Weights that fit the manifest and not the library, so that its calls into torch fail."""
    folder = shutil.copytree(bundle, tmp_path / "b")
    set_property(folder, "weights", lambda text: text.replace("float32", "float64"))
    replace_weights(folder, lambda state: {"compress.weight": state["compress.weight"].double()})
    code, out = open_in_cpp(programs, folder)
    assert code == 1
    assert out.startswith("program 'aotinductor': ")
    assert "same dtype" in out
    assert out.count("\n") == 1
    # the library prints its error to std::cerr, of which these programs have their own copy
    (tmp_path / "in.safetensors").write_bytes(save_tensors({"registers": torch.randn(3, 4, 24)}))
    code, _, err = regplug_run(programs, folder, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert code == 1
    assert err.endswith(f"\nerror: {out}")


def test_of_several_programs_the_best_for_this_cpu_runs(programs, bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "b")
    isas = {"least": "", "most": "fpu sse sse2 pni", "beyond": "fpu sse sse2 pni xx_flag xx_more"}

    def change(values):
        [record] = [one for one in values["programs"] if one["backend"] == "aotinductor"]
        values["programs"].remove(record)
        for isa, flags in isas.items():
            name = f"program.aotinductor.{isa}.so"
            shutil.copy(folder / LIBRARY, folder / name)
            properties = {**record["properties"], "isa": isa, "cpu_flags": flags}
            values["programs"].append({**record, "file": name, "properties": properties})
            values["files"][name] = values["files"][LIBRARY]
        del values["files"][LIBRARY]

    edit_manifest(folder, change)
    (folder / LIBRARY).unlink()
    assert check_golden(programs / "regplug_aoti_golden", folder)["isa"] == "most"

    def take_flags(values):
        for record in values["programs"]:
            if record["backend"] == "aotinductor":
                few = "most" in record["file"]
                record["properties"]["cpu_flags"] = "xx_flag xx_more" if few else "xx_more xx_a xx_b"

    edit_manifest(folder, take_flags)
    message = "expected a CPU with xx_flag xx_more, got one without; export with --isa x86-64-v3."
    assert open_in_cpp(programs, folder) == (1, f"bundle {folder}: program 'aotinductor': {message}\n")


def test_a_good_bundle_opens_pinned_and_through_links(programs, bundle, tmp_path):
    digest = regplug.verify(bundle).digest
    assert open_in_cpp(programs, bundle, "--pin", digest.upper()) == (0, "ok\n")
    code, out = open_in_cpp(programs, bundle, "--pin", "0" * 64)
    assert (code, out) == (1, f"bundle {bundle}: manifest.json: sha256 is {digest}, pinned is {'0' * 64}.\n")
    folder = shutil.copytree(bundle, tmp_path / "b")
    to_link(folder)
    assert open_in_cpp(programs, folder, "--follow-links") == (0, "ok\n")


def test_a_reload_is_atomic_while_threads_run_and_open_bundles(programs, bundle, film, tmp_path):
    weights = other_weights(tmp_path / "w.safetensors")
    code, out = run(programs / "regplug_aoti_reload", bundle, weights, 200, film)
    assert code == 0, out
    report = json.loads(out)
    assert report["neither"] == 0
    golden = f"weights {bundle}/golden.safetensors"
    assert report["refused"].startswith(f"{golden}: expected tensors [compress.weight], got [")


@pytest.mark.parametrize("change", ["shape", "strategy"])
def test_weights_that_do_not_fit_are_rejected_by_name(programs, bundle, tmp_path, change):
    path = tmp_path / "w.safetensors"
    metadata = {"strategy": "regplug:pool"} if change == "strategy" else None
    path.write_bytes(save_tensors({"compress.weight": torch.randn(6, 24 - (change == "shape"))}, metadata))
    code, out = run(programs / "regplug_aoti_reload", bundle, path, 1)
    assert code == 1
    message = {
        "shape": "tensor 'compress.weight': expected float32 [6, 24], got float32 [6, 23].",
        "strategy": 'strategy: expected "regplug:compress-concat", got "regplug:pool".',
    }[change]
    assert json.loads(out)["error"] == f"weights {path}: {message}"


def test_unaligned_weights_give_the_same_outputs(programs, bundle, tmp_path):
    """A header of an odd length misaligns every tensor."""
    folder = shutil.copytree(bundle, tmp_path / "b")
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = (length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" "
    (folder / WEIGHTS).write_bytes(header + data[8 + length :])
    repin(folder)
    reports = [check_golden(programs / "regplug_aoti_golden", path) for path in (bundle, folder)]
    assert reports[0]["cases"] == reports[1]["cases"]


RETURNS_ITS_OWN = '''
import torch
from torch import nn

class Returns(nn.Module):
    """Returns its weight for one sample, and a view of it for more."""

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden_dim))
        self.out_dim = hidden_dim

    def forward(self, registers):
        return self.weight.unsqueeze(0).expand(registers.shape[0], -1)
'''


@pytest.mark.torture
def test_a_module_that_returns_its_weight_gives_the_caller_a_copy(programs, install_plugin, run_python, tmp_path):
    folder = install_plugin(
        "acme-returns",
        {"acme_returns.py": RETURNS_ITS_OWN},
        {"regplug_readouts_v1": {"returns": "acme_returns:Returns"}},
    )
    code = f"""
import regplug
spec = regplug.resolve("returns", num_registers=4, hidden_dim=24)
regplug.export(spec, spec.build(), {str(tmp_path / "b")!r}, backends=["aotinductor"])
"""
    done = run_python(code, [folder])
    assert done.returncode == 0, done.stderr
    check_golden(programs / "regplug_aoti_golden", tmp_path / "b")


@pytest.mark.torture
def test_an_unmodified_module_of_nvsubquadratic_runs(programs, install_plugin, run_python, tmp_path):
    folder = install_plugin(
        "acme-nv-so",
        {},
        {"regplug_readouts_v1": {"nv-compress": "nvsubquadratic.modules.film:RegisterCompressConcat"}},
    )
    code = f"""
import regplug
spec = regplug.resolve("nv-compress", num_registers=4, hidden_dim=24, compressed_dim=6)
regplug.export(spec, spec.build(), {str(tmp_path / "b")!r}, backends=["aotinductor"])
"""
    done = run_python(code, [folder])
    assert done.returncode == 0, done.stderr
    assert check_golden(programs / "regplug_aoti_golden", tmp_path / "b")["cond_dim"] == 24


def regplug_run(programs, *arguments):
    command = [programs / "regplug-run" / "regplug-run", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_regplug_run_gives_the_same_outputs_as_python(programs, bundle, tmp_path):
    given = torch.randn(3, 4, 24)
    (tmp_path / "in.safetensors").write_bytes(save_tensors({"registers": given}))
    digest = regplug.verify(bundle).digest
    out = tmp_path / "out.safetensors"
    done = regplug_run(programs, bundle, tmp_path / "in.safetensors", out, "--digest", digest)
    assert done == (0, "", "")
    found = load_tensors("out", out.read_bytes())
    assert list(found) == ["conditioning"]
    torch.testing.assert_close(found["conditioning"], regplug.load(bundle)(given))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]


def test_regplug_run_writes_the_pairs_of_a_conditioner(programs, film, tmp_path):
    given = torch.randn(2, 9, 24)
    (tmp_path / "in.safetensors").write_bytes(save_tensors({"tokens": given}))
    done = regplug_run(programs, film, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert done == (0, "", "")
    found = load_tensors("out", (tmp_path / "out.safetensors").read_bytes())
    pairs = regplug.load(film)(given)
    assert sorted(found) == sorted(f"{word}_{i}" for i in range(len(pairs)) for word in ("gamma", "beta"))
    for i, (gamma, beta) in enumerate(pairs):
        torch.testing.assert_close(found[f"gamma_{i}"], gamma)
        torch.testing.assert_close(found[f"beta_{i}"], beta)


def test_regplug_run_leaves_the_output_file_unchanged_when_it_fails(programs, bundle, tmp_path):
    good = tmp_path / "in.safetensors"
    good.write_bytes(save_tensors({"registers": torch.randn(3, 4, 24)}))
    other = tmp_path / "other.safetensors"
    other.write_bytes(save_tensors({"registers": torch.randn(3, 5, 24)}))
    two = tmp_path / "two.safetensors"
    two.write_bytes(save_tensors({"registers": torch.randn(3, 4, 24), "more": torch.zeros(1)}))
    out = tmp_path / "out.safetensors"
    out.write_text("as it was")
    digest = regplug.verify(bundle).digest
    for arguments, message in [
        ((bundle, tmp_path / "none", out), f"{tmp_path / 'none'}: missing."),
        ((bundle, other, out), "program 'aotinductor': expected registers [B, 4, 24], got [3, 5, 24]."),
        ((bundle, two, out), f"{two}: expected tensors [registers], got [more, registers]."),
        ((tmp_path / "none", good, out), f"bundle {tmp_path / 'none'}: no such folder."),
        (
            (bundle, good, out, "--digest", "1" * 64),
            f"bundle {bundle}: manifest.json: sha256 is {digest}, pinned is {'1' * 64}.",
        ),
        ((bundle, good, tmp_path), f"{tmp_path}: not a regular file."),
    ]:
        assert regplug_run(programs, *arguments) == (1, "", f"error: {message}\n")
        assert out.read_text() == "as it was"
    for arguments in [(), (bundle, good), (bundle, good, out, "--what"), (bundle, good, out, "--digest")]:
        code, _, err = regplug_run(programs, *arguments)
        assert code == 2
        assert "usage: regplug-run" in err
    code, text, err = regplug_run(programs, "--help")
    assert (code, err) == (0, "")
    assert "--digest HEX" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["in.safetensors", "other.safetensors", "two.safetensors", "out.safetensors"]
    )


def test_a_full_disk_leaves_the_old_output_file(programs, bundle, tmp_path):
    (tmp_path / "in.safetensors").write_bytes(save_tensors({"registers": torch.randn(20000, 4, 24)}))
    out = tmp_path / "out.safetensors"
    out.write_text("as it was")
    program = programs / "regplug-run" / "regplug-run"
    # a file limit of 1 MiB makes a write fail as a full disk does; SIGXFSZ must not end the process
    script = 'ulimit -f 1024; exec "$@"'
    command = ["bash", "-c", script, "bash", program, bundle, tmp_path / "in.safetensors", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: {out}: File too large.\n")
    assert out.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]


@pytest.mark.torture
def test_regplug_run_builds_from_the_installed_package_without_settings(bundle, tmp_path):
    source = Path(installed().partition(";")[0]) / "share" / "regplug-run"
    folder = built_with({"CMAKE_PREFIX_PATH": ""}, source=source)
    code, text = run(folder / "regplug-run", "--help")
    assert code == 0
    assert os.access(folder / "regplug-run", os.X_OK)
    assert "BUNDLE" in text

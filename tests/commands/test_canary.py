"""An untrusted bundle: none of its code runs until the caller names a program.

Every program and file of the bundle leaves a trace when it runs. Each is first shown to do so.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.cpp_build import compiled
from support.damage import PROGRAM, edit_manifest, rename_strategy, repin

import regplug

ROOT = Path(regplug.__file__).resolve().parent
LIBRARY = "program.aotinductor.x86-64.so"
# modules and files that Python, pytest, pip or a shell would run, were their folder on the path
TRAPS = ["__init__.py", "conftest.py", "sitecustomize.py", "usercustomize.py", "evil_plugin.py"]
TRAPS += ["regplug.py", "torch.py", "json.py", "click.py", "pluggy.py", "safetensors.py", "model_signing.py"]
# the doctor imports each plugin in a process of its own, and these take seconds; regplug and its zoo are enough
HEAVY = [f"regplug-{name}" for name in ("digits", "nvsubquadratic", "onnx", "timm", "transformers")]
ENTRY_POINTS = "[regplug_v1]\nevil = evil_plugin\n[regplug_readouts_v1]\nevil = evil_plugin:Evil\n"

# runs the commands of each case in one process; an audit hook records the code of a bundle that Python is to run
WATCHED = """
import json, os, sys
cases, noted, bundle, inside = json.loads(sys.argv[1]), [], sys.argv[2], sys.argv[3] == "inside"
running = {"exec", "compile", "import", "ctypes.dlopen", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}

def note(event, given):
    if event == "pickle.find_class":
        noted.append(f"{event} {given}")
    elif event in running:
        words = [str(getattr(one, "co_filename", one)) for one in given]
        paths = [os.path.abspath(word) for word in words]
        if any(path.startswith((bundle + "/", "/proc/self/fd/")) and os.path.exists(path) for path in paths):
            noted.append(f"{event} {words[:2]}")

sys.addaudithook(note)
if not cases:
    exec(compile("1", bundle + "/.regplug.py", "exec"))
found = []
for bundle, commands in cases:
    if inside:
        os.chdir(bundle)
    import regplug
    from regplug.commands.main import answer
    codes = []
    for command in commands:
        sys.argv = ["regplug", *command]
        codes.append(answer())
    try:
        regplug.load(bundle)
        codes.append(0)
    except regplug.RegplugError:
        codes.append(1)
    found.append(codes)
print(json.dumps([found, noted]), file=sys.__stderr__)
"""


OPEN = """
#include <regplug/bundle.h>
#include <iostream>

int main(int count, char** given) {
  regplug::Options options;
  if (count > 2) options.pin = given[2];
  try {
    for (const char* backend : {"", "torchscript", "aotinductor"}) {
      std::cout << regplug::Bundle::open(given[1], options, backend).digest() << " ";
    }
  } catch (const regplug::Error& error) {
    std::cout << error.what();
  }
}
"""


class Writes(torch.nn.Module):
    """A TorchScript program that makes a file when it is called, and gives the right numbers."""

    def __init__(self, trace: str):
        super().__init__()
        self.trace = trace
        self.compress = torch.nn.Linear(24, 6, bias=False)

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        made = torch.from_file(self.trace, True, 4)  # an unused tensor would be optimized away
        return self.compress(registers).flatten(1) + made.sum()


class Pickled:
    """Makes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (exec, (f"open({self.trace!r}, 'w').close()",))


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return tmp_path_factory.mktemp("trace") / "trace"


@pytest.fixture(autouse=True)
def _no_trace_yet(trace):
    trace.unlink(missing_ok=True)


def library(folder, trace):
    """A shared library whose constructor makes a file."""
    source = folder / "evil.c"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) static void run(void) {{ fclose(fopen("{trace}", "w")); }}\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "evil.so", source], check=True)
    return (folder / "evil.so").read_bytes()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, trace):
    """A complete bundle; each of its programs leaves a trace."""
    folder = tmp_path_factory.mktemp("hostile")
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
    torch.manual_seed(0)
    regplug.export(spec, spec.build(), folder / "bundle")
    bundle = folder / "bundle"
    torch.jit.script(Writes(str(trace))).save(str(bundle / PROGRAM))
    (bundle / LIBRARY).write_bytes(library(folder, trace))
    (bundle / "program.onnx").write_bytes(pickled(trace))

    def add(values):
        [program] = values["programs"]
        weights = json.dumps({"compress.weight": ["float32", [6, 24]]})
        isa = {"isa": "x86-64", "cpu_flags": "fpu", "weights": weights}
        values["programs"].append({**program, "backend": "aotinductor", "file": LIBRARY, "properties": isa})
        values["programs"].append({**program, "backend": "onnx", "file": "program.onnx"})
        values["files"] |= {LIBRARY: None, "program.onnx": None}

    edit_manifest(bundle, add)
    repin(bundle)
    for name in (".regplug.py", ".evil.pth", ".pth", ".env", ".bashrc"):
        (bundle / name).write_text(trap(trace))
    return bundle


def trap(trace):
    return f"import sys; open({str(trace)!r}, 'a').write(repr(sys.argv))\n"


def pickled(trace):
    data = io.BytesIO()
    torch.save(Pickled(str(trace)), data)
    return data.getvalue()


def with_traps(bundle, trace):
    for name in TRAPS:
        (bundle / name).write_text(trap(trace))
    (bundle / "evil.pth").write_text(trap(trace))
    for folder in ("evil-1.0.dist-info", "regplug-9.dist-info"):
        (bundle / folder).mkdir()
        (bundle / folder / "entry_points.txt").write_text(ENTRY_POINTS)
        (bundle / folder / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")


def with_pickles(bundle, trace):
    for name in ("weights.safetensors", "golden.safetensors"):
        (bundle / name).write_bytes(pickled(trace))
    repin(bundle)


def with_import_paths(bundle, trace):
    def change(values):
        rename_strategy("os:system")(values)
        values["provenance"]["packages"]["os"] = "1.0"
        values["options"] = {"command": f"touch {trace}"}

    edit_manifest(bundle, change)


def with_backends_that_are_imports(bundle, trace):
    (bundle / PROGRAM).rename(bundle / "program.subprocess.pt")

    def change(values):
        values["programs"][0] |= {"backend": "subprocess:run", "file": "program.subprocess.pt"}
        values["files"]["program.subprocess.pt"] = values["files"].pop(PROGRAM)

    edit_manifest(bundle, change)


# how the hostile bundle is changed, and the exit code of reading it whole; the traps come before anything is imported
VARIANTS = {
    "files that Python runs": (with_traps, 0),
    "hostile programs": (lambda bundle, trace: None, 0),
    "pickles for weights": (with_pickles, 1),
    "a strategy that is an import path": (with_import_paths, 1),
    "a backend that is an import path": (with_backends_that_are_imports, 1),
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    key = ec.generate_private_key(ec.SECP256R1())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "pub.pem").write_bytes(public)
    return folder


def watched(cases, bundle, cwd, inside=False):
    """Run each case's commands and ``load`` in one process; gives exit codes, and the code of bundles that ran."""
    # -c puts the working directory on the path, as the command itself does not
    start = "import sys; sys.path[:] = [one for one in sys.path if one]; exec(sys.argv.pop(1))"
    where = "inside" if inside else "next to it"
    given = [sys.executable, "-c", start, WATCHED, json.dumps(cases), str(bundle), where]
    done = subprocess.run(given, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def test_a_torchscript_program_that_is_named_leaves_its_trace(hostile, trace):
    assert not trace.exists()
    regplug.load(hostile, program="torchscript")
    assert trace.exists()


def test_a_library_that_is_named_leaves_its_trace(hostile, trace):
    with pytest.raises(regplug.BundleError):  # it is no model: but its constructor has run
        regplug.load(hostile, program="aotinductor")
    assert trace.exists()


def test_a_pickle_leaves_its_trace_where_it_is_unpickled(hostile, trace):
    torch.load(hostile / "program.onnx", weights_only=False)
    assert trace.exists()


def test_a_trap_leaves_its_trace_where_the_folder_is_on_the_path(hostile, trace, tmp_path):
    bundle = shutil.copytree(hostile, tmp_path / "bundle")
    with_traps(bundle, trace)
    subprocess.run([sys.executable, "-c", "import evil_plugin"], cwd=bundle, check=True)
    assert trace.exists()


def test_the_audit_hook_sees_code_of_the_folder(hostile, tmp_path):
    _, noted = watched([], hostile, tmp_path)
    assert [line.split()[0] for line in noted] == ["compile", "exec"]


@pytest.mark.parametrize("inside", [False, True], ids=["next to it", "inside it"])
def test_reading_runs_nothing(hostile, trace, keys, tmp_path, inside):
    key, public = str(keys / "key.pem"), str(keys / "pub.pem")
    cases = []
    for variant, (change, _) in VARIANTS.items():
        bundle = shutil.copytree(hostile, tmp_path / variant)
        change(bundle, trace)
        commands = [
            ["list"],
            ["info", str(bundle)],
            ["info", str(bundle / "weights.safetensors")],
            ["verify", str(bundle)],
            ["sign", str(bundle), "--key", key],
            ["verify", str(bundle), "--public-key", public],
        ]
        cases.append((str(bundle), commands))
    first = cases[0][0]
    found, noted = watched(cases, first, first if inside else tmp_path, inside)
    assert noted == []
    assert not trace.exists()
    for (variant, (_, expected)), codes in zip(VARIANTS.items(), found, strict=True):
        listed, info, _, verified, _, _, loaded = codes
        assert (listed, verified, loaded) == (0, expected, bool(expected)), variant
        if not expected:
            assert codes == [0] * len(codes), variant
        assert info in (0, expected), variant


@pytest.mark.slow
def test_the_command_and_the_doctor_run_nothing_of_the_folder_that_they_are_called_in(hostile, trace, tmp_path):
    bundle = shutil.copytree(hostile, tmp_path / "bundle")
    with_traps(bundle, trace)
    tools = Path(sys.executable).parent
    variables = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "REGPLUG_DISABLE": ",".join(HEAVY)}
    for command, code in ((["list"], 0), (["info", "."], 0), (["verify", "."], 0), (["doctor"], None)):
        done = subprocess.run(
            ["regplug", *command], cwd=bundle, env=variables, capture_output=True, text=True, check=False
        )
        assert code in (done.returncode, None), done.stderr
        assert "Traceback" not in done.stderr
        assert not trace.exists(), command


@pytest.fixture(scope="module")
def open_in_cpp(tmp_path_factory):
    """Opens a bundle without a program and with each, from inside its folder; gives what it prints."""
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "open.cpp").write_text(OPEN)
    program = compiled(folder / "open.cpp", "-O0")

    def run(bundle, *arguments):
        command = [program, bundle, *arguments]
        return subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=True).stdout

    return run


@pytest.mark.compiler
def test_the_cpp_reader_runs_nothing_even_of_the_program_that_it_is_to_keep(open_in_cpp, hostile, trace):
    assert open_in_cpp(hostile).split() == [regplug.verify(hostile).digest] * 3
    assert not trace.exists()


@pytest.mark.compiler
def test_a_pin_lets_one_bundle_through_and_a_malformed_one_is_the_same_line_in_both_languages(open_in_cpp, hostile):
    digest = regplug.verify(hostile).digest
    assert open_in_cpp(hostile, digest.upper()).split() == [digest] * 3
    for pin in ("0" * 64, "abc", "0" * 63 + "g", "0" * 65, "a'b\n"):
        with pytest.raises(regplug.RegplugError) as refused:
            regplug.load(hostile, digest=pin)
        assert str(refused.value) == open_in_cpp(hostile, pin)
        assert isinstance(refused.value, regplug.BundleError) == (pin == "0" * 64)

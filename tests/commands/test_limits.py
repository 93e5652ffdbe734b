"""Too little memory, address space, file size or descriptors: one line and the documented exception."""

import errno
import os
import resource
import subprocess
import sys

import pytest

import regplug
from regplug.errors import is_out_of_memory

SIZES = ["--num-registers", "3", "--hidden-dim", "7"]
MB = 1_000_000
# under a limit of file sizes Python leaves truncated bytecode, which breaks the next process
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits") / "b"
    spec = regplug.resolve("mean", num_registers=3, hidden_dim=7)
    regplug.export(spec, spec.build(), folder)
    return folder


def limited(kind, value, *command):
    def limit():
        resource.setrlimit(kind, (value, value))

    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, preexec_fn=limit, check=False, timeout=300
    )


# the first is too little to map torch's libraries; with the others, their own start runs out, which ends a process
@pytest.mark.parametrize(
    ("command", "space"), [(["verify"], 200), (["export", "mean", *SIZES, "-o"], 410), (["info", "mean"], 480)]
)
def test_too_little_address_space_for_torch_is_one_line_about_memory(command, space, bundle, tmp_path):
    words = [*command, *{"verify": [bundle], "export": [tmp_path / "new"]}.get(command[0], [])]
    done = limited(resource.RLIMIT_AS, space * MB, "-m", "regplug", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: memory: expected more of it, got none; see `ulimit -v`, or use a larger machine.\n"
    assert not (tmp_path / "new").exists()


LOADING = """
import resource, sys
import regplug, torch
from regplug.backends import model_library
kind, said = getattr(resource, sys.argv[2]), []
before = resource.getrlimit(kind)
for value in sys.argv[3].split():
    resource.setrlimit(kind, (int(value), before[1]))
    try:
        if sys.argv[4] == "load":
            regplug.load(sys.argv[1])
        else:
            model_library.open_model_library("bundle b: program.so", b"x" * 5000)
    except regplug.BundleError as error:
        said.append(str(error))
resource.setrlimit(kind, before)  # what is printed goes into a file, too
print(*said, sep="\\n")
"""


@pytest.mark.parametrize(
    ("kind", "values", "what", "said"),
    [
        ("RLIMIT_NOFILE", "4", "load", "Too many open files."),
        ("RLIMIT_FSIZE", "1000 0", "program", "bundle b: program.so: in memory: File too large."),
    ],
)
def test_loading_under_a_limit_raises_a_bundle_error(with_torch, bundle, kind, values, what, said):
    words = ["-c", LOADING, str(bundle), kind, values, what]
    done = with_torch.run(words, bundle.parent, {**os.environ, **NO_BYTECODE})
    lines = done.stdout.splitlines()
    assert len(lines) == len(values.split()), done.stderr
    assert all(line.endswith(said) for line in lines), done.stdout


@pytest.mark.compiler
def test_a_compiler_that_may_not_write_is_an_export_error(tmp_path):
    script = (
        "import resource, regplug, torch, sys\n"
        "spec = regplug.resolve('mean', num_registers=3, hidden_dim=7)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n    regplug.export(spec, spec.build(), sys.argv[1], backends=['aotinductor'])\n"
        "except regplug.ExportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "b")], capture_output=True, text=True, check=False,
        env={**os.environ, "REGPLUG_CACHE_DIR": str(tmp_path / "empty"), **NO_BYTECODE},
    )  # fmt: skip
    assert "program 'aotinductor': x86-64-v3: the compiler could not run: [Errno 27] File too large" in done.stdout
    assert not (tmp_path / "b").exists()


def test_a_lack_of_memory_is_known_through_what_was_raised_from_it():
    def chained(cause):
        try:
            raise regplug.SpecError("the constructor refuses") from cause
        except regplug.SpecError as error:
            return error

    assert is_out_of_memory(chained(MemoryError()))
    assert is_out_of_memory(chained(RuntimeError("std::bad_alloc")))
    assert is_out_of_memory(chained(OSError(errno.ENOMEM, "Cannot allocate memory")))
    assert is_out_of_memory(ImportError("libtorch_cpu.so: failed to map segment from shared object"))
    # a hostile bundle's sizes, and a tensor too large for any machine, have their own errors
    assert not is_out_of_memory(chained(MemoryError("expected to take at most 8 bytes, got more")))
    assert not is_out_of_memory(chained(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")))
    assert not is_out_of_memory(chained(ValueError("heads must be even")))


def test_verify_without_a_compiler_says_so_and_passes_programs_that_need_none(with_torch, bundle, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    environment |= {"PATH": str(tmp_path), "REGPLUG_CACHE_DIR": str(tmp_path / "empty")}
    done = with_torch.run(["-m", "regplug", "verify", str(bundle), "--programs"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert "not applicable" in done.stdout
    assert "no C++ compiler; programs need none to run" in done.stdout + done.stderr

"""Programs: wrong results are refused, exceptions are translated, and files hold only what they should."""

import copy
import io
import json
import shutil
import struct
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from support.consumer import built, readout, run
from support.damage import repin
from support.plugins import installed_with
from support.readouts import SIZES
from torch import nn

import regplug
from regplug.backends.elf import check_library
from regplug.backends.interface import ExportBackend, Program, flatten
from regplug.backends.torchscript import check_archive
from regplug.bundle.machine_paths import check_machine_paths
from regplug.errors import BundleError, ExportError
from regplug.format.weights import save_tensors

SCRIPT, LIBRARY = "program.torchscript.pt", "program.aotinductor.x86-64-v3.so"
BOTH = ["torchscript", "aotinductor"]


class Scaled(nn.Module):
    """A readout whose option decides what its program computes, with the same weights."""

    def __init__(self, hidden_dim: int, factor: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, hidden_dim))
        self.factor = factor

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return registers.mean(1) * self.scale * self.factor


class Hungry(Scaled):
    """Wants more memory than there is."""

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return registers.mean(1) * self.scale + torch.zeros([1 << 58]).sum()


class Throwing(ExportBackend):
    """Runs the module that it exported, and raises what a test sets."""

    raises: BaseException | None = None
    at = ""
    module: nn.Module

    def export(self, source):
        type(self).module = source.module
        return [Program("program.throwing", b"bytes")]

    def open(self, owner, program, weights):
        self.throw("open")
        module = copy.deepcopy(self.module)
        module.load_state_dict(weights)
        return lambda given: self.run(module, given)

    def run(self, module, given):
        self.throw("run")
        return flatten(module(given))

    def throw(self, here):
        if self.raises is not None and self.at == here:
            raise self.raises


class Panic(BaseException):
    """What extensions written in Rust raise."""


@pytest.fixture(scope="module")
def registry():
    return installed_with(regplug.ReadoutEntry("scaled", Scaled), regplug.ExportBackendEntry("throwing", Throwing))


@pytest.fixture(scope="module")
def scaled(tmp_path_factory, registry):
    """Two bundles with the same weights, whose programs compute different things."""
    folder = tmp_path_factory.mktemp("scaled")
    for name, factor, backends in (("once", 1.0, BOTH), ("twice", 2.0, ["torchscript"])):
        spec = registry.resolve("scaled", **SIZES, factor=factor)
        regplug.export(spec, spec.build(), folder / name, backends=[*backends, "onnx"], registry=registry)
    # a library with as many inputs and outputs, which other tests compile, too
    spec = regplug.resolve("pool", **SIZES)
    regplug.export(spec, spec.build(), folder / "pool", backends=["aotinductor"])
    shutil.copyfile(folder / "pool" / LIBRARY, folder / "twice" / LIBRARY)
    return folder


@pytest.fixture(scope="module")
def swapped(scaled):
    """The first bundle with the programs of the second, and all digests right."""
    folder = shutil.copytree(scaled / "once", scaled / "swapped")
    for program in (SCRIPT, LIBRARY, "program.onnx"):
        shutil.copyfile(scaled / "twice" / program, folder / program)
    repin(folder)
    return folder


# ---- the golden case is run before load returns


@pytest.mark.compiler
@pytest.mark.parametrize("backend", [*BOTH, "onnx"])
def test_a_program_with_wrong_results_is_refused(swapped, backend, registry):
    with pytest.raises(BundleError, match=rf"swapped: program '{backend}': case 'batch_1': error \S+ is above"):
        regplug.load(swapped, program=backend, registry=registry)
    with pytest.raises(BundleError, match="case 'batch_1': error"):
        regplug.verify(swapped, programs=True, registry=registry)


@pytest.mark.compiler
@pytest.mark.parametrize("program", ["regplug_open", "regplug_aoti_open"])
def test_a_program_with_wrong_results_is_refused_in_cpp(swapped, program):
    kinds = BOTH if program == "regplug_open" else BOTH[1:]
    for kind in kinds:
        code, out = run(built() / program, swapped, f"--{kind}")
        assert code == 1
        assert out.startswith(f"bundle {swapped}: program '{kind}': case 'batch_1': error ")


@pytest.mark.compiler
def test_regplug_run_writes_nothing_for_a_program_with_wrong_results(swapped, tmp_path):
    (tmp_path / "in.safetensors").write_bytes(save_tensors({"registers": torch.ones(1, 4, 24)}))
    command = [built() / "regplug-run" / "regplug-run", swapped, tmp_path / "in.safetensors", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "case 'batch_1': error" in done.stderr
    assert not (tmp_path / "out").exists()


# ---- exceptions


@pytest.mark.parametrize("at", ["open", "run"])
@pytest.mark.parametrize(
    "raised",
    [
        SystemExit(0),
        GeneratorExit(),
        MemoryError("all of it"),
        RecursionError("deep"),
        type("Panic", (BaseException,), {})(),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_any_exception_of_a_program_is_a_bundle_error_on_one_line(tmp_path, registry, monkeypatch, at, raised):
    spec = registry.resolve("scaled", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "b", backends=["throwing"], registry=registry)
    monkeypatch.setattr(Throwing, "raises", raised)
    monkeypatch.setattr(Throwing, "at", at)
    with pytest.raises(BundleError, match=r"program.throwing: |program 'throwing': ") as error:
        regplug.load(tmp_path / "b", program="throwing", registry=registry)
    assert "\n" not in str(error.value)
    with pytest.raises(ExportError):
        regplug.export(spec, spec.build(), tmp_path / "c", backends=["throwing"], registry=registry)
    assert not (tmp_path / "c").exists()


def test_an_interrupt_stays_an_interrupt(tmp_path, registry, monkeypatch):
    spec = registry.resolve("scaled", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "b", backends=["throwing"], registry=registry)
    monkeypatch.setattr(Throwing, "raises", KeyboardInterrupt())
    for at in ("open", "run"):
        monkeypatch.setattr(Throwing, "at", at)
        with pytest.raises(KeyboardInterrupt):
            regplug.load(tmp_path / "b", program="throwing", registry=registry)


@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_program_that_allocates_too_much_is_an_error_in_both_languages(scaled, tmp_path, registry):
    folder = shutil.copytree(scaled / "once", tmp_path / "b")
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(Hungry(24).eval()), archive)
    (folder / SCRIPT).write_bytes(archive.getvalue())
    repin(folder)
    with pytest.raises(BundleError, match=r"program 'torchscript': .*") as error:
        regplug.load(folder, program="torchscript", registry=registry)
    assert "\n" not in str(error.value)
    code, out = run(built() / "regplug_open", folder, "--torchscript")
    assert code == 1
    assert out.count("\n") == 1
    assert "program 'torchscript': " in out


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("thrown", "message"),
    [
        ("42", "expected a std::exception, got another type."),
        ("std::bad_alloc()", "expected enough memory, got none."),
        (r'std::runtime_error("one\ntwo")', "one"),
    ],
)
def test_an_exception_of_a_model_library_is_an_error_in_cpp(scaled, tmp_path, thrown, message):
    folder = shutil.copytree(scaled / "once", tmp_path / "b")
    names = [
        "ContainerGetNumInputs",
        "ContainerGetNumOutputs",
        "ContainerGetNumConstants",
        "ContainerRunSingleThreaded",
        "ContainerDelete",
    ]
    functions = "".join(f"int AOTInductorModel{name}() {{ return 0; }}\n" for name in names)
    functions += f"int AOTInductorModelContainerCreateWithDevice() {{ throw {thrown}; }}\n"
    code = f'#include <new>\n#include <stdexcept>\nextern "C" {{\n{functions}}}\n'
    (tmp_path / "library.cpp").write_text(code)
    subprocess.run(["c++", "-shared", "-fPIC", "-o", folder / LIBRARY, tmp_path / "library.cpp"], check=True)
    repin(folder)
    assert run(built() / "regplug_aoti_open", folder, "--aotinductor") == (
        1,
        f"bundle {folder}: {LIBRARY}: {message}\n",
    )


# ---- another machine


@pytest.mark.parametrize("backend", ["torchscript", pytest.param("aotinductor", marks=pytest.mark.torture)])
def test_a_program_runs_without_the_plugin_that_made_the_readout(backend, install_plugin, run_with_torch, tmp_path):
    points = {"regplug_readouts_v1": {"nv-compress": "nvsubquadratic.modules.film:RegisterCompressConcat"}}
    folder = install_plugin("acme-readouts", {}, points)
    make = f"""
import regplug
spec = regplug.resolve("nv-compress", num_registers=4, hidden_dim=24, compressed_dim=6)
regplug.export(spec, spec.build(), {str(tmp_path / "b")!r}, backends=[{backend!r}])
"""
    assert run_with_torch(make, [folder]).returncode == 0
    use = f"""
import torch, regplug
print(regplug.load({str(tmp_path / "b")!r}, program={backend!r})(torch.zeros(2, 4, 24)).shape)
try:
    regplug.load({str(tmp_path / "b")!r})
except regplug.NameLookupError as error:
    print(error)
"""
    out = run_with_torch(use).stdout.splitlines()
    assert out[0] == "torch.Size([2, 24])"
    assert out[1].startswith("strategy 'acme-readouts:nv-compress': expected an installed plugin, got 'acme-readouts'")


# ---- several threads


@pytest.mark.compiler
def test_threads_open_programs_of_both_kinds_at_once(scaled, registry):
    given, failed = torch.ones(1, 4, 24), []
    expected = registry.resolve("scaled", **SIZES).build()(given)

    def open_often(backend):
        for _ in range(10):
            program = regplug.load(scaled / "once", program=backend, registry=registry)
            if not torch.allclose(program(given), expected):
                failed.append(backend)

    threads = [threading.Thread(target=open_often, args=(backend,)) for backend in BOTH * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.compiler
def test_threads_open_programs_of_both_kinds_at_once_in_cpp(tmp_path):
    regplug.export(*readout("compress-concat"), tmp_path / "b", backends=BOTH)
    torch.manual_seed(1)
    (tmp_path / "other.safetensors").write_bytes(save_tensors({"compress.weight": torch.randn(6, 24)}))
    code, out = run(built() / "regplug_soak", "both", tmp_path / "b", tmp_path / "other.safetensors", 100)
    assert code == 0, out


# ---- what is in a program


def zipped(members, compression=zipfile.ZIP_STORED):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as target:
        for name, data in members:
            target.writestr(name, data)
    return archive.getvalue()


GOOD = [("program/data.pkl", b"pickle"), ("program/code/__torch__.py", b"def forward")]
SHIPPED = {
    "a member less": (GOOD, GOOD[:1], "expected the members"),
    "a member of another size": (GOOD, [GOOD[0], (GOOD[1][0], b"def")], "expected the members"),
    "a debug record": (
        [*GOOD, ("program/code/x.py.debug_pkl", b"x")],
        [*GOOD, ("program/code/x.py.debug_pkl", b"x")],
        "expected the members",
    ),
    "a way out": (
        [*GOOD, ("program/../../evil", b"x")],
        [*GOOD, ("program/../../evil", b"x")],
        "member 'program/../../evil': expected a plain name",
    ),
    "an absolute path": ([("/etc/passwd", b"x")], [("/etc/passwd", b"x")], "expected a plain name"),
    "two folders": ([*GOOD, ("other/x", b"x")], [*GOOD, ("other/x", b"x")], "expected members of one folder"),
}


@pytest.mark.parametrize("case", SHIPPED)
def test_an_archive_that_differs_from_what_torch_made_is_refused(case):
    made, shipped, message = SHIPPED[case]
    check_archive(zipped(GOOD), zipped([*GOOD, ("program/code/__torch__.py.debug_pkl", b"x")]))
    with pytest.raises(ExportError, match=message):
        check_archive(zipped(shipped), zipped(made))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_or_compressed_member_is_refused():
    twice = [*GOOD, GOOD[0]]
    with pytest.raises(ExportError, match="each once"):
        check_archive(zipped(twice), zipped(twice))
    with pytest.raises(ExportError, match="expected it stored"):
        check_archive(zipped(GOOD, zipfile.ZIP_DEFLATED), zipped(GOOD))


LIBRARIES = {
    "an executable stack": (["-Wl,-z,execstack"], "expected a stack that is not executable"),
    "a folder to search": (["-Wl,-rpath,/opt/lib"], "expected no folder to search for libraries, got /opt/lib"),
    "the older kind of it": (["-Wl,--disable-new-dtags,-rpath,$ORIGIN"], r"got \$ORIGIN"),
    "another library": (
        ["-Wl,--no-as-needed", "-lresolv"],
        "expected no library but libtorch's own, got libresolv.so.2",
    ),
    "a name of its own": (["-DOTHER"], r"expected no exported symbol but AOTInductor\*, got other and 0 more"),
    "the same, in the older table": (["-DOTHER", "-Wl,--hash-style=sysv"], r"got other and 0 more"),
    "a name that a process has once": (
        ["-DONCE"],
        r"expected no exported symbol but AOTInductor\*, got AOTInductorOnce",
    ),
}
SOURCE = """
extern "C" int AOTInductorOne() { return 1; }
#ifdef OTHER
extern "C" int other() { return 1; }
#endif
#ifdef ONCE
__asm__(".data; .globl AOTInductorOnce; .type AOTInductorOnce, @gnu_unique_object; AOTInductorOnce: .long 1; .text");
#endif
"""


def small_library(folder, *flags):
    (folder / "a.cpp").write_text(SOURCE)
    subprocess.run(["c++", "-shared", "-fPIC", "-o", folder / "a.so", folder / "a.cpp", *flags], check=True)
    return (folder / "a.so").read_bytes()


@pytest.mark.compiler
def test_a_library_with_the_interface_alone_is_accepted(tmp_path):
    check_library("library", small_library(tmp_path))


@pytest.mark.compiler
@pytest.mark.parametrize("case", LIBRARIES)
def test_a_library_that_needs_more_from_the_linker_is_refused(tmp_path, case):
    flags, message = LIBRARIES[case]
    with pytest.raises(ExportError, match=message):
        check_library("library", small_library(tmp_path, *flags))


@pytest.mark.compiler
def test_a_library_that_exports_all_its_symbols_is_refused_and_todays_exports_the_interface(scaled):
    old = (Path(__file__).parents[1] / "data" / "format-1" / "readout" / LIBRARY).read_bytes()
    with pytest.raises(
        ExportError, match=r"library: expected no exported symbol but AOTInductor\*, got _Z\w+ and \d{3} "
    ):
        check_library("library", old)
    check_library("library", (scaled / "once" / LIBRARY).read_bytes())


@pytest.mark.compiler
def test_a_truncated_library_or_other_bytes_are_refused(scaled):
    whole = (scaled / "once" / LIBRARY).read_bytes()
    check_library("library", whole)
    program = whole[:16] + struct.pack("<H", 2) + whole[18:]
    for data in (b"", b"\x7fELF", b"x" * 100, whole[:63], whole[:64], whole[:200], program):
        with pytest.raises(ExportError, match=r"library: expected a (whole )?shared object"):
            check_library("library", data)


@pytest.mark.parametrize("place", [Path.home(), Path(torch.__file__).parent])
def test_a_program_with_a_path_of_this_machine_is_refused(place, monkeypatch, tmp_path, registry):
    check_machine_paths("program", zipped(GOOD))
    text = f"x{place}/secret.py".encode()
    with pytest.raises(ExportError, match=f"program: expected no path of this machine, got '{place}"):
        check_machine_paths("program", text)
    with pytest.raises(ExportError, match=r"program: member 'program/code/a.py': expected no path of this machine"):
        check_machine_paths("program", zipped([*GOOD, ("program/code/a.py", text)]))
    check_machine_paths("program", zipped([*GOOD, ("program/data/0", text), ("program/constants/1", text)]))
    monkeypatch.setattr(Throwing, "export", lambda self, source: [Program("program.throwing", text)])
    spec = registry.resolve("scaled", **SIZES)
    with pytest.raises(ExportError, match="program 'throwing': program.throwing: expected no path"):
        regplug.export(spec, spec.build(), tmp_path / "b", backends=["throwing"], registry=registry)
    assert not (tmp_path / "b").exists()


@pytest.mark.compiler
def test_a_bundle_with_all_programs_holds_no_path_of_this_machine(scaled):
    for program in json.loads((scaled / "once" / "manifest.json").read_bytes())["programs"]:
        check_machine_paths(program["file"], (scaled / "once" / program["file"]).read_bytes())

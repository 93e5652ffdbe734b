"""The aotinductor backend: what it compiles, for which CPU, and what its programs refuse."""

import gc
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.battery import in_battery
from support.damage import edit_manifest, repin
from support.plugins import installed_with
from support.readouts import SIZES, trained
from torch import nn

import regplug
from regplug.backends import InputSpec, Source, TensorSpec, aotinductor, cache, compiling, export_graph, flatten
from regplug.backends.cpu import CpuFlags, cpu_flags

STRATEGIES = {"mean": {}, "pool": {}, "compress-concat": {"compressed_dim": 6}, "concat": {}}
LIBRARY = "program.aotinductor.x86-64-v3.so"
ONLY = {"backends": ["aotinductor"]}


class AddsNumbers(nn.Module):
    """Makes a tensor of plain numbers in its forward."""

    numbers = (1.0, 2.0)

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden_dim))

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return registers.mean(1) * self.scale + torch.tensor(self.numbers).sum()


class GivesItsWeight(AddsNumbers):
    """Its output is a view of a parameter."""

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return self.scale.expand(registers.shape[0], -1)


class LooksAtValues(AddsNumbers):
    """What it computes depends on the numbers it is given."""

    out_dim = 24

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return registers.mean(1) * self.scale if registers.sum() > 0 else registers.sum(1)


@pytest.fixture
def registry():
    return installed_with(
        regplug.ReadoutEntry("adds-numbers", AddsNumbers),
        regplug.ReadoutEntry("gives-its-weight", GivesItsWeight),
        regplug.ReadoutEntry("looks-at-values", LooksAtValues),
    )


@pytest.fixture
def compiled(monkeypatch):
    """The instruction sets that were really compiled for, one after another."""
    calls = []
    real = aotinductor.compile_in_child

    def counting(owner, graph, compiler, isa, *rest):
        calls.append(isa)
        return real(owner, graph, compiler, isa, *rest)

    monkeypatch.setattr(aotinductor, "compile_in_child", counting)
    return calls


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    folder = tmp_path_factory.mktemp("bundle") / "b"
    regplug.export(spec, trained(spec), folder, **ONLY)
    return folder


@pytest.mark.compiler
@pytest.mark.parametrize("strategy", ["mean", "pool", "compress-concat", *in_battery("concat")])
def test_a_readouts_library_agrees_with_eager_on_every_case_even_slices_and_empty_batches(tmp_path, strategy):
    spec = regplug.resolve(strategy, **SIZES, **STRATEGIES[strategy])
    module = trained(spec)
    regplug.export(spec, module, tmp_path / "b", **ONLY)
    found = regplug.verify(tmp_path / "b", programs=True)
    rows = {check.case: check.verdict for check in found.checks if check.program == "aotinductor x86-64-v3"}
    refused = {"wrong R", "wrong R, more", "wrong D", "wrong rank", "wrong dtype"}
    assert {case for case, verdict in rows.items() if verdict == "refused"} == refused
    assert {case for case, verdict in rows.items() if verdict == "ok"} == {
        *("batch_0", "batch_1", "batch_2", "batch_7", "batch_64", "slice")
    }
    program = regplug.load(tmp_path / "b", program="aotinductor")
    tokens = torch.randn(3, 9, 24)
    torch.testing.assert_close(program(tokens[:, 2:6]), module(tokens[:, 2:6].contiguous()))


LAYOUTS = {
    "prefix": regplug.TokenLayout(**SIZES, start=1),
    "prefix with nothing before it": regplug.TokenLayout(**SIZES, start=0),
    "suffix": regplug.TokenLayout(**SIZES, start=-6),
    "suffix with nothing behind it": regplug.TokenLayout(**SIZES, start=-4),
    "indices": regplug.TokenLayout(**SIZES, indices=(0, 2, 3, 9), num_tokens=11),
}


def conditioner_of(place):
    spec = regplug.resolve("pool", **SIZES)
    torch.manual_seed(0)
    kwargs = {"kernel_hidden_dim": 5, "num_film_layers": 2, "init_type": "small_random", "init_std": 0.5}
    film = regplug.pair(spec, regplug.KernelFiLMGenerator, **kwargs)
    return spec, regplug.Conditioner(LAYOUTS[place], trained(spec), film).eval()


def lengths_of(layout):
    return [layout.num_tokens] if layout.num_tokens else [layout.min_tokens, layout.min_tokens + 1, 50]


@pytest.mark.torture
@pytest.mark.compiler
@pytest.mark.parametrize("place", LAYOUTS)
def test_a_layouts_conditioner_compiles_for_every_length_that_holds_its_registers(tmp_path, place):
    spec, conditioner = conditioner_of(place)
    regplug.export(spec, conditioner, tmp_path / "b", **ONLY)
    program = regplug.load(tmp_path / "b", program="aotinductor")
    for length in lengths_of(LAYOUTS[place]):
        tokens = torch.randn(2, length, 24)
        for got, wanted in zip(program(tokens), conditioner(tokens), strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("place", LAYOUTS)
def test_every_layouts_conditioner_has_one_graph_for_every_length_that_holds_its_registers(place):
    layout = LAYOUTS[place]
    _, conditioner = conditioner_of(place)
    length = layout.num_tokens or "T"
    source = Source(
        conditioner,
        torch.randn(2, layout.num_tokens or layout.min_tokens, 24),
        InputSpec("tokens", "float32", ("B", length, 24), 0, None if layout.num_tokens else layout.min_tokens),
        [TensorSpec("gamma_0", "float32", ("B", 24))],
        {},
        {},
    )
    graph = export_graph("test", conditioner, source).module()
    for length in lengths_of(layout)[-2:]:  # torch's own guards refuse T = R
        tokens = torch.randn(3, length, 24)
        torch.testing.assert_close(flatten(graph(tokens)), flatten(conditioner(tokens)))


@pytest.mark.compiler
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.torture) for dtype in (torch.float64, torch.float16))],
)
def test_other_dtypes_compile_too(tmp_path, dtype):
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    regplug.export(spec, trained(spec).to(dtype), tmp_path / "b", **ONLY)
    assert regplug.load(tmp_path / "b", program="aotinductor")(torch.ones(2, 4, 24, dtype=dtype)).dtype == dtype


def executable_stack(library: bytes) -> bool:
    """Whether the ELF file's PT_GNU_STACK segment has the flag PF_X, or is missing."""
    (offset,), (size, count) = struct.unpack_from("<Q", library, 32), struct.unpack_from("<HH", library, 54)
    headers = [struct.unpack_from("<II", library, offset + index * size) for index in range(count)]
    stacks = [flags for kind, flags in headers if kind == 0x6474E551]
    return not stacks or bool(stacks[0] & 1)


@pytest.mark.compiler
def test_a_library_needs_no_executable_stack_and_names_no_folder_of_this_machine(bundle):
    library = (bundle / LIBRARY).read_bytes()
    assert not executable_stack(library)
    assert b"\0libtorch_cpu.so\0" in library
    assert b"\0libtorch.so\0" not in library  # a CUDA build's; a C++ host has libtorch_cpu alone
    broken = bytearray(library)
    offset = struct.unpack_from("<Q", library, 32)[0]
    while struct.unpack_from("<I", library, offset)[0] != 0x6474E551:
        offset += 56
    broken[offset + 4] |= 1
    assert executable_stack(bytes(broken))
    places = {Path.home(), Path.cwd(), sys.prefix, sys.base_prefix, Path(torch.__file__).parent, "/tmp", "/home"}
    assert [place for place in places if f"{place}/".encode() in library] == []
    paths = set(re.findall(rb"[\w./-]+\.(?:cpp|h|py)\b", library))
    assert paths
    assert not [path for path in paths if path.startswith(b"/") or not re.match(rb"torch/|program\.cpp", path)]


@pytest.mark.torture
@pytest.mark.compiler
def test_export_from_another_folder_and_process_gives_the_same_bytes(bundle, tmp_path):
    code = f"""
import torch, regplug
spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
torch.manual_seed(7)
regplug.export(spec, spec.build(), {str(tmp_path / "b")!r}, backends=["aotinductor"])
"""
    (tmp_path / "elsewhere").mkdir()
    env = os.environ | {"PYTHONHASHSEED": "99", "REGPLUG_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "2"}
    env |= {"TMPDIR": str(tmp_path / "elsewhere"), "HOME": str(tmp_path), "TORCHINDUCTOR_CPP_MARCH": "x86-64"}
    subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path / "elsewhere", check=True)
    assert (tmp_path / "b" / LIBRARY).read_bytes() == (bundle / LIBRARY).read_bytes()
    assert (tmp_path / "b" / "weights.safetensors").read_bytes() != (bundle / "weights.safetensors").read_bytes()


@pytest.mark.compiler
def test_a_retrained_readout_is_exported_without_the_compiler_and_computes_with_its_own_weights(
    bundle, tmp_path, compiled
):
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    module = trained(spec, seed=5)
    regplug.export(spec, module, tmp_path / "b", **ONLY)
    assert compiled == []
    assert (tmp_path / "b" / LIBRARY).read_bytes() == (bundle / LIBRARY).read_bytes()
    given = torch.randn(2, 4, 24)
    first, second = (regplug.load(folder, program="aotinductor")(given) for folder in (bundle, tmp_path / "b"))
    torch.testing.assert_close(second, module(given))
    assert not torch.allclose(first, second)


@pytest.mark.torture
@pytest.mark.compiler
def test_another_constant_in_the_forward_makes_another_program(tmp_path, registry, monkeypatch):
    spec = registry.resolve("adds-numbers", **SIZES)
    module = spec.build()
    regplug.export(spec, module, tmp_path / "b", **ONLY, registry=registry)
    given = torch.randn(2, 4, 24)
    torch.testing.assert_close(regplug.load(tmp_path / "b", program="aotinductor")(given), given.mean(1) + 3.0)
    monkeypatch.setenv("CXX", "no-such-compiler")
    regplug.export(spec, module, tmp_path / "b", **ONLY, registry=registry, force=True)
    monkeypatch.setattr(AddsNumbers, "numbers", (1.0, 5.0))
    with pytest.raises(regplug.ExportError, match="expected a C\\+\\+ compiler"):
        regplug.export(spec, module, tmp_path / "b", **ONLY, registry=registry, force=True)


def change_a_byte(entry):
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)


def put_another_in_its_place(entry):
    """A whole entry, but another's, under this name."""
    asked = entry.name.partition("-")[0]
    _, files = cache.find(asked)
    entry.unlink()
    cache.keep("0" * 64, {"programs": {}}, dict.fromkeys(files, b"another program"))
    [other] = entry.parent.glob("0000*")
    other.rename(other.with_name(other.name.replace("0" * 64, asked, 1)))


def copy_entry_of(library, folder):
    """Copy the entry of the cache that holds a library to another cache."""
    folder.mkdir(mode=0o700)
    data = library.read_bytes()
    kept = [one for one in cache.entries() if one.description["strategy"] == "regplug:compress-concat"]
    [entry] = [one.path for one in kept if data in one.path.read_bytes()]
    shutil.copy(entry, folder)


@pytest.mark.compiler
@pytest.mark.parametrize("damage", [change_a_byte, put_another_in_its_place])
def test_a_damaged_or_foreign_entry_of_the_cache_is_never_used(bundle, tmp_path, monkeypatch, damage):
    copy_entry_of(bundle / LIBRARY, tmp_path / "cache")
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    regplug.export(spec, spec.build(), tmp_path / "b", **ONLY)
    for entry in list((tmp_path / "cache").glob("*-*.safetensors")):
        damage(entry)
    with pytest.raises(regplug.ExportError, match="expected a C\\+\\+ compiler"):
        regplug.export(spec, spec.build(), tmp_path / "b", **ONLY, force=True)
    assert regplug.verify(tmp_path / "b", programs=True).ok


@pytest.mark.torture
@pytest.mark.compiler
def test_clang_compiles_a_program_without_an_openmp_library(tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "clang++")
    spec = regplug.resolve("pool", num_registers=2, hidden_dim=8)
    regplug.export(spec, spec.build(), tmp_path / "b", **ONLY)
    library = (tmp_path / "b" / "program.aotinductor.x86-64-v3.so").read_bytes()
    assert b"libomp" not in library
    assert b"libgomp" not in library


@pytest.mark.torture
@pytest.mark.compiler
def test_an_unwritable_cache_logs_one_line_and_compiling_leaves_no_files(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    spec = regplug.resolve("mean", num_registers=2, hidden_dim=8)
    done = regplug.export(spec, spec.build(), tmp_path / "b", **ONLY)
    [line] = [record.getMessage() for record in caplog.records if record.name == "regplug"]
    place = tmp_path / "file" / "cache"
    assert line == f"cache {place}: not written: Not a directory; the next export compiles again."
    assert list((tmp_path / "temporary").glob("regplug-*")) == []  # torch makes a folder of its own
    [program] = done.manifest.programs
    recorded = done.manifest.files[program.file]
    assert recorded.sha256 == hashlib.sha256((tmp_path / "b" / program.file).read_bytes()).hexdigest()


@pytest.mark.torture
@pytest.mark.compiler
def test_each_instruction_set_makes_a_program_and_the_best_for_this_cpu_is_run(tmp_path):
    spec = regplug.resolve("pool", **SIZES)
    isa = ["x86-64-v2", "x86-64-v3", "native"]
    done = regplug.export(spec, trained(spec), tmp_path / "b", **ONLY, settings={"aotinductor": {"isa": isa}})
    flags = {one.properties["isa"]: set(one.properties["cpu_flags"].split()) for one in done.manifest.programs}
    assert flags["x86-64-v2"] < flags["x86-64-v3"] <= flags["native"] <= cpu_flags().present
    assert {"avx2", "fma", "bmi2", "movbe", "f16c", "abm"} <= flags["x86-64-v3"] - flags["x86-64-v2"]
    assert regplug.verify(tmp_path / "b", programs=True).ok
    opened = []
    real = aotinductor.AOTInductorBackend.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            aotinductor.AOTInductorBackend,
            "open",
            lambda self, o, p, w: (opened.append(p.file), real(self, o, p, w))[1],
        )
        regplug.load(tmp_path / "b", program="aotinductor")
        assert opened.pop() in (LIBRARY.replace("x86-64-v3", "native"), LIBRARY)
        edit_manifest(tmp_path / "b", lambda m: m["programs"][2]["properties"].update(cpu_flags="none_such avx2"))
        regplug.load(tmp_path / "b", program="aotinductor")
        assert opened.pop() == LIBRARY
    rows = {check.program: check for check in regplug.verify(tmp_path / "b", programs=True).checks if check.case == "-"}
    assert rows["aotinductor native"].verdict == "other CPU"
    assert rows["aotinductor native"].detail == "program 'aotinductor native': not run here, wants none_such."


@pytest.mark.compiler
def test_a_program_for_another_cpu_is_refused_before_it_is_loaded(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "b")
    (folder / LIBRARY).write_bytes(b"would end the process")
    edit_manifest(folder, lambda m: m["programs"][0]["properties"].update(cpu_flags="avx2 zz_none_such amx_none_such"))
    repin(folder)
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(folder, program="aotinductor")
    assert str(error.value) == (
        f"bundle {folder}: program 'aotinductor': expected a CPU with amx_none_such zz_none_such, got one without; "
        "export with --isa x86-64-v3."
    )


@pytest.mark.compiler
@pytest.mark.parametrize("command", ["false", "true", "c++ --no-such-option"])
def test_a_broken_compiler_is_reported_instead_of_the_instruction_set(tmp_path, monkeypatch, command):
    monkeypatch.setenv("CXX", command)
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))  # or a program of before is taken
    spec = regplug.resolve("mean", **SIZES)
    with pytest.raises(regplug.ExportError, match=rf"expected a C\+\+ compiler that works, got .*{command[-3:]}: "):
        regplug.export(spec, spec.build(), tmp_path / "b", **ONLY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"isa": ["nonsense"]}, r"isa: expected a name that .* takes for -march, or 'native', got 'nonsense'"),
        ({"isa": ["../evil"]}, r"isa: expected a name as x86-64-v3 or native, got '../evil'"),
        ({"isa": []}, "isa: expected at least one name, got none"),
        ({"isa": "native"}, r"option 'isa': expected .*, got 'native'"),
        ({"time_limit": 0}, "time_limit: expected seconds > 0, got 0"),
        ({"speed": 1}, r"option 'speed': expected a known option, got 1; known: compiler, isa, time_limit"),
    ],
)
def test_a_wrong_setting_is_refused_and_nothing_is_written(tmp_path, settings, message):
    spec = regplug.resolve("mean", **SIZES)
    with pytest.raises(regplug.RegplugError, match=message):
        regplug.export(spec, spec.build(), tmp_path / "b", **ONLY, settings={"aotinductor": settings})
    assert list(tmp_path.iterdir()) == []


def test_settings_of_a_backend_that_is_not_used_are_refused(tmp_path):
    spec = regplug.resolve("mean", **SIZES)
    with pytest.raises(regplug.SpecError, match="settings: expected those of the backends, got some of aotinductor"):
        regplug.export(spec, spec.build(), tmp_path / "b", settings={"aotinductor": {"isa": ["native"]}})


def test_an_instruction_set_that_this_cpu_lacks_is_refused_before_anything_is_compiled(tmp_path, monkeypatch, compiled):
    flags = CpuFlags(cpu_flags().present - {"avx2", "fma"}, None)
    monkeypatch.setattr(aotinductor, "cpu_flags", lambda: flags)
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    spec = regplug.resolve("mean", **SIZES)
    with pytest.raises(regplug.ExportError, match="expected a CPU with avx2 fma for 'x86-64-v3', got one without"):
        regplug.export(spec, spec.build(), tmp_path / "b", **ONLY)
    assert compiled == []


def test_a_missing_compiler_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    spec = regplug.resolve("mean", **SIZES)
    with pytest.raises(regplug.ExportError) as error:
        regplug.export(spec, spec.build(), tmp_path / "b", **ONLY)
    assert str(error.value) == (
        "program 'aotinductor': expected a C++ compiler, got none (no-such-compiler); install one, as "
        "`apt-get install g++` does."
    )
    assert not (tmp_path / "b").exists()


def write_compiler(path, script):
    """A compiler that answers the question for its flags, and otherwise does what the script says."""
    path.write_text(f'#!/bin/sh\ncase "$*" in *-dM*) exec c++ "$@";; esac\n{script}\n')
    path.chmod(0o700)


@pytest.mark.compiler
def test_a_hanging_compiler_is_killed_with_its_children(tmp_path, monkeypatch):
    started = tmp_path / "pid"
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    write_compiler(tmp_path / "slow-compiler", f"echo $$ > {started}; sleep 1000")
    monkeypatch.setenv("CXX", str(tmp_path / "slow-compiler"))
    # the time is up as soon as the compiler runs
    monkeypatch.setattr(compiling, "until", lambda limit: lambda: started.exists() and started.read_text().strip())
    spec = regplug.resolve("mean", **SIZES)
    settings = {"aotinductor": {"time_limit": 12.0}}
    with pytest.raises(regplug.ExportError, match="expected the compiler to end within 12 s, got no end"):
        regplug.export(spec, spec.build(), tmp_path / "b", **ONLY, settings=settings)
    process = Path("/proc", started.read_text().strip(), "status")
    assert not process.exists() or "State:\tZ" in process.read_text()  # a zombie is for the system to collect
    assert not (tmp_path / "b").exists()


@pytest.mark.compiler
def test_a_compiler_error_is_reported_on_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    write_compiler(
        tmp_path / "bad", 'case " $*" in *" --version"*) exec c++ "$@";; esac; echo "x.h:1:2: error: no" >&2; exit 1'
    )
    monkeypatch.setenv("CXX", str(tmp_path / "bad"))
    spec = regplug.resolve("mean", **SIZES)
    with pytest.raises(regplug.ExportError) as error:
        regplug.export(spec, spec.build(), tmp_path / "b", **ONLY)
    assert str(error.value) == "program 'aotinductor': the compiler failed: x.h:1:2: error: no"


def test_a_noexec_temporary_folder_is_named_with_what_to_set(tmp_path):
    code = """
import regplug, regplug.backends.program_folder
regplug.backends.program_folder.OTHERS = ()
spec = regplug.resolve("mean", num_registers=2, hidden_dim=8)
try:
    regplug.export(spec, spec.build(), "b", backends=["aotinductor"])
except regplug.ExportError as error:
    print(error)
"""
    script = 'mount -t tmpfs -o noexec none "$0" && exec "$@"'
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    (tmp_path / "noexec").mkdir()
    env = os.environ | {"TMPDIR": str(tmp_path / "noexec"), "REGPLUG_CACHE_DIR": str(tmp_path / "noexec" / "c")}
    command = [*namespace, tmp_path / "noexec", sys.executable, "-c", code]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == (
        "program 'aotinductor': expected a temporary folder in which programs may be made and run, got "
        f"{tmp_path}/noexec, which is mounted noexec; set TMPDIR to another folder.\n"
    ), done.stderr


def test_a_module_without_a_graph_is_refused(tmp_path, registry):
    spec = registry.resolve("looks-at-values", **SIZES)
    with pytest.raises(regplug.ExportError, match="program 'aotinductor': expected a module that torch.export takes"):
        regplug.export(spec, spec.build(), tmp_path / "b", **ONLY, registry=registry)


@pytest.mark.torture
@pytest.mark.compiler
def test_a_program_that_returns_a_weight_returns_a_copy(tmp_path, registry):
    spec = registry.resolve("gives-its-weight", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "b", **ONLY, registry=registry)
    program = regplug.load(tmp_path / "b", program="aotinductor")
    given = torch.zeros(1, 4, 24)
    with torch.inference_mode():
        program(given).zero_()
    assert torch.equal(program(given), torch.ones(1, 24))


def change_properties(folder, **changes):
    edit_manifest(folder, lambda manifest: manifest["programs"][0]["properties"].update(changes))


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": ["float32", [6, 24]]}, "weights.safetensors: expected tensors [a], got [compress.weight]."),
        (
            {"compress.weight": ["float32", [6, 25]]},
            "weights.safetensors: tensor 'compress.weight': expected float32 [6, 25], got float32 [6, 24].",
        ),
        (
            {"compress.weight": ["float64", [6, 24]]},
            "weights.safetensors: tensor 'compress.weight': expected float64 [6, 24], got float32 [6, 24].",
        ),
        ([1], f"{LIBRARY}: weights: expected the JSON text of {{name: [dtype, sizes]}}."),
        ({"compress.weight": ["float32", [6, -1]]}, f"{LIBRARY}: weights: expected the JSON text of {{name: [dtype, "),
    ],
)
def test_a_program_that_needs_other_weights_is_refused(bundle, tmp_path, weights, message):
    folder = shutil.copytree(bundle, tmp_path / "b")
    change_properties(folder, weights=json.dumps(weights))
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(folder, program="aotinductor")
    assert str(error.value).startswith(f"bundle {folder}: {message}")


@pytest.mark.compiler
def test_a_file_that_is_not_a_library_is_refused_on_one_line(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "b")
    (folder / LIBRARY).write_bytes(b"no library")
    repin(folder)
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(folder, program="aotinductor")
    assert str(error.value).startswith(f"bundle {folder}: {LIBRARY}: ")
    assert "\n" not in str(error.value)


@pytest.mark.compiler
def test_a_new_library_is_not_confused_with_a_dropped_one(bundle, tmp_path):
    """The system's loader knows a library by its path; a descriptor's number may come again."""
    given = torch.randn(2, 4, 24)
    program = regplug.load(bundle, program="aotinductor")
    program(given)
    del program
    gc.collect()
    spec = regplug.resolve("mean", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "b", **ONLY)
    torch.testing.assert_close(regplug.load(tmp_path / "b", program="aotinductor")(given), given.mean(1))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        regplug.load(tmp_path / "b", program="aotinductor")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.compiler
def test_threads_share_a_program_and_autocast_has_no_effect_on_it(bundle):
    program = regplug.load(bundle, program="aotinductor")
    module = regplug.load(bundle)
    given = torch.randn(8, 4, 24)
    wanted = module(given)
    wrong = []

    def work():
        for _ in range(200):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                got = program(given)
            if not torch.allclose(got, wanted, atol=1e-6):
                wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

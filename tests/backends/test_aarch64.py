"""Programs for aarch64 that are made here, and run in qemu before they are written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import run_command
from support.consumer import built_with, conditioner
from support.cpp_build import compiled
from support.damage import edit_manifest
from support.readouts import SIZES, trained

import regplug
from regplug.backends import aotinductor, cpu, cross
from regplug.backends.compiling import target_of
from regplug.backends.cross import CrossTools, cross_tools
from regplug.backends.elf import called_functions, check_library
from regplug.backends.emulated import emulated

BOTH = {"isa": ["armv8-a", "x86-64-v3"]}
ARM, X86 = "program.aotinductor.armv8-a.so", "program.aotinductor.x86-64-v3.so"
COMPILER = "aarch64-linux-gnu-g++"
QEMU = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")
INSTALL = (
    "install them: `apt-get install g++-aarch64-linux-gnu qemu-user-static`, or `pip install ziglang` and "
    "`apt-get install qemu-user-static libstdc++6-arm64-cross`."
)
MACROS = "#define __cplusplus 1\n#define __aarch64__ 1"
ZIG_TARGET = ["-target", "aarch64-linux-gnu.2.28"]


def readout():
    return regplug.resolve("compress-concat", **SIZES, compressed_dim=6)


def export(folder, spec=None, module=None, **settings):
    spec = spec or readout()
    given = {"isa": ["armv8-a"], **settings}
    return regplug.export(
        spec, module or trained(spec), folder, backends=["aotinductor"], settings={"aotinductor": given}
    )


LAYOUT = regplug.TokenLayout(**SIZES, start=1, groups=(regplug.TokenGroup("cls", 0, 1), regplug.TokenGroup("rest", 1)))


def export_join(folder, isa):
    """A readout on a class token, any number of other tokens, and a vector, with a mask."""
    spec = regplug.join(cls="mean", rest="attention", state=5).resolve(LAYOUT)
    settings = {"aotinductor": {"isa": isa}}
    return regplug.export(spec, trained(spec), folder, backends=["aotinductor"], settings=settings, mask=True)


def fake(folder, name, script):
    """A program of a few lines of shell, and the folder for PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


# ---- what it says when something is missing or broken; no compiler runs


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """An empty folder that is all of PATH, and no compiler among Python's packages."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("QEMU_LD_PREFIX", raising=False)
    monkeypatch.setattr(cross, "find_spec", lambda name: None)
    monkeypatch.setattr(cross, "LIBRARIES", [str(libraries(tmp_path / "debian") / "lib")])
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def libraries(folder):
    """A folder as that of a C library."""
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "ld-linux-aarch64.so.1").touch()
    return folder


def found_tools(tools, *compiler):
    return CrossTools(
        [str(tools / compiler[0]), *compiler[1:]], [str(tools / QEMU[0]), "-L", str(tools.parent / "debian")]
    )


def refusal(named=None):
    with pytest.raises(regplug.ExportError) as error:
        cross_tools("program", named)
    return str(error.value)


def test_without_compiler_and_emulator_one_line_says_what_to_install_and_nothing_is_written(tools, tmp_path):
    with pytest.raises(regplug.ExportError) as error:
        export(tmp_path / "b", regplug.resolve("mean", num_registers=2, hidden_dim=8))
    assert str(error.value) == (
        "program 'aotinductor': armv8-a: expected a compiler and an emulator for aarch64, got no aarch64-linux-gnu-g++ "
        f"and no qemu-aarch64-static; {INSTALL}"
    )
    assert not (tmp_path / "b").exists()


def test_if_one_of_the_two_is_missing_the_line_names_that_one(tools):
    fake(tools, COMPILER, f"echo '{MACROS}'")
    assert refusal() == (
        f"program: expected a compiler and an emulator for aarch64, got no qemu-aarch64-static; {INSTALL}"
    )
    fake(tools, QEMU[0], "exit 0")
    assert cross_tools("program", None) == found_tools(tools, COMPILER)
    (tools / COMPILER).unlink()
    assert "got no aarch64-linux-gnu-g++; install them: " in refusal()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "'my-g++ -pipe', which is not there."),
        ("echo '#define __cplusplus 1'", "{} -pipe, which compiles for another machine."),
        ("echo 'my-g++: error: broken' >&2; exit 3", "{} -pipe: my-g++: error: broken."),
        ("exit 3", "{} -pipe: exit code 3."),
    ],
)
def test_a_compiler_that_is_unknown_broken_or_for_another_machine_is_named(tools, script, why):
    fake(tools, "qemu-aarch64", "exit 0")
    if script is not None:
        fake(tools, "my-g++", script)
    expected = "program: compiler: expected a command that compiles for aarch64, got "
    assert refusal("my-g++ -pipe") == expected + why.format(tools / "my-g++")


def test_a_compiler_that_fails_is_one_line_and_nothing_is_written(tools, tmp_path):
    fake(tools, QEMU[0], "exit 0")
    fake(tools, "my-g++", f"case \"$*\" in *-dM*) echo '{MACROS}' ;; *) echo 'x: error: no space' >&2; exit 1 ;; esac")
    with pytest.raises(regplug.ExportError) as error:
        export(tmp_path / "b", regplug.resolve("mean", num_registers=2, hidden_dim=8), compiler="my-g++")
    assert str(error.value) == "program 'aotinductor': the compiler failed: x: error: no space"
    assert not (tmp_path / "b").exists()


def test_tools_may_be_named_by_relative_paths(tools, monkeypatch):
    fake(tools, COMPILER, f"echo '{MACROS}'")
    fake(tools, QEMU[0], "exit 0")
    monkeypatch.chdir(tools.parent)
    monkeypatch.setenv("PATH", "tools")
    assert cross_tools("program", f"./tools/{COMPILER} -pipe") == found_tools(tools, COMPILER, "-pipe")


FAKE_ZIG = f"""
case "$*" in
*-march=*) echo "error: unknown CPU: 'armv8'" >&2; exit 1 ;;
*generic+v9_9a*) exit 1 ;;
*-print-file-name*) echo ld-linux-aarch64.so.1 ;;
*"{" ".join(ZIG_TARGET)}"*) echo '{MACROS}' ;;
*) echo '#define __cplusplus 1' ;;
esac
"""


def test_zig_gets_the_target_and_its_own_names_of_instruction_sets(tools, monkeypatch):
    fake(tools, QEMU[0], "exit 0")
    fake(tools, "zig", FAKE_ZIG)
    wanted = found_tools(tools, "zig", "c++", *ZIG_TARGET)
    assert cross_tools("program", "zig c++") == wanted
    assert cross_tools("program", f"zig c++ {' '.join(ZIG_TARGET)}") == wanted
    for isa, name in (("armv8-a", "v8a"), ("armv8.2-a", "v8_2a")):
        options, _ = target_of("program", wanted.compiler, isa)
        assert options == [f"-mcpu=generic+{name}", "-Wl,-z,nodelete"]
    with pytest.raises(regplug.ExportError, match="isa: expected a name that .* takes for -march"):
        target_of("program", wanted.compiler, "armv9.9-a")
    # as a package of this Python, it is used if Debian's compiler is not there
    monkeypatch.setattr(cross, "find_spec", lambda name: name == "ziglang")
    monkeypatch.setattr(cross, "ZIG", [str(tools / "zig"), "c++"])
    assert cross_tools("program", None) == wanted
    fake(tools, COMPILER, f"echo '{MACROS}'")
    assert cross_tools("program", None) == found_tools(tools, COMPILER)


def test_a_cross_compiler_without_an_instruction_set_of_another_machine_is_refused(tmp_path):
    with pytest.raises(regplug.SpecError) as error:
        export(tmp_path / "b", isa=["x86-64-v3", "native"], compiler="g++")
    assert str(error.value) == (
        "program 'aotinductor': compiler: expected with it an isa of another machine, as armv8-a, got x86-64-v3, "
        "native; for this machine's compiler, set CXX."
    )
    code, _, err = run_command(
        "export", "mean", "--num-registers", 2, "--hidden-dim", 8, "--compiler", "g++", "-o", "b"
    )
    assert code == 2
    assert "--isa, --time-limit, --compiler: expected --backend aotinductor, got another." in err


FAKE_COMPILER = f"""
case "$*" in
*-dM*) echo '{MACROS}' ;;
*-print-file-name*) echo {{}}/lib/ld-linux-aarch64.so.1 ;;
*-o*) while [ "$1" != -o ]; do shift; done; echo program > "$2" ;;
esac
"""


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "program: expected {} to run it, got SIGSEGV."),
        ("echo 'program: bad' >&2; exit 1", "program: expected {} to run it, got exit code 1: program: bad."),
        ("sleep 60 & wait", "program: expected {} to end within 0.5 s, got no end."),
        ("exit 0", "program: expected outputs of {}, got none."),
    ],
)
def test_an_emulator_that_crashes_refuses_hangs_or_does_nothing_is_one_line(tools, monkeypatch, script, message):
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    found = CrossTools([str(fake(tools, COMPILER, FAKE_COMPILER))], [str(fake(tools, QEMU[0], script))])
    run = emulated("program", found, b"library", [], 0.5)
    with pytest.raises(regplug.BundleError) as error:
        run(torch.ones(2))
    assert str(error.value) == message.format(QEMU[0])


def test_the_emulator_gets_the_libraries_of_the_compiler_or_those_that_the_user_names(tools, tmp_path, monkeypatch):
    emulator = str(fake(tools, QEMU[0], "exit 0"))
    fake(tools, COMPILER, FAKE_COMPILER.replace("{}", str(libraries(tmp_path / "sysroot"))))
    assert cross_tools("program", None).emulator == [emulator, "-L", str(tmp_path / "sysroot")]
    monkeypatch.setenv("QEMU_LD_PREFIX", "/own")
    assert cross_tools("program", None).emulator == [emulator]


def test_without_a_c_library_for_the_emulator_one_line_says_what_to_install(tools, monkeypatch):
    fake(tools, QEMU[0], "exit 0")
    fake(tools, "zig", FAKE_ZIG)
    monkeypatch.setattr(cross, "LIBRARIES", [str(tools)])
    assert refusal("zig c++") == (
        "program: expected a C library for aarch64, with which the emulator runs programs, got none; install one, as "
        "`apt-get install libstdc++6-arm64-cross` does, or name the folder that has it as lib/ in QEMU_LD_PREFIX."
    )


def test_a_compiler_that_cannot_compile_the_runtime_is_one_line(tools):
    script = "echo 'In file included from x' >&2; echo 'x: fatal error: no space' >&2; exit 1"
    found = CrossTools([str(fake(tools, COMPILER, script))], ["qemu"])
    with pytest.raises(regplug.ExportError) as error:
        emulated("program", found, b"library", [], 5.0)
    assert str(error.value) == (
        f"program: expected {tools / COMPILER} to compile regplug's runtime, got x: fatal error: no space."
    )


def test_a_header_that_is_missing_is_named_with_where_it_comes_from(tools, monkeypatch):
    monkeypatch.setattr("regplug.backends.emulated.import_path", list)
    with pytest.raises(regplug.ExportError) as error:
        emulated("program", CrossTools([str(fake(tools, COMPILER, "exit 0"))], ["qemu"]), b"library", [], 5.0)
    assert str(error.value) in {
        f"program: expected the header {header}, got none; install it, as `pip install 'regplug[cpp]'` does."
        for header in ("Eigen/Core", "nlohmann/json.hpp")  # the system may have Eigen's
    }


# ---- on an ARM machine: what only reads, as if it were one


@pytest.fixture
def on_arm(monkeypatch):
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    cpu.cpu_flags.cache_clear()
    yield
    cpu.cpu_flags.cache_clear()


def test_there_the_default_is_armv8_a_and_native_is_no_other_machine(on_arm):
    assert aotinductor.AOTInductorBackend()._isa == ["armv8-a"]
    assert not aotinductor._is_foreign("armv8-a")
    assert not aotinductor._is_foreign("native")


def test_there_an_instruction_set_of_x86_is_refused_with_the_names_that_its_compiler_takes(tools):
    compiler = [str(fake(tools, "c++", f"case \"$*\" in *-march=x86*) exit 1 ;; esac; echo '{MACROS}'"))]
    with pytest.raises(regplug.ExportError, match=r"got 'x86-64-v3'; known: armv8-a, armv8\.2-a, "):
        target_of("program", compiler, "x86-64-v3")


def test_there_the_flags_are_the_line_features(on_arm, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : avx2\nFeatures : fp asimd crc32\n")
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu.cpu_flags().present == {"fp", "asimd", "crc32"}
    assert cpu.missing_flags({"cpu_flags": "asimd fp"}) == []
    with pytest.raises(regplug.BundleError, match=r"^p: expected a CPU with avx2, got one without; .* armv8-a\.$"):
        cpu.best_for_this_cpu("p", [0], [{"cpu_flags": "avx2"}])


def test_there_without_proc_the_flags_are_those_that_the_system_tells_programs(on_arm, tmp_path, monkeypatch):
    class Library:
        def __init__(self, name):
            self.getauxval = lambda kind: {16: 0b10000011, 26: 0b10}[kind]

    monkeypatch.setattr("ctypes.CDLL", Library)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    assert cpu.cpu_flags().present == {"fp", "asimd", "crc32", "sve2"}
    assert cpu.missing_flags({"cpu_flags": "asimd fp"}) == []
    with pytest.raises(regplug.BundleError, match="expected its flags in /proc/cpuinfo"):
        cpu.missing_flags({"cpu_flags": "avx2"})


# ---- made by the compiler and run by qemu


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aarch64") / "b"
    export(folder, **BOTH)
    return folder


@pytest.mark.compiler
def test_a_program_for_aarch64_is_compiled_and_within_the_tolerance_in_qemu(bundle):
    arm, x86 = regplug.verify(bundle).manifest.programs
    assert (arm.file, x86.file) == (ARM, X86)
    assert {name: arm.properties[name] for name in ("isa", "cpu_flags", "needs")} == {
        "isa": "armv8-a", "cpu_flags": "asimd fp", "needs": "nothing",
    }  # fmt: skip
    assert arm.properties["weights"] == x86.properties["weights"]
    assert 0 < arm.cases["batch_7"].error <= arm.cases["batch_7"].tolerance
    library = (bundle / ARM).read_bytes()
    check_library("library", library, "aarch64")
    with pytest.raises(regplug.ExportError, match=r"^library: expected a shared object for x86-64, got other bytes\.$"):
        check_library("library", library)
    assert b"\0libtorch_cpu.so\0" in library  # the linker had an empty one
    assert "aoti_torch_cpu_mm_out" in called_functions(library)


@pytest.mark.compiler
def test_here_it_is_passed_over_and_the_program_of_this_machine_runs(bundle, tmp_path):
    given = torch.randn(3, 4, 24)
    torch.testing.assert_close(regplug.load(bundle, program="aotinductor")(given), regplug.load(bundle)(given))
    export(tmp_path / "b")
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(tmp_path / "b", program="aotinductor")
    assert str(error.value) == (
        f"bundle {tmp_path / 'b'}: program 'aotinductor': expected a CPU with asimd fp, got one without; export with "
        "--isa x86-64-v3."
    )


@pytest.mark.compiler
def test_verify_runs_it_in_the_emulator_or_says_why_not(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("regplug.bundle.verify._check_compiled", lambda module, contents: [])

    def rows(folder):
        found = regplug.verify(folder, programs=True).checks
        return [(one.verdict, one.detail) for one in found if one.program == "aotinductor armv8-a"]

    cases = [("ok", "program 'aotinductor armv8-a': run in an emulator."), *[("ok", "")] * 5]
    assert rows(bundle) == [*cases, *[("refused", "")] * 5]
    here = "program 'aotinductor armv8-a': not run here, wants asimd fp. program 'aotinductor': armv8-a: expected "
    folder = shutil.copytree(bundle, tmp_path / "b")
    edit_manifest(folder, lambda manifest: manifest["programs"][0]["properties"].update(needs="libtorch (f)"))
    without = "a program that runs without libtorch, as in an emulator, got one that needs libtorch (f)."
    assert rows(folder) == [("other CPU", here + without)]
    monkeypatch.setattr(cross, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = "a compiler and an emulator for aarch64, got no aarch64-linux-gnu-g++ and no qemu-aarch64-static; "
    assert rows(bundle) == [("other CPU", here + missing + INSTALL)]


@pytest.mark.compiler
def test_a_join_with_a_mask_and_a_vector_is_within_the_tolerance_in_qemu(tmp_path, monkeypatch):
    """Also with NaN and infinity in the padding, which the golden cases have; a wrong mask or vector is refused."""
    done = export_join(tmp_path / "b", ["armv8-a"])
    assert done.manifest.input_names == ("tokens", "mask", "state")
    (arm,) = done.manifest.programs
    for name in ("batch_1", "batch_7", "slice"):
        assert 0 < arm.cases[name].error <= arm.cases[name].tolerance
    monkeypatch.setattr("regplug.bundle.verify._check_compiled", lambda module, contents: [])
    checks = regplug.verify(tmp_path / "b", programs=True).checks
    rows = {one.case: one.verdict for one in checks if one.program == "aotinductor armv8-a"}
    assert [rows.pop(case) for case in arm.cases] == ["ok"] * 6
    assert {"too few tokens", "mask: no token", "mask: wrong width", "state: wrong batch"} <= set(rows)
    assert set(rows.values()) == {"refused"}


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("script", "got"),
    [
        (
            "echo 'qemu: uncaught target signal' >&2; kill -SEGV $$",
            "to run it, got SIGSEGV: qemu: uncaught target signal",
        ),
        ("sleep 60 & wait", "to end within 1 s, got no end"),
    ],
)
def test_a_program_that_the_emulator_cannot_run_is_not_written(bundle, tmp_path, monkeypatch, script, got):
    fake(tmp_path / "tools", QEMU[0], script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
    with pytest.raises(regplug.ExportError) as error:
        export(tmp_path / "b", time_limit=1)
    assert str(error.value) == (
        "program 'aotinductor': expected a program that runs, got: program 'aotinductor': armv8-a: expected "
        f"qemu-aarch64-static {got}."
    )
    assert not (tmp_path / "b").exists()


@pytest.mark.compiler
def test_a_program_that_needs_libtorch_cannot_be_run_there_and_is_refused(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    library = (bundle / ARM).read_bytes()
    monkeypatch.setattr(aotinductor, "compile_in_child", lambda *given, **more: library)
    own = set(called_functions(library)) - {"aoti_torch_empty_strided"}
    monkeypatch.setattr(aotinductor, "known_functions", lambda: own)
    with pytest.raises(regplug.ExportError) as error:
        export(tmp_path / "b")
    assert str(error.value) == (
        "program 'aotinductor': armv8-a: expected functions that regplug::runtime has, which runs it in the emulator, "
        "got aoti_torch_empty_strided; export on such a machine."
    )


@pytest.mark.compiler
def test_an_unknown_instruction_set_of_that_machine_is_one_line(tmp_path):
    with pytest.raises(regplug.ExportError) as error:
        export(tmp_path / "b", isa=["armv99-z"])
    assert str(error.value) == (
        "program 'aotinductor': isa: expected a name that /usr/bin/aarch64-linux-gnu-g++ takes for -march, or "
        "'native', got 'armv99-z'; known: armv8-a, armv8.2-a, armv9-a, ..."
    )


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("compiler", "emulator", "isa", "missing"),
    [(COMPILER, QEMU, "armv8-a", "avx2 zz"), ("c++", (), "x86-64-v3", "asimd zz")],
    ids=["aarch64", "here"],
)
def test_in_cpp_each_machine_has_its_own_flags_and_takes_its_own_program(compiler, emulator, isa, missing):
    program = compiled("arm_cpu.cpp", compiler=compiler)
    done = subprocess.run([*emulator, program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        0,
        f"{isa}\np: expected a CPU with {missing}, got one without; export with --isa {isa}.\n",
    )


def test_python_and_cpp_know_the_same_names_of_arms_features():
    text = (Path(regplug.__file__).parent / "include" / "regplug" / "detail" / "hwcap.h").read_text()
    first, second = re.findall(r"constexpr const char\* \w+\[\] = \{(.*?)\};", text, re.DOTALL)
    assert [re.findall(r'"(\w+)"', words) for words in (first, second)] == [
        words.split() for words in cpu.HWCAP.values()
    ]


# ---- more of them, and regplug-run


@pytest.mark.torture
@pytest.mark.compiler
@pytest.mark.parametrize("compiler", [f"{sys.executable} -m ziglang c++", "clang++ --target=aarch64-linux-gnu"])
def test_other_compilers_make_a_program_that_a_host_opens_and_closes(tmp_path, compiler):
    done = export(tmp_path / "b", compiler=compiler)
    assert done.manifest.programs[0].properties["cpu_flags"] == "asimd fp"
    given = torch.randn(3, 4, 24)
    save_file({"registers": given}, tmp_path / "in.safetensors")
    places = [tmp_path / "b", tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    subprocess.run([*QEMU, regplug_run(FOR_AARCH64), *places], check=True)
    torch.testing.assert_close(load_file(places[-1])["conditioning"], regplug.load(tmp_path / "b")(given))


@pytest.mark.torture
@pytest.mark.compiler
def test_a_compiler_that_links_no_cpp_library_is_named(tmp_path):
    with pytest.raises(regplug.ExportError, match="expected one that links the C.. library, as g.. does, got .*-gcc"):
        export(tmp_path / "b", compiler="aarch64-linux-gnu-gcc")
    assert not (tmp_path / "b").exists()


@pytest.mark.torture
@pytest.mark.compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_compile_too(tmp_path, dtype):
    spec = readout()
    done = export(tmp_path / "b", spec, trained(spec).to(dtype))
    assert done.manifest.programs[0].cases["batch_64"].error > 0


# as docs/programs.md says
FOR_AARCH64 = {
    "CMAKE_SYSTEM_NAME": "Linux",
    "CMAKE_SYSTEM_PROCESSOR": "aarch64",
    "CMAKE_CXX_COMPILER": COMPILER,
}


def regplug_run(settings=()):
    source = Path(regplug.__file__).parent / "share" / "regplug-run"
    return built_with({"REGPLUG_RUN_WITH": "runtime", **dict(settings)}, source=source) / "regplug-run"


@pytest.mark.torture
@pytest.mark.compiler
def test_each_machine_takes_its_own_program_of_a_bundle_with_three(tmp_path):
    spec, module = conditioner("prefix")
    module = module.eval()
    export(tmp_path / "b", spec, module, isa=["armv8-a", "x86-64-v2", "x86-64-v3"])
    tokens = torch.randn(3, 9, 24)
    save_file({"tokens": tokens}, tmp_path / "in.safetensors")
    wanted = [tensor for pair in module(tokens) for tensor in pair]
    places = [tmp_path / "b", tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    here, there = regplug_run(), regplug_run(FOR_AARCH64)
    for command in ([here], [*QEMU, there]):
        done = subprocess.run([*command, *places], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        found = load_file(places[-1])
        got = [found[f"{name}_{i}"] for i in range(len(wanted) // 2) for name in ("gamma", "beta")]
        torch.testing.assert_close(got, wanted)
        places[-1].unlink()
    # each is refused what is only for the other
    export(tmp_path / "c", spec, module, isa=["armv8-a"])
    done = subprocess.run([here, tmp_path / "c", *places[1:]], capture_output=True, text=True, check=False)
    assert "expected a CPU with asimd fp, got one without; export with --isa x86-64-v3." in done.stderr


@pytest.mark.torture
@pytest.mark.compiler
def test_regplug_run_takes_a_mask_there_and_refuses_a_wrong_one(tmp_path):
    arm, _ = export_join(tmp_path / "b", ["armv8-a", "x86-64-v3"]).manifest.programs
    program = regplug.load(tmp_path / "b", program="aotinductor")
    tokens, state = torch.randn(2, 9, 24), torch.randn(2, 5)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    wanted = program(tokens, mask=mask, vectors={"state": state})
    tokens[1, 4:] = float("nan")
    places = [tmp_path / "b", tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    command = [*QEMU, regplug_run(FOR_AARCH64), *places]
    save_file({"tokens": tokens, "mask": mask, "state": state}, places[1])
    subprocess.run(command, check=True)
    tolerance = arm.cases["batch_2"].tolerance
    torch.testing.assert_close(load_file(places[2])["conditioning"], wanted, rtol=0, atol=tolerance)
    mask[1, 1:] = False
    save_file({"tokens": tokens, "mask": mask, "state": state}, places[1])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with pytest.raises(regplug.ShapeError) as error:
        program(tokens, mask=mask, vectors={"state": state})
    assert (done.returncode, done.stderr) == (1, f"error: {error.value}\n")

"""The compiler's environment: temporary folders, commands of several words, no home, no working directory, locales."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.battery import in_battery

import regplug
from regplug.backends import program_folder as folders
from regplug.backends.compiler import compiler_words
from regplug.backends.inductor_folder import private_inductor_folder
from regplug.format import working_directory

EXPORT = "export mean --num-registers 3 --hidden-dim 7 --backend aotinductor -o OUT"
MAY_MOUNT = os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


@pytest.fixture
def run(tmp_path):
    def started(command, before="", **variables):
        script = f"import os\n{before}\nfrom regplug.commands.main import main\nmain()"
        words = command.replace("OUT", str(tmp_path / "out")).split()
        env = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "CXX")}
        env |= {"REGPLUG_CACHE_DIR": str(tmp_path / "cache")} | variables
        return subprocess.run(
            [sys.executable, "-c", script, *words], env=env, capture_output=True, text=True, check=False
        )

    return started


@pytest.fixture
def bundle(tmp_path):
    spec = regplug.resolve("mean", num_registers=3, hidden_dim=7)
    return regplug.export(spec, spec.build(), tmp_path / "b").directory


# ---- the temporary folder


@pytest.mark.parametrize("name", ["my tmp", "it's", 'a"b', "é", "a$HOME", "a;b", "a\\b"])
def test_a_temporary_folder_with_a_path_that_compilers_reject_is_not_used(tmp_path, monkeypatch, name):
    unusual = tmp_path / name
    unusual.mkdir()
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(unusual))
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    assert folders.program_folder() == tmp_path / "cache"
    assert "other characters" in folders.why_not(unusual)


def test_if_no_folder_is_usable_the_result_is_none_and_the_reason_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "my cache"))
    monkeypatch.setattr(folders, "OTHERS", ())
    assert folders.program_folder() is None
    assert folders.why_not(tmp_path / "none") == "which cannot be used: No such file or directory"


def test_a_plain_temporary_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
    assert folders.program_folder() == tmp_path


@pytest.mark.skipif(not MAY_MOUNT, reason="may not mount")
def test_a_noexec_folder_is_not_used(tmp_path):
    code = "import sys\nfrom pathlib import Path\nfrom regplug.backends.program_folder import *\n"
    code += "print(why_not(Path(sys.argv[1])), program_folder())"
    mount = 'mount -t tmpfs -o noexec none "$1" && TMPDIR="$1" REGPLUG_CACHE_DIR="$1/c" exec "$2" -c "$3" "$1"'
    words = ["unshare", "-m", "sh", "-c", mount, "sh", tmp_path, sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "which is mounted noexec /tmp\n"


@pytest.mark.torture
@pytest.mark.compiler
def test_a_program_compiles_with_an_unusual_temporary_folder_and_a_compiler_of_several_words(run, tmp_path):
    unusual = tmp_path / "it's my tmp"
    unusual.mkdir()
    done = run(EXPORT, TMPDIR=str(unusual), CXX="g++ -pipe")
    assert done.returncode == 0, done.stderr
    assert not list(unusual.glob("regplug-*"))


# ---- the compiler


@pytest.mark.compiler
def test_a_compiler_may_be_a_path_with_spaces_or_a_command_of_several_words(tmp_path, monkeypatch):
    compiler = shutil.which("c++")
    (tmp_path / "my tools").mkdir()
    spaced = tmp_path / "my tools" / "c++"
    spaced.symlink_to(compiler)
    for given, words in {
        "": [compiler],
        "c++": [compiler],
        "c++ -pipe": [compiler, "-pipe"],
        "  c++   -pipe ": [compiler, "-pipe"],
        str(spaced): [str(spaced)],
        f"'{spaced}' -O1": [str(spaced), "-O1"],
        "no-such-compiler": None,
        "no-such-compiler -pipe": None,
        "'": None,
        "   ": None,
    }.items():
        monkeypatch.setenv("CXX", given)
        assert compiler_words() == words, given


@pytest.mark.compiler
def test_torch_compile_gets_a_script_for_a_command_of_several_words(tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("CXX", "c++ -pipe -DNAME='a b'")
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    before = config.cpp.cxx
    for _ in range(2):
        with private_inductor_folder():
            _, program = config.cpp.cxx
            done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
            shown = subprocess.run([program, "-###", "-E", "-"], capture_output=True, text=True, check=False).stderr
    assert "Free Software" in done.stdout
    assert "NAME=a b" in shown
    assert config.cpp.cxx == before
    assert [path.name for path in Path(program).parent.iterdir()] == [Path(program).name]


@pytest.mark.compiler
def test_the_doctor_runs_a_command_of_several_words(monkeypatch):
    from regplug.commands.doctor.environment import check_compiler

    monkeypatch.setenv("CXX", "c++ -pipe")
    assert (check_compiler(lambda: False).level, " -pipe)" in check_compiler(lambda: False).found) == ("ok", True)
    monkeypatch.setenv("CXX", "c++ --no-such-option")
    assert check_compiler(lambda: False).level == "warning"


# ---- no home, no name, no working directory, no letters


GONE = "os.mkdir({0!r}); os.chdir({0!r}); os.rmdir({0!r})"


UNKNOWN_USER = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]


@pytest.mark.torture
@pytest.mark.compiler
@pytest.mark.skipif(subprocess.run([*UNKNOWN_USER, "true"], check=False).returncode != 0, reason="no user namespaces")
def test_a_user_without_name_and_home_can_export_and_one_line_says_that_the_cache_is_off(tmp_path):
    names = ("HOME", "REGPLUG_CACHE_DIR", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
    env = {name: value for name, value in os.environ.items() if name not in names and "INDUCTOR" not in name}
    code = "from regplug.commands.main import main; main()"
    for command, lines in ((EXPORT, 2), ("verify OUT --programs", 0)):
        words = command.replace("OUT", str(tmp_path / "out")).split()
        done = subprocess.run(
            [*UNKNOWN_USER, sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (0, lines), done.stderr
        assert ("no home directory; set REGPLUG_CACHE_DIR" in done.stderr) == bool(lines)


@pytest.mark.parametrize("command", ["list", "verify BUNDLE", "export mean --num-registers 3 --hidden-dim 7 -o OUT"])
def test_a_command_in_a_deleted_working_directory_says_so_in_one_line(run, bundle, tmp_path, command):
    done = run(command.replace("BUNDLE", str(bundle)), GONE.format(str(tmp_path / "gone")))
    assert (done.returncode, done.stderr) == (1, f"error: {working_directory.GONE}\n")


def test_in_a_deleted_working_directory_python_raises_before_torch_crashes(bundle, tmp_path):
    code = "import os, sys, regplug\nspec = regplug.resolve('mean', num_registers=3, hidden_dim=7)\n"
    code += GONE.format(str(tmp_path / "gone"))
    code += "\nfor call in (lambda: regplug.load(sys.argv[1]), lambda: regplug.verify(sys.argv[1]),"
    code += (
        " lambda: regplug.export(spec, spec.build(), sys.argv[2]), lambda: regplug.export(spec, spec.build(), 'b')):"
    )
    code += "\n    try:\n        call()\n    except regplug.RegplugError as error:"
    code += "\n        print(type(error).__name__, 'no longer exists' in str(error))"
    words = [sys.executable, "-c", code, bundle, tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*2 * ["BundleError True"], *2 * ["ExportError True"]]


@pytest.mark.compiler
@pytest.mark.parametrize("utf8", ["0", *in_battery("1")])
def test_a_path_with_letters_beyond_the_locale_works(run, tmp_path, utf8):
    locale = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": utf8}
    place = tmp_path / "büß"
    done = run(f"export mean --num-registers 3 --hidden-dim 7 -o {place}", **locale)
    assert done.returncode == 0, done.stderr
    # without UTF-8 torch.compile cannot read torch's own files
    words = " --programs" if utf8 == "1" else ""
    done = run(f"verify {place}{words}", **locale, REGPLUG_CACHE_DIR=str(tmp_path / "é"))
    assert done.returncode == 0, done.stderr


# ---- no files in memory


@pytest.mark.compiler
@pytest.mark.parametrize("number", [1, 38])
def test_a_program_runs_without_memfd_create(tmp_path, number):
    shim = tmp_path / "lacking.so"
    source = Path(__file__).resolve().parents[1] / "cpp" / "lacking.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    code = "import os, sys\ntry:\n    os.memfd_create('x')\nexcept OSError as error:\n    print(error.errno)\n"
    code += "from regplug.backends.model_library import _sealed\ndescriptor = _sealed(b'program')\n"
    code += "print(os.pread(descriptor, 99, 0), os.readlink(f'/proc/self/fd/{descriptor}').endswith('(deleted)'))\n"
    code += "try:\n    os.write(descriptor, b'x')\nexcept OSError:\n    print('closed to writing')"
    env = os.environ | {"LD_PRELOAD": str(shim), "LACKING": f"memfd_create={number}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{number}\nb'program' True\nclosed to writing\n"

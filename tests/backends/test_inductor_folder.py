"""torch.compile, when regplug calls it, loads nothing that another user may have written."""

import getpass
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import regplug
from regplug.backends import cache
from regplug.backends.inductor_folder import private_inductor_folder
from regplug.commands.bench.measure import bench
from regplug.commands.bench.report import Plan
from regplug.conformance.compiled import compiled
from regplug.conformance.run import subject_of

NAME = "TORCHINDUCTOR_CACHE_DIR"
COMPILING = """
import os, sys
from pathlib import Path
import torch, torch._dynamo
import regplug

bundle, hostile = sys.argv[1:]
found = regplug.verify(bundle, programs=True)
assert [one.verdict for one in found.checks if one.program == "torch.compile"] == ["ok"] * 6
maps = Path("/proc/self/maps").read_text()
print(hostile in maps, f"{os.environ['REGPLUG_CACHE_DIR']}/inductor/" in maps)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(NAME, raising=False)
    return tmp_path / "cache" / "inductor"


@pytest.mark.torture
@pytest.mark.compiler
def test_a_folder_that_another_user_made_for_torch_is_neither_read_nor_written(tmp_path):
    spec = regplug.resolve("mean", num_registers=2, hidden_dim=8)
    regplug.export(spec, spec.build(), tmp_path / "b", backends=[])
    hostile = tmp_path / "tmp" / f"torchinductor_{getpass.getuser()}"
    hostile.mkdir(parents=True)
    hostile.chmod(0o777)
    os.utime(hostile, (0, 0))
    env = {name: value for name, value in os.environ.items() if name != NAME}
    env |= {"TMPDIR": str(tmp_path / "tmp"), "REGPLUG_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", COMPILING, tmp_path / "b", hostile]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False True\n"), done.stderr
    assert hostile.stat().st_atime == 0
    assert list(hostile.iterdir()) == []
    assert (tmp_path / "cache" / "inductor").stat().st_mode & 0o777 == 0o700


def test_the_users_own_folder_is_used_and_the_environment_is_as_before(folder, tmp_path, monkeypatch):
    with private_inductor_folder():
        assert os.environ[NAME] == str(folder)
    assert NAME not in os.environ
    monkeypatch.setenv(NAME, str(tmp_path / "own"))
    with private_inductor_folder():
        assert os.environ[NAME] == str(tmp_path / "own")
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    (tmp_path / "own").chmod(0o777)
    with private_inductor_folder():
        assert os.environ[NAME] == str(folder)
    assert os.environ[NAME] == str(tmp_path / "own")


def test_bench_and_check_use_the_folder_too(folder, monkeypatch):
    seen = []

    def compile_nothing(module, **_):
        def run(given):
            seen.append(os.environ.get(NAME))
            return module(given)

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    spec = regplug.resolve("pool", num_registers=2, hidden_dim=8)
    compiled(subject_of(spec, backends=[]))
    assert set(seen) == {str(folder)}
    seen.clear()
    bench([spec], None, Plan([1], modes=["compile"], rounds=1))
    assert set(seen) == {str(folder)}


@pytest.mark.parametrize("shared", ["cache", "cache/inductor"])
def test_if_others_may_write_into_the_cache_a_new_folder_is_made_and_deleted(folder, tmp_path, shared):
    folder.mkdir(parents=True)
    (tmp_path / shared).chmod(0o777)
    with private_inductor_folder():
        new = os.environ[NAME]
        assert new != str(folder)
        assert Path(new).stat().st_mode & 0o777 == 0o700
    assert not Path(new).exists()
    assert list(folder.iterdir()) == []


def test_threads_share_the_folder_and_the_last_restores_the_environment(folder):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with private_inductor_folder():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with private_inductor_folder():
        thread.start()
        entered.wait()
    assert os.environ[NAME] == str(folder)
    leave.set()
    thread.join()
    assert NAME not in os.environ


def test_without_any_usable_folder_one_line_says_what_to_set(folder, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", "/proc/none")
    monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    monkeypatch.setattr("regplug.backends.program_folder.OTHERS", ("/proc/none",))
    with pytest.raises(regplug.ExportError) as error, private_inductor_folder():
        pass
    assert str(error.value) == (
        "torch.compile: expected a folder for what it compiles, got /proc/none, which cannot be used: No such file or "
        "directory; set TMPDIR."
    )
    assert NAME not in os.environ


def test_prune_deletes_an_unused_folder(folder):
    with private_inductor_folder():
        (folder / "ab").mkdir()
        (folder / "ab" / "library.so").write_bytes(b"x")
    cache.prune(days=30)
    assert folder.exists()
    os.utime(folder, (time.time() - 31 * cache.DAY_S,) * 2)
    cache.prune(days=30)
    assert not folder.exists()

"""Programs without libtorch in a root folder that has nothing but them and the C and C++ libraries."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.consumer import built_with, built_without_libtorch, readout

import regplug

pytestmark = pytest.mark.compiler

C_LIBRARIES = {"libm.so.6", "libc.so.6"}
LIBRARIES = {"libstdc++.so.6", "libgcc_s.so.1", *C_LIBRARIES}
# arguments: the root folder, then a command in it
ENTER = 'mount --rbind /proc "$1/proc" && exec chroot "$@"'
ENTER_WITHOUT_PROC = 'exec chroot "$@"'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "b"
    regplug.export(*readout("compress-concat"), folder, backends=["aotinductor"])
    return folder


@pytest.fixture(scope="module")
def own_mounts():
    """The command that runs another one which may mount and change its root folder, as any user or else as root."""
    for command in (["unshare", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("expected user namespaces or root's right to mount, got neither")


def libraries(path):
    """The paths of all libraries that the dynamic linker finds for a file, without the linker's own."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    return {Path(found) for found in re.findall(r" => (/\S+) \(0x", listed)}


def root_folder(folder, program, bundle):
    """A root folder with a program, its libraries and those of the bundle's program."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    linker = re.findall(r"^\s*(/\S*ld-linux\S*) ", listed, re.MULTILINE)
    [of_bundle] = map(libraries, bundle.glob("*.so"))
    for path in (*libraries(program), *of_bundle, *linker):
        place = folder / str(path).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    shutil.copy(program, folder / "program")
    shutil.copytree(bundle, folder / "bundle")
    (folder / "proc").mkdir()
    return folder


def run_inside(own_mounts, root, *arguments, enter=ENTER):
    command = [*own_mounts, "sh", "-c", enter, "sh", root, "/program", "/bundle", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_c_program_runs_a_bundle_where_only_the_c_and_cpp_libraries_are(bundle, own_mounts, tmp_path):
    program = built_without_libtorch() / "run_in_c"
    assert {path.name for path in libraries(program)} == {"libregplug.so.1", *LIBRARIES}
    root = root_folder(tmp_path / "root", program, bundle)
    code, out, err = run_inside(own_mounts, root)
    assert (code, err) == (0, "")
    numbers = [float(number) for number in out.splitlines()[1].split()[1:]]
    torch.testing.assert_close(torch.tensor(numbers), regplug.load(bundle)(torch.ones(2, 4, 24)).flatten())
    # a program of the bundle is opened through /proc
    code, out, _ = run_inside(own_mounts, root, enter=ENTER_WITHOUT_PROC)
    line = "expected /proc, through which a program is opened, got none; mount it."
    assert (code, out) == (1, f"bundle /bundle: program.aotinductor.x86-64-v3.so: {line}\n")


@pytest.mark.torture
@pytest.mark.parametrize(
    ("flags", "linked"), [("", LIBRARIES), ("-static-libstdc++ -static-libgcc", C_LIBRARIES)], ids=["shared", "static"]
)
def test_so_does_regplug_run_which_may_have_the_cpp_library_inside(bundle, own_mounts, tmp_path, flags, linked):
    settings = {"REGPLUG_RUN_WITH": "runtime", "CMAKE_EXE_LINKER_FLAGS": flags}
    program = built_with(settings, source=Path(regplug.__file__).parent / "share" / "regplug-run") / "regplug-run"
    assert {path.name for path in libraries(program)} == linked
    root = root_folder(tmp_path / "root", program, bundle)
    given = torch.randn(3, 4, 24)
    save_file({"registers": given}, root / "in.safetensors")
    assert run_inside(own_mounts, root, "/in.safetensors", "/out.safetensors") == (0, "", "")
    torch.testing.assert_close(load_file(root / "out.safetensors")["conditioning"], regplug.load(bundle)(given))

"""Installed plugins that misbehave: the host survives each kind, and names the plugin."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.distributions import write_distribution
from support.environment import clean_environment
from support.forked_python import ForkedPython
from support.misbehaving_plugins import ASKING, ENDLESS, EVIL, GOOD, GOOD_MODELS, HOOK, NOISY, SHOWN, TEXT

Run = Callable[..., subprocess.CompletedProcess[str]]
Add = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a good plugin, to which others are added."""
    folder = tmp_path / "site"
    folder.mkdir()
    modules = {"good_plugin.py": GOOD, "good_models.py": GOOD_MODELS}
    write_distribution(folder, "good", modules, {"regplug_v1": {"x": "good_plugin"}})
    return folder


@pytest.fixture
def add(site: Path) -> Add:
    """Install a plugin next to the good one, named ``evil`` by default."""

    def install(text: str, name: str = "evil") -> None:
        info = site / f"{name}-1.0.dist-info"
        if info.exists():
            (site / f"{name}.py").write_text(text)
        else:
            write_distribution(site, name, {f"{name}.py": text}, {"regplug_v1": {"x": name}})

    return install


@pytest.fixture
def python(site: Path, tmp_path: Path, with_torch: ForkedPython) -> Run:
    """Run Python in an empty folder with the plugins installed; a process that hangs fails the test.

    With options for ``subprocess.run`` it is a new interpreter, without them a fork.
    """
    (tmp_path / "here").mkdir()

    def run(*words: str, env: Mapping[str, str] = {}, **more: Any) -> subprocess.CompletedProcess[str]:
        own = {"PYTHONPATH": str(site), "REGPLUG_CACHE_DIR": str(tmp_path / "cache")}
        variables = {**clean_environment(), **own, **env}
        if not more:
            return with_torch.run(words, tmp_path / "here", variables)
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path / "here",
            env=variables,
            text=True,
            timeout=120,
            check=False,
            **more,
        )

    return run


@pytest.fixture
def regplug_command(python: Run) -> Run:
    """Run the command as a user does."""
    return lambda *words, **more: python("-m", "regplug", *words, **more)


SIZES = ("--num-registers", "2", "--hidden-dim", "3")
CREATE = (
    "import regplug, torch\n"
    "print(tuple(regplug.create('fine', num_registers=2, hidden_dim=3)(torch.zeros(5, 2, 3)).shape))"
)


# ---- exceptions and objects that fail when they are printed


def test_a_plugin_with_objects_that_cannot_be_printed_is_broken_and_hides_no_other(
    add: Add, regplug_command: Run
) -> None:
    kinds = {
        f"evil{number}": EVIL[kind].format(act=act)
        for number, (kind, act) in enumerate((kind, act) for kind in EVIL for act in SHOWN)
    }
    for name, text in kinds.items():
        add(text, name)
    done = regplug_command("list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    listed = json.loads(done.stdout)
    assert "fine" in [one["name"] for one in listed["strategies"]]
    statuses = {one["distribution"]: one["status"] for one in listed["plugins"]}
    assert {statuses[name] for name in kinds} == {"broken"}
    errors = {one["distribution"]: one["error"] for one in listed["plugins"]}
    assert [name for name in kinds if not errors[name].startswith(f"plugin {name!r}: ")] == []


@pytest.mark.slow
def test_an_exception_that_exits_when_it_is_printed_ends_no_export_and_no_program(
    add: Add, regplug_command: Run, python: Run, tmp_path: Path
) -> None:
    add(EVIL["an exception"].format(act=SHOWN[0]))
    done = regplug_command("export", "fine", *SIZES, "--no-programs", "-o", "out")
    assert (done.returncode, (tmp_path / "here/out/manifest.json").is_file()) == (0, True), done.stderr
    assert python("-c", CREATE).stdout.strip() == "(5, 3)"
    done = regplug_command("cond-dim", "evil:any", *SIZES)
    assert done.returncode == 3
    said, place = done.stderr.splitlines()[0].split(" (")
    assert said == "error: strategy 'evil:any': plugin 'evil': expected to import 'evil', got E: <no message>"
    assert place.endswith("evil.py:4)")


def test_errors_that_cannot_be_printed_are_reported(add: Add, regplug_command: Run, site: Path) -> None:
    add(HOOK.format(name="evil").replace("good_models:Fine", "evil_models:Evil"))
    for place in ("import", "constructor"):
        raising = "class E(BaseException):\n    def __str__(self): raise SystemExit(0)\n"
        inner = "raise E" if place == "import" else "class Evil:\n    def __init__(self, hidden_dim: int): raise E"
        (site / "evil_models.py").write_text(raising + inner)
        done = regplug_command("cond-dim", "evil", *SIZES)
        assert (done.returncode, done.stdout) == ({"import": 3, "constructor": 2}[place], "")
        said = {"import": "got E: <no message>", "constructor": "got hidden_dim=3: E: <no message>"}[place]
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_long_message_is_cut_and_cannot_control_the_terminal(add: Add, regplug_command: Run) -> None:
    add("raise ValueError('\\x1b[31m\\u202e' + 'long ' * 10_000_000)")
    done = regplug_command("list")
    assert done.returncode == 0
    [line] = [line for line in done.stdout.splitlines() if line.startswith("evil ")]
    assert "got ValueError: [31m long long" in line
    assert line.isprintable()
    assert len(line) < 600


def test_a_summary_cannot_control_the_terminal(add: Add, regplug_command: Run) -> None:
    add(HOOK.format(name="evil").replace('")]', '", summary="red \\x1b[31m, turned \\u202e, café")]'))
    for words in (["list"], ["info", "evil"]):
        done = regplug_command(*words)
        assert (done.returncode, done.stderr) == (0, "")
        [line] = [line for line in done.stdout.splitlines() if "turned" in line]
        assert line.rstrip().endswith("red \\x1b[31m, turned \\u202e, café")


# ---- names of a subclass of str


def exact_everywhere(value: Any) -> bool:
    """Whether every text in a value is exactly ``str``."""
    if isinstance(value, dict):
        return all(map(exact_everywhere, [*value.keys(), *value.values()]))
    if isinstance(value, (list, tuple)):
        return all(map(exact_everywhere, value))
    return type(value) is str or not isinstance(value, str)


@pytest.mark.parametrize("act", ["raise SystemExit(0)", "return True"])
def test_a_subclass_of_text_is_taken_as_plain_text(act: str, add: Add, python: Run) -> None:
    add(TEXT.format(act=act))
    code = (
        "import json, sys, regplug\nfrom dataclasses import fields\n"
        f"sys.path[:0] = {[str(Path(__file__).parents[n]) for n in (0, 1)]!r}\n"
        "from test_hostile_plugins import exact_everywhere\n"
        "r = regplug.default_registry()\n"
        "every = [*r.readout_entries(), *r.film_entries(), *r.backbone_entries()]\n"
        "names = [e.name for e in every if e.provenance.distribution == 'evil']\n"
        "plain = all(exact_everywhere(getattr(e, f.name)) for e in every for f in fields(e))\n"
        "found = [r.readout_entry(name).full_name for name in ('fine', 'evil')]\n"
        "try: r.readout_entry('nobody')\n"
        "except regplug.NameLookupError: print(json.dumps([names, [plain, *found]]))"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["evil", "film", "vit"], [True, "good:fine", "evil:evil"]]


# ---- plugins that never end


@pytest.mark.parametrize("name", ["pool", "regplug:pool"])
def test_a_thread_that_a_plugin_waits_for_at_its_import_finds_the_built_in_names(
    name: str, add: Add, python: Run
) -> None:
    add(ASKING.format(name=name) + HOOK.format(name="evil"))
    done = python("-c", "import regplug; assert 'evil' in regplug.strategies(); import evil; print(*evil.said)")
    assert (done.returncode, done.stdout) == (0, "regplug:pool\n"), done.stderr


def test_another_name_is_an_error_in_it_after_a_limit(add: Add, python: Run) -> None:
    add(ASKING.format(name="fine") + HOOK.format(name="evil"))
    code = (
        "import regplug, regplug.registry.import_lock\nregplug.registry.import_lock.IMPORT_LIMIT_S = 0.5\n"
        "print(*[name for name in regplug.strategies() if name in ('evil', 'fine')])\nimport evil; print(*evil.said)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "evil fine\nplugin 'evil': expected an import that ends within 0.5 s, got one that goes on in another thread; "
        "a plugin must not use the registry from another thread while it is imported.\n"
    )


def test_a_fork_in_a_thread_that_a_plugin_waits_for_ends(add: Add, python: Run) -> None:
    forking = (
        "import os, threading\ndef fork():\n    child = os.fork()\n    child or os._exit(0)\n    os.waitpid(child, 0)\n"
    )
    add(
        f"{forking}forking = threading.Thread(target=fork)\nforking.start()\nforking.join()\n"
        + HOOK.format(name="evil")
    )
    code = "import regplug\nfrom regplug.registry import fork_locks\nfork_locks.FORK_LIMIT_S = 0.5\n"
    code += "print('evil' in regplug.strategies())"
    done = python("-c", f"import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n{code}")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_endless_iterables_are_refused_at_a_limit(add: Add, regplug_command: Run) -> None:
    for number, (text, _) in enumerate(ENDLESS.values()):
        add(text, f"evil{number}")
    done = regplug_command("list", "--json", preexec_fn=_limit_memory)
    assert (done.returncode, done.stderr) == (0, "")
    listed = json.loads(done.stdout)
    errors = [one["error"] for one in listed["plugins"] if one["distribution"].startswith("evil")]
    for number, (error, (_, said)) in enumerate(zip(errors, ENDLESS.values(), strict=True)):
        assert error.startswith(f"plugin 'evil{number}': ")
        assert error.endswith(said)
    assert "fine" in [one["name"] for one in listed["strategies"]]


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))


def test_ten_thousand_entries_of_one_hook_are_accepted(add: Add, python: Run) -> None:
    add(
        "import regplug\n@regplug.hookimpl\ndef regplug_readouts():\n"
        "    return [regplug.ReadoutEntry(f'r{n}', 'a:b') for n in range(10_000)]"
    )
    assert python("-c", "import regplug; print(len(regplug.strategies()) > 10_000)").stdout == "True\n"


# ---- what an import changes in the process


def test_an_import_that_changes_the_working_folder_does_not_move_the_output(
    add: Add, regplug_command: Run, python: Run, site: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    moving = f"import os\nos.chdir({str(tmp_path / 'elsewhere')!r})\n"
    add(moving + HOOK.format(name="evil").replace("good_models", "evil_models"))
    constructor = GOOD_MODELS.replace("super().__init__()", f"super().__init__(); {moving}".replace("\n", "; "))
    (site / "evil_models.py").write_text(moving + constructor)
    done = regplug_command("export", "evil", *SIZES, "--no-programs", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("bundle out: ")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["out"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    code = "import os, regplug; here = os.getcwd(); regplug.strategies()\n"
    code += "from regplug.registry.references import load_reference; load_reference('x', 'evil_models:Fine')\n"
    code += "print(os.getcwd() == here)"
    assert python("-c", code).stdout == "True\n"


def test_a_child_that_a_plugin_forks_does_nothing(add: Add, regplug_command: Run, tmp_path: Path) -> None:
    add("import os\nif not os.fork(): open('copied', 'w').close()\n" + HOOK.format(name="evil"))
    done = regplug_command("list", "--json")
    assert done.returncode == 0, done.stderr
    assert "evil" in [one["name"] for one in json.loads(done.stdout)["strategies"]]


# ---- data on stdout, everything else on stderr, and an exit


@pytest.mark.parametrize("kind", NOISY)
def test_stdout_has_only_the_commands_data_and_the_exit_code_is_its_own(
    kind: str, add: Add, regplug_command: Run
) -> None:
    add(NOISY[kind] + HOOK.format(name="evil"))
    # a forked copy may keep stderr open, so it goes to a file; reading stdout must end
    with tempfile.TemporaryFile("w+") as stderr:
        done = regplug_command("list", "--json", input="the user's own words\n", stderr=stderr)
        stderr.seek(0)
        said = stderr.read()
    assert done.returncode == 0, said
    listed = json.loads(done.stdout)
    assert "fine" in [one["name"] for one in listed["strategies"]]
    [evil] = [one for one in listed["plugins"] if one["distribution"] == "evil"]
    if kind == "asks the user":
        assert "got EOFError: EOF when reading a line (" in evil["error"]
    else:
        assert evil["status"] == "ok"
    assert "Traceback" not in said
    if kind not in ("leaves a thread", "exits with success at exit"):
        return
    done = regplug_command("cond-dim", "nobody", *SIZES)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: strategy 'nobody': not registered; ")


@pytest.mark.slow
def test_what_a_readout_prints_is_not_the_exports_output_and_its_exit_is_an_error(
    add: Add, regplug_command: Run, site: Path, tmp_path: Path
) -> None:
    add(HOOK.format(name="evil").replace("good_models", "evil_models"))
    noisy = GOOD_MODELS.replace("super().__init__()", "super().__init__(); print('noise')")
    (site / "evil_models.py").write_text("import os; os.write(1, b'noise')\n" + noisy)
    done = regplug_command("export", "evil", *SIZES, "--no-programs", "--json", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["directory"] == "out"
    assert done.stderr.count("noise") >= 2
    # not on the meta device, so that the spec is made
    exiting = "if registers.device.type != 'meta': raise SystemExit(0)\n        return registers[:, 0]"
    (site / "evil_models.py").write_text(GOOD_MODELS.replace("return registers[:, 0]", exiting))
    done = regplug_command("export", "evil", *SIZES, "--no-programs", "-o", "other")
    assert (done.returncode, done.stdout) == (1, "")
    assert "got SystemExit: 0" in done.stderr
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["out"]


@pytest.mark.parametrize("words", [["--help"], ["list", "--help"], ["--version"], ["cache"], ["cache", "prune"]])
def test_output_of_click_reaches_stdout(words: list[str], regplug_command: Run) -> None:
    done = regplug_command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_completion_gives_only_names(add: Add, python: Run) -> None:
    add("print('noise')\n" + HOOK.format(name="evil"))
    asked = {"_REGPLUG_COMPLETE": "bash_complete", "COMP_WORDS": "regplug cond-dim evi", "COMP_CWORD": "2"}
    done = python("-c", "import sys; sys.argv = ['regplug']; from regplug.commands.main import main; main()", env=asked)
    assert (done.returncode, done.stdout) == (0, "plain,evil\n")


def test_a_closed_stdout_is_reported_in_one_line_and_a_closed_stderr_is_ignored(regplug_command: Run) -> None:
    done = regplug_command("list", stdout=None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (1, "error: stdout: Bad file descriptor\n")
    done = regplug_command("list", stderr=None, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["strategies", "from"])


@pytest.mark.parametrize("emptying", ["sys.path[:] = []", "sys.path = None"])
def test_a_plugin_that_empties_the_path_hides_no_other(emptying: str, add: Add, regplug_command: Run) -> None:
    add(f"import sys\n{emptying}\n" + HOOK.format(name="evil"))
    done = regplug_command("cond-dim", "evil", *SIZES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_a_failed_import_is_reported_on_one_line(python: Run) -> None:
    code = "import sys; sys.argv = ['regplug', 'list']; sys.modules['regplug.registry.default'] = None\n"
    done = python("-c", code + "from regplug.commands.main import main; main()")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: import of regplug.registry.default halted; ")
    assert len(done.stderr.splitlines()) == 1

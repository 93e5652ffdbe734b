"""The doctor: plugins that are broken in every way it knows, installed with two good ones and examined in one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import regplug
from regplug.backends.child_process import MAX_OUTPUT, run_bounded, until
from regplug.commands.doctor import environment
from regplug.commands.doctor.command import doctor_command
from regplug.commands.doctor.diagnostics import OK, PROBLEM, WARNING, clip, worst
from regplug.commands.doctor.environment import check_cache, check_cmake, check_compiler, check_headers, check_json
from regplug.commands.doctor.metadata import check_metadata, malformed
from regplug.commands.doctor.monkeypatches import replaced, snapshot
from regplug.commands.doctor.plugin import examine_plugin
from regplug.errors import shorten
from regplug.registry import references, staging
from regplug.registry.discovery import Found

Installer = Callable[..., Path]
Python = Callable[..., subprocess.CompletedProcess[str]]

TIME_LIMIT = 5  # the plugin that hangs takes all of it
READOUTS, PLUGIN = "[regplug_readouts_v1]", "[regplug_v1]"
DOCTOR = "from regplug.commands.doctor.command import doctor_command; doctor_command({arguments!r})"
WITHOUT_ENVIRONMENT = "from regplug.commands.doctor import run; run.CHECKS = (); "  # the import of torch takes seconds

GOOD = """
from torch import nn

class Attend(nn.Module):
    def forward(self, registers):
        return registers.mean(1)
"""
FINE = """
import regplug

@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("last", "fine_models:Last")]

@regplug.hookimpl
def regplug_backbones():
    return [regplug.BackboneEntry("fine-vit", "fine_models:ViT", layout="fine_models:layout", readouts=("last",))]
"""
FINE_MODELS = """
print("heavy modules may print")
from torch import nn

class Last(nn.Module):
    def forward(self, registers):
        return registers[:, -1]

ViT = layout = nn.Identity
"""
HANGING = """
import os, pathlib, subprocess, time
child = subprocess.Popen(["sleep", "300"])
pathlib.Path(os.environ["GRANDCHILD"]).write_text(str(child.pid))
while True:
    time.sleep(1)
"""
PATCHING = """
import regplug.registry.entries, regplug.registry.staging
import regplug.registry.width_formula
def stage(*arguments):
    return {}
regplug.registry.entries.Entry.label = property(lambda self: "mine")
regplug.registry.staging.stage = stage
regplug.registry.width_formula.explain = stage  # no other module has loaded it before
regplug.registry.staging.HELPER = 1
"""
DANGLING = """
import regplug

@regplug.hookimpl
def regplug_readouts():
    return [
        regplug.ReadoutEntry("typo", "dangling_model:Typo"),
        regplug.ReadoutEntry("gone", "dangling_models:Gone"),
        regplug.ReadoutEntry("value", "dangling_models:value"),
        regplug.ReadoutEntry("wants", "dangling_wants:Wants"),
        regplug.ReadoutEntry("wants-too", "dangling_wants:WantsToo"),
        regplug.ReadoutEntry("borrowed", "lent_package.models:Borrowed"),
    ]

@regplug.hookimpl
def regplug_films():
    return [regplug.FiLMEntry("not-checked", "no_such_package:FiLM")]

@regplug.hookimpl
def regplug_backbones():
    sites = "dangling_models:no_sites"
    return [regplug.BackboneEntry("vit", "dangling_models:fine", layout="dangling_models:fine", film_sites=sites)]
"""
# a stub of torch, because the real one takes seconds
HEAVY = """
import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "stub"))
import torch
"""
CRASHING = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"

# distribution -> its entry points, and its modules
BROKEN: dict[str, tuple[str, dict[str, str]]] = {
    "raising": (f"{PLUGIN}\nx = raising", {"raising": "x = 1\nraise ValueError('boom \\x1b[31m' + 5000 * 'long ')"}),
    "exiting": (f"{PLUGIN}\nx = exiting", {"exiting": "import sys; sys.exit(3)"}),
    "leaving": (f"{PLUGIN}\nx = leaving", {"leaving": "import os; os._exit(0)"}),
    "interrupting": (f"{PLUGIN}\nx = interrupting", {"interrupting": "raise KeyboardInterrupt"}),
    "hanging": (f"{PLUGIN}\nx = hanging", {"hanging": HANGING}),
    "crashing": (f"{PLUGIN}\nx = crashing", {"crashing": CRASHING}),
    "printing": (
        f"{PLUGIN}\nx = printing",
        {"printing": "import sys; print('hello ' * 1_000_000); print('careful', file=sys.stderr)"},
    ),
    "heavy": (f"{PLUGIN}\nx = heavy", {"heavy": HEAVY, "stub/torch": ""}),
    "patching": (f"{PLUGIN}\nx = patching", {"patching": PATCHING}),
    "wrong": (
        f"{PLUGIN}\nx = wrong",
        {"wrong": "import regplug\n@regplug.hookimpl\ndef regplug_readouts(): return ['pool']"},
    ),
    "unhooked": (
        f"{PLUGIN}\nx = unhooked",
        {"unhooked": "import regplug\n@regplug.hookimpl\ndef regplug_readout(): return []"},
    ),
    "odd": (f"{READOUTS}\nhas space = odd:Odd", {}),
    "nameless": (f"{READOUTS}\n= nameless:Odd", {}),
    "future": (
        "[regplug_v2]\nx = future",
        {"future": "import os, pathlib; pathlib.Path('future').touch(); os._exit(1)"},
    ),
    "dangling": (
        f"{PLUGIN}\nx = dangling",
        {
            "dangling": DANGLING,
            "dangling_models": "fine, value = print, 1",
            "dangling_wants": "import not_installed_anywhere.deep",
        },
    ),
    "late": (f"{READOUTS}\nlater = late:Later", {"late": CRASHING}),
    "many": (
        READOUTS + "".join(f"\nname-{number} = many:Many" for number in range(10_000)),
        {"many": "Many = print"},
    ),
    "rival": (
        f"{READOUTS}\nattend = rival:Rival\npool = rival:Rival\n"
        + "".join(f"\nname-{number} = rival:Rival" for number in range(7)),
        {"rival": "Rival = print"},
    ),
    "disabled": (f"{PLUGIN}\nx = disabled", {"disabled": "raise ValueError"}),
    "misnamed": ("[regplug_readouts]\nlost = misnamed:Lost", {}),
}
QUIET = [
    "digits",
    "nvsubquadratic",
    "onnx",
    "timm",
    "transformers",
    "zoo",
]  # imported by one test only


def fake_distribution(folder: Path, name: str, entry_points: str, more: str = "") -> Path:
    """The metadata folder of an installed distribution."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{more}")
    (info / "entry_points.txt").write_text(entry_points)
    return info


def is_gone(pid: int) -> bool:
    """Whether a process has ended or ends within seconds; a killed one may still wait to be reaped."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def make_editable(info: Path, sources: Path) -> None:
    (info / "direct_url.json").write_text(json.dumps({"dir_info": {"editable": True}, "url": sources.as_uri()}))


@pytest.fixture(scope="module")
def good(install_plugin: Installer) -> Path:
    points = {"regplug_readouts_v1": {"attend": "good_readouts:Attend"}}
    folder = install_plugin("good", {"good_readouts.py": GOOD}, points)
    fake_distribution(folder, "fine", f"{PLUGIN}\nx = fine")
    (folder / "fine.py").write_text(FINE)
    (folder / "fine_models.py").write_text(FINE_MODELS)
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    for name, (entry_points, modules) in BROKEN.items():
        fake_distribution(folder, name, entry_points, "Requires-Dist: lent-package>=1\n" if name == "dangling" else "")
        for module, text in modules.items():
            path = folder / f"{module}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def grandchild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grandchild") / "pid"


@pytest.fixture(scope="module")
def done(run_python: Python, good: Path, broken: Path, grandchild: Path) -> subprocess.CompletedProcess[str]:
    blocked = ",".join(["disabled", *(f"regplug-{name}" for name in QUIET)])
    arguments = ["--json", "--time-limit", str(TIME_LIMIT)]
    variables = {"REGPLUG_DISABLE": blocked, "GRANDCHILD": str(grandchild)}
    return run_python(WITHOUT_ENVIRONMENT + DOCTOR.format(arguments=arguments), [broken, good], variables)


@pytest.fixture(scope="module")
def report(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


@pytest.fixture
def plugin(report: Any) -> Callable[[str], Any]:
    return lambda name: next(one for one in report["plugins"] if one["distribution"] == name)


@pytest.fixture
def messages_of(report: Any) -> Callable[..., list[str]]:
    """The messages about one distribution, of the given levels or all."""
    return lambda name, *levels: [
        finding["message"]
        for finding in report["findings"]
        if finding["distribution"] == name and finding["level"] in (levels or (PROBLEM, WARNING))
    ]


def test_problems_make_exit_code_1_and_one_json_object(done: Any, report: Any) -> None:
    assert done.returncode == 1
    assert done.stderr == ""
    assert report["schema"] == "regplug.doctor/1"
    assert report["level"] == "problem"


def test_plugins_are_sorted_and_the_good_ones_are_ok(report: Any, plugin: Any, messages_of: Any) -> None:
    names = [one["distribution"] for one in report["plugins"]]
    assert names == sorted(names)
    assert {"regplug", "good", "fine", *BROKEN} - set(names) == {"misnamed"}
    for name in ("regplug", "good", "fine"):
        assert (plugin(name)["status"], messages_of(name)) == ("ok", [])
    assert plugin("fine")["registered"]["strategies"] == {"count": 1, "names": ["last"]}
    assert plugin("fine")["registered"]["backbones"] == {"count": 1, "names": ["fine-vit"]}
    assert plugin("good")["version"] == "1.0"
    assert plugin("good")["protocol"] == 1
    assert plugin("fine")["import_seconds"] > 0


@pytest.mark.slow
def test_the_good_plugins_work_next_to_the_broken_ones(run_with_torch: Python, good: Path, broken: Path) -> None:
    without = ",".join(name for name in BROKEN if name in ("leaving", "interrupting", "hanging", "crashing"))
    code = (
        "import torch, regplug\n"
        "for name in ('good:attend', 'fine:last'):\n"
        "    made = regplug.create(name, num_registers=2, hidden_dim=3)\n"
        "    print(type(made).__name__, list(made(torch.zeros(5, 2, 3)).shape))"
    )
    done = run_with_torch(code, [broken, good], {"REGPLUG_DISABLE": without})
    assert {"Attend [5, 3]", "Last [5, 3]"} <= set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raising", ["expected to import 'raising', got ValueError: boom [31mlong long", "(raising.py, line 2)"]),
        ("exiting", ["expected to import 'exiting', got SystemExit: 3"]),
        ("leaving", ["expected an import that returns, got exit code 0; update or remove it"]),
        ("interrupting", ["expected to import 'interrupting', got KeyboardInterrupt"]),
        ("hanging", [f"expected an import that returns, got no end within {TIME_LIMIT} s (hanging.py, line 6)"]),
        ("crashing", ["expected an import that returns, got SIGSEGV (crashing.py, line 1)"]),
        ("printing", ["prints to stdout at import: 'hello hello"]),
        ("heavy", ["imports torch as it is listed (heavy.py, line 4)"]),
        ("wrong", ["regplug_readouts: expected ReadoutEntry, got 'pool'; update"]),
        ("unhooked", ["unknown hook 'regplug_readout'"]),
        ("odd", ["name: expected letters, digits, '.', '_' and '-', got 'has space'"]),
        ("nameless", ["name: expected letters, digits, '.', '_' and '-', got ''"]),
        ("future", ["expected protocol 1, got 2; update regplug."]),
        ("late", ["strategy 'later': importing 'late:Later': got SIGSEGV (late.py, line 1)"]),
    ],
)
def test_each_broken_plugin_is_reported_with_its_fault(
    plugin: Any, messages_of: Any, name: str, words: list[str]
) -> None:
    [message] = messages_of(name, PROBLEM)
    assert plugin(name)["status"] == PROBLEM
    assert [word for word in words if word not in message] == [], message
    assert message.startswith(f"plugin '{name}': ")
    assert len(message) < 700
    assert message.isprintable()


def test_what_is_printed_to_stderr_is_a_warning(messages_of: Any) -> None:
    assert "plugin 'printing': prints to stderr at import: 'careful'." in messages_of("printing", WARNING)


def test_a_newer_protocol_is_listed_and_never_imported(plugin: Any) -> None:
    assert plugin("future")["protocol"] == 2
    assert plugin("future")["import_seconds"] is None


def test_what_a_killed_plugin_started_is_killed_too(done: Any, grandchild: Path) -> None:
    assert is_gone(int(grandchild.read_text()))


def test_what_was_replaced_inside_regplug_is_reported(messages_of: Any) -> None:
    [message] = messages_of("patching", PROBLEM)
    inside = ("entries.Entry.label", "staging.HELPER", "staging.stage", "width_formula.explain")
    names = ", ".join(f"regplug.registry.{name}" for name in inside)
    assert message.startswith(f"plugin 'patching': its import replaced {names}, ")


def test_a_wrong_reference_is_a_problem_and_a_missing_package_a_warning(messages_of: Any) -> None:
    problems, warnings = "\n".join(messages_of("dangling", PROBLEM)), "\n".join(messages_of("dangling", WARNING))
    assert "strategy 'typo': expected to import 'dangling_model:Typo', got ModuleNotFoundError" in problems
    assert "strategy 'gone': expected to import 'dangling_models:Gone', got AttributeError" in problems
    assert "strategy 'value': expected a callable at 'dangling_models:value', got int" in problems
    assert "backbone 'vit': expected to import 'dangling_models:no_sites'" in problems
    package = "wants the package 'not_installed_anywhere', which is not installed"
    assert f"strategy 'wants', strategy 'wants-too': {package}" in warnings
    assert "strategy 'borrowed': wants the package 'lent_package', which is not installed" in warnings
    assert "not-checked" not in problems + warnings


def test_ten_thousand_names_are_counted_and_five_are_shown(plugin: Any, messages_of: Any) -> None:
    assert plugin("many")["status"] == "ok"
    listed = plugin("many")["registered"]["strategies"]
    assert (listed["count"], len(listed["names"])) == (10_000, 5)


def test_a_name_that_two_plugins_offer_is_a_warning_and_five_are_listed(report: Any, messages_of: Any) -> None:
    shared = [finding["message"] for finding in report["findings"] if finding["distribution"] is None]
    assert "strategy 'attend': offered by good and rival; use 'good:attend' or 'rival:attend'." in shared
    assert len([message for message in shared if message.startswith("strategy 'name-")]) == 5
    assert "2 more strategies are offered by many and rival; use their full names." in shared
    assert messages_of("rival") == [
        "strategy 'pool': offered by rival too, but the bare name stays regplug's own; use 'rival:pool'."
    ]


def test_a_plugin_that_registers_nothing_is_a_warning(messages_of: Any) -> None:
    nothing = "plugin 'patching': registers nothing; expected functions marked with @regplug.hookimpl in its module."
    assert messages_of("patching", WARNING) == [nothing]


def test_a_disabled_plugin_is_listed_and_not_imported(plugin: Any, messages_of: Any) -> None:
    assert plugin("disabled")["status"] == "blocked"
    assert plugin("disabled")["import_seconds"] is None
    assert messages_of("disabled") == []


def test_an_unknown_entry_point_group_is_a_warning(messages_of: Any) -> None:
    [message] = messages_of("misnamed", WARNING)
    assert "expected an entry-point group regplug_v1 or regplug_readouts_v1, got 'regplug_readouts', which" in message


@pytest.mark.slow
def test_a_malformed_file_that_makes_the_import_of_torch_fail_is_reported(run_python: Python, tmp_path: Path) -> None:
    unrelated = fake_distribution(tmp_path, "unrelated", "[console_scripts]\nok = a:b\nthis line has no equals sign")
    unreadable = fake_distribution(tmp_path, "unreadable", f"{READOUTS}\nattend")
    fake_distribution(tmp_path, "lenient", "lost = a:b\n[console_scripts]\n")
    all_plugins = ",".join(["regplug", *(f"regplug-{name}" for name in QUIET)])
    report = json.loads(
        run_python(DOCTOR.format(arguments=["--json"]), [tmp_path], {"REGPLUG_DISABLE": all_plugins}).stdout
    )
    plugin = next(one for one in report["plugins"] if one["distribution"] == "unreadable")
    assert (plugin["status"], plugin["version"], plugin["import_seconds"]) == (PROBLEM, "1.0", None)
    stops = ", which stops all that lists entry points, as importing torch does"
    wanted = "expected 'name = module:attr', got"
    assert [(finding["distribution"], finding["level"], finding["message"]) for finding in report["findings"]] == [
        (
            "regplug",
            PROBLEM,
            "plugin 'regplug': REGPLUG_DISABLE names it, which every other command refuses; take it out.",
        ),
        (
            "unreadable",
            PROBLEM,
            f"{unreadable}/entry_points.txt: line 2: {wanted} 'attend'{stops}; install unreadable again.",
        ),
        (
            None,
            WARNING,
            f"{tmp_path}/lenient-1.0.dist-info/entry_points.txt: line 1: expected a '[group]' before it, "
            "got 'lost = a:b'; install lenient again.",
        ),
        (
            None,
            PROBLEM,
            f"{unrelated}/entry_points.txt: line 3: {wanted} 'this line has no equals sign'{stops}; "
            "install unrelated again.",
        ),
    ]
    torch = next(check for check in report["environment"] if check["name"] == "torch")
    assert torch["level"] == OK  # the fault is in the metadata, and reported there


# ---- the healthy environment


@pytest.mark.slow
def test_a_healthy_environment_exits_0_and_prints_a_table(run_python: Python) -> None:
    done = run_python(DOCTOR.format(arguments=["--time-limit", "60"]))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["plugin", "version", "protocol", "status", "import", "registered"]
    own = next(line for line in lines if line.startswith("regplug "))
    assert own.split()[1:4] == [regplug.__version__, "1", "ok"]
    assert "9 strategies, 10 FiLM generators, 2 export backends" in own
    checks = {line.split("  ")[0]: line for line in lines[lines.index("") :]}
    assert {"Python", "torch", "C++ compiler", "CMake", "ninja", "nlohmann/json", "C++ headers"} <= checks.keys()
    assert checks["torch"].split()[1] == "ok"
    assert checks["C++ headers"].split()[2] == "ok"
    assert lines[-1].startswith("no problems, ")


# ---- the parts, each fed what is right and what is wrong


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("[a]\nb = c:d\n# comment\n\n[ e ]\nf=g", []),
        ("", []),
        ("[a]\nno", ["line 2: expected 'name = module:attr', got 'no'"]),
        ("[a\nb = c", ["line 1: expected '[group]', got '[a'", "line 2: expected a '[group]' before it, got 'b = c'"]),
    ],
)
def test_each_malformed_line_is_reported(text: str, faults: list[str]) -> None:
    assert malformed(text) == faults


def messages(folder: Path) -> list[tuple[str, str]]:
    return [(finding.level, finding.message) for finding in check_metadata([str(folder)])]


def test_nothing_is_reported_about_healthy_metadata(tmp_path: Path) -> None:
    info = fake_distribution(tmp_path / "site", "acme", f"{READOUTS}\nattend = acme:Attend\n")
    sources = tmp_path / "my sources"
    sources.mkdir()
    (sources / "pyproject.toml").write_text(
        '[project]\nversion = "1.0"\n[project.entry-points.regplug_readouts_v1]\nattend = "acme:Attend"\n'
    )
    make_editable(info, sources)
    (sources / "acme.egg-info").mkdir()  # setuptools leaves it there
    (sources / "acme.egg-info" / "PKG-INFO").write_text("Name: acme\nVersion: 1.0\n")
    assert check_metadata([str(tmp_path / "site"), str(sources), str(tmp_path / "site"), "/no/such/folder"]) == []


def test_metadata_left_by_an_interrupted_removal_is_reported(tmp_path: Path) -> None:
    info = fake_distribution(tmp_path, "acme", f"{READOUTS}\nattend = acme:Attend\n")
    (info / "METADATA").unlink()
    fake_distribution(tmp_path, "other", "").joinpath("METADATA").unlink()
    fake_distribution(tmp_path, "~cme", f"{READOUTS}\nattend = acme:Attend\n")
    (fake_distribution(tmp_path, "binary", "") / "entry_points.txt").write_bytes(b"\xff\xfe")
    assert messages(tmp_path) == [
        (PROBLEM, f"{info}: no METADATA, as an interrupted removal leaves it; delete it or install it again."),
        (
            PROBLEM,
            f"{tmp_path / 'binary-1.0.dist-info/entry_points.txt'}: expected text in UTF-8, which stops all that lists "
            "entry points, as importing torch does; install binary again.",
        ),
        (
            WARNING,
            f"{tmp_path / 'other-1.0.dist-info'}: no METADATA, as an interrupted removal leaves it; "
            "delete it or install it again.",
        ),
        (PROBLEM, f"{tmp_path / '~cme-1.0.dist-info'}: left by an interrupted removal, and ignored; delete it."),
    ]


def test_two_copies_of_a_plugin_are_a_warning_and_two_of_another_package_are_not(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        fake_distribution(tmp_path / folder, "acme", f"{READOUTS}\nattend = acme:Attend\n")
        fake_distribution(tmp_path / folder, "other", "")
    [finding] = check_metadata([str(tmp_path / "one"), str(tmp_path / "two")])
    first, second = (tmp_path / folder / "acme-1.0.dist-info" for folder in ("one", "two"))
    assert finding.level == WARNING
    assert finding.message.startswith(
        f"plugin 'acme': installed 2 times (1.0 in {first}, 1.0 in {second}); {first} is used;"
    )


@pytest.mark.parametrize(
    ("pyproject", "level", "words"),
    [
        (None, PROBLEM, "got no folder; install it again: pip install -e "),
        ('version = "1.1"', WARNING, "its sources say version 1.1, installed is 1.0; install it again"),
        (
            'version = "1.0"\nentry-points.regplug_v1.new = "acme.plugin"',
            WARNING,
            "its sources state other entry points (regplug_v1: new, ...); install it again",
        ),
        ("version = ", WARNING, "pyproject.toml: "),
    ],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib, so that pyproject.toml is not read")
def test_a_stale_editable_installation_is_reported(
    tmp_path: Path, pyproject: str | None, level: str, words: str
) -> None:
    info = fake_distribution(tmp_path, "acme", f"{READOUTS}\nattend = acme:Attend\n")
    make_editable(info, tmp_path / "sources")
    if pyproject is not None:
        (tmp_path / "sources").mkdir()
        points = '\nentry-points.regplug_readouts_v1.attend = "acme:Attend"'
        (tmp_path / "sources" / "pyproject.toml").write_text(f"[project]\n{pyproject}{points}\n")
    [(found, message)] = messages(tmp_path)
    assert found == level
    assert words in message


def test_an_editable_version_is_compared_as_installers_spell_it(tmp_path: Path) -> None:
    info = fake_distribution(tmp_path, "acme", f"{PLUGIN}\nx = acme\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 2026.1b0\n")
    make_editable(info, tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "v2026.01-beta"\nentry-points.regplug_v1.x = "acme"')
    assert messages(tmp_path) == []


@pytest.fixture
def regplug_as_it_was() -> Iterator[None]:
    stage, post_init, code = staging.stage, regplug.ReadoutEntry.__post_init__, references.import_plugin.__code__
    yield
    staging.stage, regplug.ReadoutEntry.__post_init__, references.import_plugin.__code__ = stage, post_init, code


def test_replaced_objects_inside_regplug_are_found_and_nothing_else(regplug_as_it_was: None) -> None:
    before = snapshot()
    regplug.default_registry().strategies()
    _ = regplug.pair, regplug.Conditioner
    assert replaced(before, {"acme"}) == []
    staging.stage = print
    regplug.ReadoutEntry.__post_init__ = lambda self: None
    references.import_plugin.__code__ = (lambda distribution, reference: None).__code__
    assert replaced(before, {"acme"}) == [
        "regplug.registry.entries.ReadoutEntry.__post_init__",
        "regplug.registry.references.import_plugin",
        "regplug.registry.staging.stage",
    ]


def test_a_replaced_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot()
    monkeypatch.setitem(sys.modules, "regplug.registry.staging", types.ModuleType("regplug.registry.staging"))
    assert any(name.startswith("regplug.registry.staging") for name in replaced(before, set()))
    monkeypatch.undo()
    assert replaced(before, set()) == []


def test_a_heavy_module_that_hangs_is_reported_with_its_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(300)\n")
    (tmp_path / "stopped.py").write_text("import os, signal, faulthandler\nos.kill(os.getpid(), signal.SIGSTOP)\n")
    slow = examine_plugin(Found("slow", None, readouts=[("sleepy", "slow:Sleepy")]), False, 0.1, lambda: False)
    assert [finding.message for finding in slow.diagnostics] == [
        "plugin 'slow': strategy 'sleepy': importing 'slow:Sleepy': got no end within 1.2 s (slow.py, line 2); "
        "what comes after it was not looked at."
    ]
    # a process that cannot exit by itself
    stopped = examine_plugin(Found("stopped", None, modules=["stopped"]), False, 0.1, lambda: False)
    assert "got no end within 0.1 s" in stopped.diagnostics[0].message


def test_an_interrupt_ends_the_doctor_and_its_children(broken: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    others = ",".join(["regplug", *(f"regplug-{name}" for name in QUIET), *(BROKEN.keys() - {"hanging"})])
    variables = {"PYTHONPATH": str(broken), "GRANDCHILD": str(pid), "REGPLUG_DISABLE": others}
    on_interrupt = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's `&` ignores it
    )
    doctor = subprocess.Popen(
        [sys.executable, "-c", on_interrupt + DOCTOR.format(arguments=["--time-limit", "300"])],
        env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (pid.exists() and pid.read_text()) and doctor.poll() is None:
        time.sleep(0.05)
    doctor.send_signal(signal.SIGINT)
    assert doctor.wait(60) == 1  # click's exit code for an interrupt, outside of `regplug`
    assert is_gone(int(pid.read_text()))


def test_a_grandchild_that_keeps_the_streams_open_delays_nothing() -> None:
    # it has left the session, and outlives the test
    ended = run_bounded(["sh", "-c", "echo said; setsid sleep 5 & exit 3"], until(60))
    assert (ended.code, ended.out) == (3, "said\n")


def test_endless_output_is_cut(tmp_path: Path) -> None:
    ended = run_bounded(["sh", "-c", "yes | head -c 5000000"], until(60))
    assert ended.code == 0
    assert len(ended.out) == MAX_OUTPUT


def never() -> bool:
    return False


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_is_missing_or_does_not_compile_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_compiler(never).level == "ok"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert check_compiler(never).level == WARNING
    assert "no-such-compiler" in check_compiler(never).found
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", "echo 'error: no headers here' >&2; exit 1"))
    found = check_compiler(never)
    assert found.level == WARNING
    assert found.message.endswith("a program of two lines fails: error: no headers here")


def test_cmake_that_is_missing_old_or_hangs_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_cmake(never).found == "none"
    monkeypatch.setattr(environment, "TOOL_LIMIT", 0.2)
    for text, words in (
        ("echo cmake version 3.5.1", "expected 3.23 or newer"),
        ("exit 3", "`cmake --version`: exit code 3"),
        ("/bin/sleep 300", "no end within 0.2 s"),
    ):
        script(tmp_path / "cmake", text)
        assert check_cmake(never).level == WARNING
        assert words in check_cmake(never).message


def test_torch_that_is_missing_broken_or_old_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, words in (
        ("echo found 2.9.1+cpu 1.5", "expected 2.10 or newer"),
        ("echo \"missing ModuleNotFoundError No module named 'torch'\"", "nothing can be built"),
        ("echo failed OSError libtorch_cpu.so: broken", "OSError libtorch_cpu.so: broken; install"),
        ("kill -SEGV $$", "SIGSEGV; install torch"),
    ):
        monkeypatch.setattr(sys, "executable", script(tmp_path / "python", text))
        found = environment.check_torch(never)
        assert found.level == PROBLEM
        assert words in found.message
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", "echo found 2.10.0 1.5"))
    assert environment.check_torch(never).level == "ok"


def test_headers_of_another_version_than_the_package_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_headers(never).level == "ok"
    monkeypatch.setattr(environment, "own_version", lambda: "99.0")
    assert check_headers(never).level == PROBLEM


def test_headers_of_json_are_found_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "include" / "nlohmann"
    folder.mkdir(parents=True)
    numbers = zip(("MAJOR", "MINOR", "PATCH"), (9, 8, 7), strict=True)
    (folder / "json.hpp").write_text("".join(f"#define NLOHMANN_JSON_VERSION_{word} {one}\n" for word, one in numbers))
    monkeypatch.setenv("CMAKE_PREFIX_PATH", f"/nowhere;{tmp_path}")
    assert check_json(never).found == f"9.8.7 ({tmp_path / 'include'})"


def test_a_cache_folder_that_cannot_be_used_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "deep" / "cache"))
    assert check_cache(never).level == "ok"
    (tmp_path / "deep").write_text("a file")
    assert check_cache(never).level == WARNING
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "open"))
    assert "not this user's alone" in check_cache(never).message
    for name in ("REGPLUG_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "~")
    assert (check_cache(never).level, check_cache(never).found) == (WARNING, "none")
    assert "no home directory" in check_cache(never).message


@pytest.mark.parametrize("seconds", ["inf", "1e12", "nan", "0", "3601"])
def test_a_time_limit_that_no_timer_takes_is_refused(seconds: str) -> None:
    with pytest.raises(click.BadParameter, match="3600"):
        doctor_command.make_context("doctor", ["--time-limit", seconds])
    assert doctor_command.make_context("doctor", ["--time-limit", "3600"]).params["time_limit"] == 3600


def test_messages_are_short_lines_and_levels_are_ordered() -> None:
    assert clip("a\n\x1b[1mb") == "a [1mb"
    assert clip("abc", 2) == "ab..."
    assert shorten(list("abc")) == "a, b, c"
    assert shorten(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert [worst(["ok", "problem", "warning"]), worst(["ok", "warning"]), worst([])] == ["problem", "warning", "ok"]

"""With many plugins: a name imports only the plugin that offers it, and an old name cache never misleads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scale
from support.distributions import write_distribution
from support.environment import clean_environment
from support.forked_python import ForkedPython

from regplug.registry.discovery import Found
from regplug.registry.name_cache import NameIndex

COUNT = 8
PLUGIN = """
import os, pathlib, regplug
with pathlib.Path(os.environ["CANARY"]).open("a") as canary:
    canary.write("{distribution} ")
{extra}

@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry(name, "{module}_models:Readout") for name in {names!r}]
"""
LIST = "registry.strategies()"


class Site:
    """A folder with plugins that note when they are imported, and a cache folder; runs Python with both."""

    def __init__(self, folder: Path, python: ForkedPython) -> None:
        self.python = python
        self.packages, self.cache, self.canary = folder / "site", folder / "cache", folder / "canary"
        self.packages.mkdir()

    def add(self, distribution: str, *names: str, extra: str = "", editable: bool = False) -> None:
        module = distribution.replace("-", "_")
        text = PLUGIN.format(distribution=distribution, module=module, names=names, extra=extra)
        points = {"regplug_v1": {"plugin": module}}
        info = write_distribution(self.packages, distribution, {f"{module}.py": text}, points)
        direct_url = json.dumps({"url": f"file://{self.packages}", "dir_info": {"editable": editable}})
        (info / "direct_url.json").write_text(direct_url)

    def run(self, expression: str, before: str = "", **env: str) -> tuple[str, list[str]]:
        """The value of an expression in a new process, or the error it raises; and the plugins that were imported."""
        self.canary.write_text("")
        code = (
            "import sys; sys.path.remove('')\n"  # the working directory differs each time
            f"import regplug\nregistry = regplug.default_registry()\n{before}\n"
            f"try: print({expression})\nexcept regplug.RegplugError as error: print(error)"
        )
        own = {"PYTHONPATH": str(self.packages), "CANARY": str(self.canary), "REGPLUG_CACHE_DIR": str(self.cache)}
        # bytecode would change the time of the folder with the plugins
        variables = clean_environment() | own | {"PYTHONDONTWRITEBYTECODE": "1"} | env
        done = self.python.run(["-c", code], self.packages.parent, variables)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip(), sorted(self.canary.read_text().split())

    def index(self) -> Path:
        [path] = self.cache.glob("names-*.json")
        return path


def entry(name: str) -> str:
    return f"registry.readout_entry({name!r}).full_name"


EVERY_PLUGIN = [f"plugin-{number}" for number in range(COUNT)]


@pytest.fixture(scope="module")
def python() -> Iterator[ForkedPython]:
    process = ForkedPython("import regplug.registry.default")
    yield process
    process.close()


@pytest.fixture
def site(tmp_path: Path, python: ForkedPython) -> Site:
    """Eight plugins with one strategy each, not yet listed."""
    made = Site(tmp_path, python)
    for number in range(COUNT):
        made.add(f"plugin-{number}", f"name-{number}")
    return made


@pytest.fixture
def listed(site: Site) -> Site:
    """The same, listed once."""
    assert site.run(LIST)[1] == EVERY_PLUGIN
    return site


# ---- a name and its owner


def test_a_full_name_imports_only_its_owner(site: Site) -> None:
    assert site.run(entry("plugin-3:name-3")) == ("plugin-3:name-3", ["plugin-3"])


def test_a_bare_name_imports_all_plugins_once_and_later_only_its_owner(site: Site) -> None:
    assert site.run(entry("name-3")) == ("plugin-3:name-3", EVERY_PLUGIN)
    assert site.run(entry("name-3")) == ("plugin-3:name-3", ["plugin-3"])
    assert site.run(entry("name-4")) == ("plugin-4:name-4", ["plugin-4"])


def test_a_listing_does_not_depend_on_the_cache_and_fills_it(site: Site) -> None:
    first, imported = site.run(LIST)
    assert imported == EVERY_PLUGIN
    assert {f"name-{number}" for number in range(COUNT)} < set(eval(first))
    assert site.run(LIST) == (first, EVERY_PLUGIN)
    assert site.run(entry("name-3")) == ("plugin-3:name-3", ["plugin-3"])


def test_the_error_for_an_unknown_name_lists_all_known_names(listed: Site) -> None:
    answer, imported = listed.run(entry("nam-3"))
    assert answer.startswith("strategy 'nam-3': not registered; known: ")
    assert "name-0, name-1" in answer
    assert imported == EVERY_PLUGIN


# ---- stale entries


def test_a_new_distribution_with_the_same_name_makes_it_ambiguous(listed: Site) -> None:
    listed.add("acme", "name-3")
    answer, _ = listed.run(entry("name-3"))
    assert answer == "strategy 'name-3': offered by acme and plugin-3; use 'acme:name-3' or 'plugin-3:name-3'."
    assert listed.run(entry("name-3"))[0] == answer  # cached now, and still ambiguous
    assert listed.run(entry("name-4")) == ("plugin-4:name-4", ["plugin-4"])
    assert listed.index().exists()  # one file; the previous one is gone


def test_a_removed_distribution_is_forgotten(listed: Site) -> None:
    listed.add("acme", "name-3")
    assert "offered by" in listed.run(entry("name-3"))[0]
    for path in (listed.packages / "acme-1.0.dist-info").iterdir():
        path.unlink()
    (listed.packages / "acme-1.0.dist-info").rmdir()
    assert listed.run(entry("name-3"))[0] == "plugin-3:name-3"


def test_what_an_installer_changed_is_imported_again(listed: Site) -> None:
    """Another build of the same version: only the folder's time differs."""
    module = listed.packages / "plugin_5.py"
    module.write_text(module.read_text().replace("name-5", "name-3"))
    os.utime(listed.packages, ns=(0, listed.packages.stat().st_mtime_ns + 1))
    assert listed.run(entry("name-3"))[0].startswith("strategy 'name-3': offered by plugin-3 and plugin-5; use ")


def test_a_name_that_moved_to_another_plugin_is_found(listed: Site) -> None:
    """Edited in place: nothing but the plugins themselves differs."""
    for number, name in ((3, "name-5"), (5, "name-3")):
        module = listed.packages / f"plugin_{number}.py"
        module.write_text(module.read_text().replace(f"name-{number}", name))
    assert listed.run(entry("name-3")) == ("plugin-5:name-3", EVERY_PLUGIN)


def test_an_editable_plugin_is_imported_each_time(listed: Site) -> None:
    listed.add("edited", "name-e", editable=True)
    assert listed.run(LIST)[1] == ["edited", *EVERY_PLUGIN]
    assert "edited" not in json.loads(listed.index().read_text())["names"]
    assert listed.run(entry("name-3")) == ("plugin-3:name-3", ["edited", "plugin-3"])
    module = listed.packages / "edited.py"
    module.write_text(module.read_text().replace("name-e", "name-3"))
    assert listed.run(entry("name-3"))[0].startswith("strategy 'name-3': offered by edited and plugin-3; use ")


def test_a_broken_plugin_hides_no_other(site: Site) -> None:
    site.add("broken", "name-b", extra="raise OSError('no disk')")
    assert site.run(LIST)[1] == ["broken", *EVERY_PLUGIN]
    assert site.run(entry("name-3")) == ("plugin-3:name-3", ["broken", "plugin-3"])  # it may be repaired
    assert site.run(entry("name-b"))[0].endswith("; broken plugins: broken.")


def test_a_plugin_that_was_broken_for_a_while_is_imported_again(site: Site) -> None:
    site.add("broken", "name-3", extra="if 'BREAK' in os.environ: raise OSError('no disk')")
    site.run(LIST, BREAK="1")
    clash = "strategy 'name-3': offered by broken and plugin-3; use 'broken:name-3' or 'plugin-3:name-3'."
    assert site.run(entry("name-3"))[0] == clash


def test_a_listing_replaces_what_has_changed(listed: Site) -> None:
    module = listed.packages / "plugin_5.py"
    module.write_text(module.read_text().replace("name-5", "name-3"))
    assert listed.run(entry("name-3"))[0] == "plugin-3:name-3"  # nothing shows the change until all are imported
    listed.run(LIST)
    assert listed.run(entry("name-3"))[0].startswith("strategy 'name-3': offered by plugin-3 and plugin-5; use ")


def test_a_plugin_that_changes_the_path_at_import_is_cached(site: Site) -> None:
    site.add("changing", "name-c", extra="import sys; sys.path.append('/nowhere')")
    site.run(LIST)
    assert site.run(entry("name-3")) == ("plugin-3:name-3", ["plugin-3"])


@pytest.mark.parametrize(
    ("direct_url", "is_cached"),
    [
        ('{"dir_info":{"editable":true},"url":"file:///x"}', False),  # as uv writes it
        ('{"dir_info":{},"url":"file:///x"}', True),
        ('{"url":"https://x","vcs_info":{}}', True),
        ('{"dir_info":', False),
        ('["editable"]', False),
    ],
)
def test_an_editable_installation_is_found_by_its_metadata_however_it_is_written(
    site: Site, direct_url: str, is_cached: bool
) -> None:
    (site.packages / "plugin_3-1.0.dist-info" / "direct_url.json").write_text(direct_url)
    site.run(LIST)
    assert ("plugin-3" in json.loads(site.index().read_text())["names"]) is is_cached


def test_another_version_is_imported_again() -> None:
    one, other = (NameIndex({"acme": Found("acme", None, modules=["acme"], version=version)}) for version in "12")
    assert one._path() != other._path()


# ---- which processes write the cache


@pytest.mark.parametrize("before", ["registry.block('plugin-1')", "registry.unregister('plugin-1')"])
def test_a_process_that_did_not_import_all_plugins_writes_no_cache(site: Site, before: str) -> None:
    answer, imported = site.run(LIST, before=before)
    assert "name-1" not in answer
    assert imported == [one for one in EVERY_PLUGIN if one != "plugin-1"]
    assert not site.cache.exists()
    assert site.run(entry("name-1"))[0] == "plugin-1:name-1"


IN_MEMORY = """
class Offers:
    @regplug.hookimpl
    def regplug_readouts(self):
        return [regplug.ReadoutEntry(name, "os:getpid") for name in ("name-3", "mine")]
registry.register(Offers(), "memory")
"""


def test_plugins_of_the_running_process_count_and_are_not_cached(site: Site) -> None:
    clash = "strategy 'name-3': offered by memory and plugin-3; use 'memory:name-3' or 'plugin-3:name-3'."
    for _ in range(2):
        assert site.run(entry("name-3"), before=IN_MEMORY)[0] == clash
    assert "memory" not in site.index().read_text()
    assert site.run(entry("mine"), before=IN_MEMORY) == ("memory:mine", [])
    assert site.run(entry("name-3")) == ("plugin-3:name-3", ["plugin-3"])


def test_a_blocked_plugin_does_not_offer_its_names(listed: Site) -> None:
    answer, imported = listed.run(entry("name-3"), REGPLUG_DISABLE="plugin-3")
    assert answer.startswith("strategy 'name-3': not registered; ")
    assert "plugin-3" not in imported


def test_a_strict_host_imports_all_plugins_each_time(listed: Site) -> None:
    assert listed.run(entry("name-3"), REGPLUG_STRICT="1") == ("plugin-3:name-3", EVERY_PLUGIN)


# ---- the file


DAMAGE: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "not UTF-8": lambda text: "\x00\ud800",
    "a plugin without a list": lambda text: text.replace('{"plugin-0": {', '{"plugin-0": 3, "x": {'),
    "another state": lambda text: text.replace('"state": "', '"state": "other '),
    "no names": lambda text: json.dumps({**json.loads(text), "names": None}),
}


def test_a_damaged_file_is_ignored_and_replaced(listed: Site) -> None:
    whole = listed.index().read_text()
    for what, damage in DAMAGE.items():
        listed.index().write_bytes(damage(whole).encode(errors="surrogatepass"))
        assert listed.run(entry("name-3")) == ("plugin-3:name-3", EVERY_PLUGIN), what
        assert listed.index().read_text() == whole, what
    assert listed.run(entry("name-3")) == ("plugin-3:name-3", ["plugin-3"])


def test_without_a_writable_cache_all_plugins_are_imported(site: Site) -> None:
    site.cache.write_text("a file")
    assert site.run(entry("name-3")) == ("plugin-3:name-3", EVERY_PLUGIN)
    assert site.run(entry("name-3"), REGPLUG_CACHE_DIR="", XDG_CACHE_HOME="", HOME="/proc/none")[1] == EVERY_PLUGIN
    no_home = {"REGPLUG_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "~"}
    assert site.run(entry("name-3"), **no_home) == ("plugin-3:name-3", EVERY_PLUGIN)


def test_a_folder_that_others_may_write_into_is_neither_read_nor_written(listed: Site) -> None:
    """Another user could empty a plugin's list in it, and an ambiguous name would be found."""
    listed.add("acme", "name-3")
    clash = "strategy 'name-3': offered by acme and plugin-3; use 'acme:name-3' or 'plugin-3:name-3'."
    assert listed.run(entry("name-3"))[0] == clash
    said = json.loads(listed.index().read_text())
    said["names"]["acme"] = {}
    listed.index().write_text(json.dumps(said))
    assert listed.run(entry("name-3"))[0] == "plugin-3:name-3"  # used while only the user can write into the folder
    before = listed.index().read_text()
    for mode in (0o777, 0o770):
        listed.cache.chmod(mode)
        assert listed.run(entry("name-3")) == (clash, ["acme", *EVERY_PLUGIN])
        assert listed.index().read_text() == before


def test_what_is_not_a_regular_file_of_a_bounded_size_is_ignored(listed: Site, tmp_path: Path) -> None:
    path = listed.index()
    whole = path.read_text()
    path.write_text(whole + " " * (16 << 20))
    assert listed.run(entry("name-3")) == ("plugin-3:name-3", EVERY_PLUGIN)
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to(tmp_path / "elsewhere"), path.mkdir):
        assert (path.is_symlink(), path.read_text()) == (False, whole)  # it was replaced
        path.rename(tmp_path / "elsewhere")
        make()
        assert listed.run(entry("name-3")) == ("plugin-3:name-3", EVERY_PLUGIN)


def test_pruning_keeps_the_file_unless_everything_is_deleted(listed: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from regplug.backends.cache import entries, prune

    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(listed.cache))
    assert entries() == prune(1) == []
    assert listed.index().exists()
    assert prune(0) == []
    assert list(listed.cache.iterdir()) == []


def test_a_half_written_file_is_never_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(Path, "replace", _refuse)
    NameIndex({}).keep()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path))
    NameIndex({}).keep()
    assert NameIndex({}).owners("regplug_readouts", "name") == []


def _refuse(*arguments: Any) -> Any:
    raise OSError("full")


# ---- the command


def test_listing_loads_only_its_own_command_and_help_knows_all_commands(site: Site) -> None:
    before = "import contextlib, io; from regplug.commands.main import group; out = io.StringIO()\n"
    listing = before + "with contextlib.redirect_stdout(out): group(['list'], standalone_mode=False)"
    expression = "sorted(one for one in sys.modules if one.startswith('regplug.'))"
    loaded = set(eval(site.run(expression, before=listing)[0]))
    assert {"regplug.registry.registry", "regplug.commands.printing"} < loaded
    assert not {one for one in loaded if one.endswith("_commands")}
    assert not {"regplug.registry.spec", "regplug.backends.cache"} & loaded
    helping = before + "with contextlib.redirect_stdout(out): group(['--help'], standalone_mode=False)"
    assert {"audit", "bench", "cache", "export", "import", "list", "verify"} <= set(
        site.run("out.getvalue()", before=helping)[0].split()
    )


def test_the_benchmark_makes_the_plugins_that_it_describes(tmp_path: Path, python: ForkedPython) -> None:
    site = Site(tmp_path, python)
    scale.make_plugins(site.packages, 4)
    assert {"lined-0", "hooked-1", "lined-2", "hooked-3"} < set(eval(site.run(LIST)[0]))

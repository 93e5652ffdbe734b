"""The registry in a running program: which plugin offers a name, and what a broken plugin does to others."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.strategies import BUILT_IN
from torch import Tensor, nn

import regplug
from regplug import (
    BackboneEntry,
    ExportBackendEntry,
    FiLMEntry,
    NameLookupError,
    PluginError,
    ReadoutEntry,
    Registry,
    SpecError,
)
from regplug.registry.discovery import PLUGIN_GROUP, READOUT_GROUP, Found, discover
from regplug.registry.distributions import normalise
from regplug.registry.hookspecs import HOOKS, hookimpl

NUMBERS = itertools.count()
BUILTIN = Found("regplug", None, modules=["regplug.registry.builtin"])


class FirstRegister(nn.Module):
    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.out_dim = hidden_dim

    def forward(self, registers: Tensor) -> Tensor:
        return registers[:, 0]


class Offers:
    """A plugin object that offers strategies under the given names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    @hookimpl
    def regplug_readouts(self) -> list[ReadoutEntry]:
        return [ReadoutEntry(name, FirstRegister) for name in self.names]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write an importable module; its name is new each time and forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def write(source: str) -> str:
        names.append(f"regplug_test_module_{next(NUMBERS)}")
        (tmp_path / f"{names[-1]}.py").write_text(source)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


def statuses(registry: Registry) -> dict[str, str]:
    return {record.distribution: record.status for record in registry.plugins()}


# ---- what is offered


def test_an_empty_registry_knows_no_names() -> None:
    registry = Registry({})
    assert registry.strategies() == registry.backbones() == registry.plugins() == []
    with pytest.raises(NameLookupError) as caught:
        registry.readout_entry("pool")
    assert str(caught.value) == "strategy 'pool': not registered; known: none."


def test_the_built_in_strategies_are_a_plugin_like_any_other() -> None:
    registry = Registry({})
    from regplug.registry import builtin

    registry.register(builtin, "regplug", "7.1")
    assert registry.strategies() == BUILT_IN
    assert [entry.name for entry in registry.film_entries()] == sorted(one.name for one in builtin.regplug_films())
    assert [entry.name for entry in registry.export_backend_entries()] == ["aotinductor", "torchscript"]
    assert registry.readout_entry("pool").full_name == "regplug:pool"
    assert registry.readout_entry("pool").provenance.version == "7.1"


def test_a_strategy_of_a_registered_plugin_object_can_be_built() -> None:
    registry = Registry({})
    registry.register(Offers("first"), "Acme_Readouts")
    spec = registry.resolve("first", num_registers=4, hidden_dim=6)
    assert (spec.strategy, spec.cond_dim) == ("acme-readouts:first", 6)
    assert type(spec.build()) is FirstRegister


def test_the_registry_lists_the_entries_of_every_hook() -> None:
    class Everything:
        @hookimpl
        def regplug_readouts(self) -> list[ReadoutEntry]:
            return [ReadoutEntry("one", FirstRegister)]

        @hookimpl
        def regplug_films(self) -> tuple[FiLMEntry, ...]:
            return (FiLMEntry("two", FirstRegister),)

        @hookimpl
        def regplug_backbones(self) -> Iterator[BackboneEntry]:
            yield BackboneEntry("three", FirstRegister, layout=FirstRegister)

        @hookimpl
        def regplug_export_backends(self) -> list[ExportBackendEntry]:
            return [ExportBackendEntry("four", FirstRegister)]

    registry = Registry({})
    registry.register(Everything(), "acme")
    found = [
        registry.readout_entry("one"),
        registry.film_entry("two"),
        registry.backbone_entry("three"),
        registry.export_backend_entry("acme:four"),
    ]
    assert [type(entry) for entry in found] == list(HOOKS.values())
    assert {entry.provenance.distribution for entry in found} == {"acme"}
    assert registry.backbones() == ["three"]
    with pytest.raises(NameLookupError, match=r"^backbone 'one': not registered; known: three\.$"):
        registry.backbone_entry("one")


@pytest.mark.parametrize("spelling", ["acme-readouts", "Acme.Readouts", "acme__readouts"])
def test_a_distribution_has_one_name_in_any_spelling(spelling: str) -> None:
    registry = Registry({})
    registry.register(Offers("first"), "acme_readouts")
    assert normalise(spelling) == "acme-readouts"
    assert registry.readout_entry(f"{spelling}:first").full_name == "acme-readouts:first"
    with pytest.raises(PluginError, match="expected a new distribution name, got one already known"):
        registry.register(Offers("other"), spelling)
    registry.unregister(spelling)
    assert registry.strategies() == []


# ---- names


def test_a_bare_name_owned_by_two_distributions_is_an_error_that_names_both() -> None:
    registry = Registry({"regplug": BUILTIN})
    for owner in ("zoo-pool", "acme-readouts"):
        registry.register(Offers("first"), owner)
    with pytest.raises(NameLookupError) as caught:
        registry.readout_entry("first")
    assert str(caught.value) == (
        "strategy 'first': offered by acme-readouts and zoo-pool; use 'acme-readouts:first' or 'zoo-pool:first'."
    )
    assert registry.readout_entry("zoo-pool:first").provenance.distribution == "zoo-pool"
    assert registry.strategies()[-2:] == ["acme-readouts:first", "zoo-pool:first"]


def test_three_owners_of_one_name_are_all_named() -> None:
    registry = Registry({})
    for owner in ("c", "a", "b"):
        registry.register(Offers("first"), owner)
    with pytest.raises(NameLookupError, match=r"offered by a, b and c; use 'a:first', 'b:first' or 'c:first'\.$"):
        registry.resolve("first", num_registers=1, hidden_dim=1)


@pytest.mark.parametrize("order", list(itertools.permutations(["regplug", "acme", "zoo"])))
def test_the_order_of_discovery_never_decides(order: tuple[str, ...], module: Callable[[str], str]) -> None:
    installed = {
        "regplug": BUILTIN,
        "acme": Found("acme", None, readouts=[("pool", "acme:Pool"), ("own", "acme:Own")]),
        "zoo": Found("zoo", None, readouts=[("pool", "zoo:Pool")]),
    }
    registry = Registry({name: installed[name] for name in order})
    assert registry.readout_entry("pool").full_name == "regplug:pool"
    assert registry.readout_entry("acme:pool").build == "acme:Pool"
    names = [*BUILT_IN, "own", "acme:pool", "zoo:pool"]
    assert sorted(registry.strategies()) == sorted(names)


def test_a_built_in_name_means_the_built_in_even_if_another_plugin_uses_it() -> None:
    registry = Registry({"regplug": BUILTIN})
    registry.register(Offers("pool", "mean"), "aaa")
    assert registry.readout_entry("pool").full_name == "regplug:pool"
    assert registry.readout_entry("aaa:pool").full_name == "aaa:pool"
    assert set(registry.strategies()) == {*BUILT_IN, "aaa:mean", "aaa:pool"}


def test_each_listed_strategy_can_be_looked_up_as_it_is_listed() -> None:
    registry = Registry({"regplug": BUILTIN})
    registry.register(Offers("pool", "first"), "acme")
    registry.register(Offers("first", "last"), "zoo")
    listed = registry.strategies()
    assert [registry.readout_entry(name) for name in listed] == registry.readout_entries()
    assert len(set(listed)) == len(listed) == len(BUILT_IN) + 4


def test_an_unknown_name_is_answered_with_the_known_and_the_closest() -> None:
    registry = Registry({"regplug": BUILTIN})
    with pytest.raises(NameLookupError) as caught:
        registry.resolve("meen", num_registers=4, hidden_dim=8)
    assert str(caught.value) == (f"strategy 'meen': not registered; known: {', '.join(BUILT_IN)} (closest: mean).")
    assert isinstance(caught.value, LookupError)
    with pytest.raises(NameLookupError, match=r"^strategy 'regplug:pol': not registered; known: .* \(closest: pool\)"):
        registry.readout_entry("regplug:pol")
    with pytest.raises(NameLookupError, match="expected an installed plugin, got 'regplugg'; known: regplug"):
        registry.readout_entry("regplugg:pool")


# ---- one distribution, one plugin


@pytest.fixture
def both_groups(module: Callable[[str], str]) -> dict[str, Found]:
    """One distribution with entry points of both groups."""
    plugin = module(
        "import regplug\n"
        "@regplug.hookimpl\n"
        "def regplug_readouts():\n"
        "    return [regplug.ReadoutEntry('by-hook', 'acme.late:Hooked')]\n"
        "@regplug.hookimpl\n"
        "def regplug_backbones():\n"
        "    return [regplug.BackboneEntry('vit', 'acme.vit:ViT', layout='acme.vit:layout')]\n"
    )
    return {"acme": Found("acme", None, readouts=[("by-line", "acme.late:Lined")], modules=[plugin])}


def test_both_groups_of_one_distribution_are_offered_together(both_groups: dict[str, Found]) -> None:
    registry = Registry(both_groups)
    assert registry.strategies() == ["by-hook", "by-line"]
    assert registry.backbones() == ["vit"]
    assert statuses(registry) == {"acme": "ok"}


@pytest.mark.parametrize("loaded_first", [True, False])
def test_blocking_a_distribution_takes_away_both_groups(both_groups: dict[str, Found], loaded_first: bool) -> None:
    registry = Registry(both_groups)
    if loaded_first:
        assert registry.strategies()
    registry.block("acme")
    assert registry.strategies() == registry.backbones() == []
    assert statuses(registry) == {"acme": "blocked"}
    with pytest.raises(NameLookupError, match=r"^strategy 'acme:by-line': the plugin is blocked; see REGPLUG_DISABLE"):
        registry.readout_entry("acme:by-line")


@pytest.mark.parametrize("loaded_first", [True, False])
def test_unregistering_a_distribution_takes_away_both_groups(both_groups: dict[str, Found], loaded_first: bool) -> None:
    registry = Registry(both_groups)
    if loaded_first:
        assert registry.strategies()
    registry.unregister("acme")
    assert registry.strategies() == registry.backbones() == registry.plugins() == []
    with pytest.raises(NameLookupError, match=r"^plugin 'acme': not known; known: none\.$"):
        registry.unregister("acme")


def test_a_plugin_that_was_blocked_and_forgotten_can_be_registered_again() -> None:
    registry = Registry({})
    registry.register(Offers("first"), "acme")
    registry.block("acme")
    registry.unregister("acme")
    registry.register(Offers("first"), "acme")
    assert registry.strategies() == ["first"]
    assert statuses(registry) == {"acme": "ok"}


def test_two_registries_do_not_share_what_is_registered() -> None:
    one, other = Registry({}), Registry({})
    one.register(Offers("first"), "acme")
    assert one.strategies() == ["first"]
    assert other.strategies() == []


# ---- broken plugins


class RaisesInTheSecondHook(Offers):
    @hookimpl
    def regplug_backbones(self) -> list[BackboneEntry]:
        raise RuntimeError("no disk")


class Exits:
    @hookimpl
    def regplug_readouts(self) -> list[ReadoutEntry]:
        sys.exit(0)


class GivesText:
    @hookimpl
    def regplug_readouts(self) -> str:
        return "pool"


class GivesNone:
    @hookimpl
    def regplug_readouts(self) -> None:
        return None


class GivesAnotherEntry:
    @hookimpl
    def regplug_readouts(self) -> list[object]:
        return [FiLMEntry("film", FirstRegister)]


class GivesAPair:
    @hookimpl
    def regplug_readouts(self) -> list[object]:
        return [("pool", FirstRegister)]


class RaisesHalfWay:
    @hookimpl
    def regplug_readouts(self) -> Iterator[ReadoutEntry]:
        yield ReadoutEntry("first", FirstRegister)
        raise OSError("half way")


class NamesAHookThatIsNone:
    @hookimpl
    def regplug_readout(self) -> list[ReadoutEntry]:
        return []


class WantsAnArgument:
    @hookimpl
    def regplug_readouts(self, config: object) -> list[ReadoutEntry]:
        return []


class OffersABadReference:
    @hookimpl
    def regplug_readouts(self) -> list[ReadoutEntry]:
        return [ReadoutEntry("first", "no colon here")]


BROKEN = [
    (RaisesInTheSecondHook("first"), "RuntimeError: no disk"),
    (Exits(), "SystemExit: 0"),
    (GivesText(), "regplug_readouts: expected a list of ReadoutEntry, got str"),
    (GivesNone(), "regplug_readouts: expected a list of ReadoutEntry, got NoneType"),
    (GivesAnotherEntry(), "regplug_readouts: expected ReadoutEntry, got FiLMEntry(name='film'"),
    (GivesAPair(), "regplug_readouts: expected ReadoutEntry, got ('pool', <class"),
    (RaisesHalfWay(), "OSError: half way"),
    (Offers("twice", "twice"), "regplug_readouts: expected each name once, got 'twice' 2 times"),
    (Offers("no spaces allowed"), "got 'no spaces allowed'"),
    (Offers("colon:inside"), "got 'colon:inside'"),
    (NamesAHookThatIsNone(), "unknown hook 'regplug_readout'"),
    (WantsAnArgument(), "'config'"),
    (OffersABadReference(), "ReadoutEntry 'first': build: expected 'module:attr' or a callable, got 'no colon here'"),
]


@pytest.mark.parametrize(("plugin", "text"), BROKEN, ids=lambda value: type(value).__name__)
def test_a_broken_plugin_object_is_refused_whole_and_by_name(plugin: object, text: str) -> None:
    registry = Registry({"regplug": BUILTIN})
    with pytest.raises(PluginError) as caught:
        registry.register(plugin, "acme")
    assert str(caught.value).startswith("plugin 'acme': ")
    assert text in str(caught.value)
    assert registry.strategies() == BUILT_IN
    assert registry.backbones() == []
    assert statuses(registry) == {"regplug": "ok"}
    registry.register(Offers("first"), "acme")  # nothing is left in the way of a repaired one
    assert "first" in registry.strategies()


def test_a_hook_that_raises_is_chained_as_the_cause() -> None:
    with pytest.raises(PluginError) as caught:
        Registry({}).register(RaisesInTheSecondHook("first"), "acme")
    assert type(caught.value.__cause__) is RuntimeError
    with pytest.raises(PluginError) as caught:
        Registry({}).register(Exits(), "acme")
    assert type(caught.value.__cause__) is SystemExit


def test_an_interrupt_inside_a_hook_is_not_taken_for_a_broken_plugin() -> None:
    class Interrupted:
        @hookimpl
        def regplug_readouts(self) -> list[ReadoutEntry]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Registry({}).register(Interrupted(), "acme")


class Panic(BaseException):
    """As an extension in Rust raises it."""

    def __str__(self) -> str:
        raise ValueError("nothing to say")


class Panics:
    @hookimpl
    def regplug_readouts(self) -> list[ReadoutEntry]:
        raise Panic


class GivesALongThing:
    @hookimpl
    def regplug_readouts(self) -> list[object]:
        return ["line\n" * 1000]


def test_an_exception_without_a_message_breaks_its_plugin_only(module: Callable[[str], str]) -> None:
    with pytest.raises(PluginError, match=r"'acme': expected hooks that return entries, got Panic: <no message>$"):
        Registry({}).register(Panics(), "acme")
    name = module(f"import sys\nraise sys.modules[{__name__!r}].Panic")
    registry = Registry({"acme": Found("acme", None, modules=[name]), "regplug": BUILTIN})
    assert statuses(registry) == {"acme": "broken", "regplug": "ok"}
    assert "got Panic: <no message> (" in str(registry.plugins()[0].error)


def test_a_hook_result_with_a_long_repr_gives_a_message_of_one_line() -> None:
    with pytest.raises(PluginError) as caught:
        Registry({}).register(GivesALongThing(), "acme")
    assert "got 'line" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_two_entry_points_that_name_one_module_are_one(module: Callable[[str], str]) -> None:
    name = module(
        "import regplug\n@regplug.hookimpl\ndef regplug_readouts():\n    return [regplug.ReadoutEntry('own', 'a:B')]"
    )
    registry = Registry({"acme": Found("acme", None, modules=[name, name, f"{name}:"])})
    assert statuses(registry) == {"acme": "ok"}
    assert registry.strategies() == ["own"]


BROKEN_SOURCES = {
    "raises": ("raise ZeroDivisionError('at import')", ZeroDivisionError),
    "exits": ("import sys; sys.exit(0)", SystemExit),
    "imports what is not there": ("import surely_not_installed_anywhere", ModuleNotFoundError),
    "does not parse": ("def (", SyntaxError),
    "hook raises": (
        "import regplug\n@regplug.hookimpl\ndef regplug_readouts():\n    return [regplug.ReadoutEntry('a', 'b:c')]\n"
        "@regplug.hookimpl\ndef regplug_backbones():\n    raise LookupError('late')\n",
        LookupError,
    ),
}


@pytest.mark.parametrize("why", BROKEN_SOURCES)
def test_a_broken_distribution_is_recorded_and_leaves_the_others_alone(why: str, module: Callable[[str], str]) -> None:
    source, cause = BROKEN_SOURCES[why]
    broken = Found("acme", None, readouts=[("attend", "acme_late:Attend")], modules=[module(source)])
    good = Found("zoo", None, readouts=[("sum", "zoo_late:Sum")])
    registry = Registry({"acme": broken, "regplug": BUILTIN, "zoo": good})
    assert registry.strategies() == [*BUILT_IN, "sum"]
    assert statuses(registry) == {"acme": "broken", "regplug": "ok", "zoo": "ok"}
    (record,) = (record for record in registry.plugins() if record.status == "broken")
    assert type(record.error.__cause__) is cause
    assert str(record.error).startswith("plugin 'acme': ")
    assert registry.resolve("pool", num_registers=4, hidden_dim=8).cond_dim == 8


@pytest.mark.parametrize("name", ["attend", "acme:attend", "Acme:anything"])
def test_a_broken_plugin_raises_only_when_its_own_name_is_looked_up(name: str, module: Callable[[str], str]) -> None:
    broken = Found("acme", None, readouts=[("attend", "late:A")], modules=[module("import sys; sys.exit(3)")])
    registry = Registry({"acme": broken, "regplug": BUILTIN})
    with pytest.raises(PluginError) as caught:
        registry.readout_entry(name)
    assert "plugin 'acme': expected to import" in str(caught.value)
    assert "SystemExit: 3" in str(caught.value)
    assert type(caught.value.__cause__) is PluginError
    assert type(caught.value.__cause__.__cause__) is SystemExit
    with pytest.raises(NameLookupError, match=r"^strategy 'atend': not registered; .*; broken plugins: acme\.$"):
        registry.readout_entry("atend")


def test_a_name_of_a_broken_plugin_is_claimed_among_strategies_only(module: Callable[[str], str]) -> None:
    broken = Found("acme", None, readouts=[("vit", "late:A")], modules=[module("raise OSError")])
    with pytest.raises(NameLookupError, match=r"^backbone 'vit': not registered; known: none; broken plugins: acme"):
        Registry({"acme": broken}).backbone_entry("vit")


def test_a_bad_line_of_entry_points_breaks_its_own_distribution_only() -> None:
    bad = Found("acme", None, readouts=[("good", "acme:Good"), ("bad", "acme")])
    registry = Registry({"acme": bad, "regplug": BUILTIN})
    assert "good" not in registry.strategies()
    assert statuses(registry) == {"acme": "broken", "regplug": "ok"}
    with pytest.raises(
        PluginError, match="ReadoutEntry 'bad': build: expected 'module:attr' or a callable, got 'acme'"
    ):
        registry.readout_entry("good")


def test_a_readout_in_a_broken_module_raises_when_it_is_resolved(module: Callable[[str], str]) -> None:
    name = module("import sys; sys.exit(0)")
    found = Found(
        "acme", None, readouts=[("late", f"{name}:Late"), ("gone", "regplug.nn.film:Gone"), ("n", f"{name}:x")]
    )
    registry = Registry({"acme": found})
    assert registry.strategies() == ["gone", "late", "n"]
    with pytest.raises(PluginError, match="^strategy 'late': expected to import .*SystemExit: 0") as caught:
        registry.resolve("late", num_registers=1, hidden_dim=1)
    assert type(caught.value.__cause__) is SystemExit
    with pytest.raises(PluginError, match="^strategy 'gone': expected to import 'regplug.nn.film:Gone', got Attribute"):
        registry.resolve("gone", num_registers=1, hidden_dim=1)


def test_a_readout_reference_that_is_no_callable_is_refused() -> None:
    registry = Registry({"acme": Found("acme", None, readouts=[("sizes", "regplug.registry.entries:SIZES")])})
    with pytest.raises(
        PluginError, match="^strategy 'sizes': expected a callable at 'regplug.registry.entries:SIZES', got tup"
    ):
        registry.resolve("sizes", num_registers=1, hidden_dim=1)


def test_a_plugin_may_use_the_registry_while_it_is_imported(
    module: Callable[[str], str],
) -> None:
    name = module(
        "import builtins, regplug\n"
        "builtins.regplug_test_registry.strategies()\n"
        "@regplug.hookimpl\n"
        "def regplug_readouts():\n"
        "    return [regplug.ReadoutEntry('eager', 'late:A')]\n"
    )
    registry = Registry({"acme": Found("acme", None, modules=[name]), "regplug": BUILTIN})
    import builtins

    builtins.regplug_test_registry = registry
    try:
        assert registry.strategies() == [*BUILT_IN, "eager"]
        assert statuses(registry) == {"acme": "ok", "regplug": "ok"}
    finally:
        del builtins.regplug_test_registry


# ---- protocol


def test_a_plugin_of_a_newer_protocol_is_recorded_as_broken_and_says_which() -> None:
    registry = Registry({"acme": Found("acme", None, newest=3), "regplug": BUILTIN})
    assert statuses(registry) == {"acme": "broken", "regplug": "ok"}
    with pytest.raises(PluginError, match="plugin 'acme': expected protocol 1, got 3; update regplug"):
        registry.readout_entry("acme:anything")
    assert registry.readout_entry("mean").name == "mean"


def test_a_plugin_with_our_protocol_and_a_newer_one_works() -> None:
    registry = Registry({"acme": Found("acme", None, readouts=[("own", "acme:Own")], newest=2)})
    assert registry.strategies() == ["own"]
    assert (READOUT_GROUP, PLUGIN_GROUP) == ("regplug_readouts_v1", "regplug_v1")


# ---- laziness, switches


def test_looking_up_a_built_in_imports_no_third_party_plugin(module: Callable[[str], str]) -> None:
    canary = module("import regplug")
    other = module("import regplug")
    registry = Registry(
        {"acme": Found("acme", None, modules=[canary]), "regplug": BUILTIN, "zoo": Found("zoo", None, modules=[other])}
    )
    assert registry.resolve("compress-concat", num_registers=4, hidden_dim=8, compressed_dim=2).cond_dim == 8
    assert registry.readout_entry("regplug:pool").name == "pool"
    with pytest.raises(NameLookupError):
        registry.readout_entry("zoo:anything")
    assert other in sys.modules
    assert canary not in sys.modules
    assert statuses(registry) == {"acme": "ok", "regplug": "ok", "zoo": "ok"}
    assert canary in sys.modules


def test_threads_that_look_up_a_name_at_once_get_the_same_entry(both_groups: dict[str, Found]) -> None:
    registry = Registry(both_groups | {"regplug": BUILTIN})
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: registry.strategies(), range(40)))
    assert all(names == [*BUILT_IN, "by-hook", "by-line"] for names in answers)


# a thread imports a plugin that uses the default registry, while another thread forks
FORK = """
import os, pathlib, sys, threading, types
from regplug.registry.discovery import Found
from regplug.registry.registry import Registry

begun = threading.Event()
sys.modules["begun"] = types.SimpleNamespace(event=begun)
registry = Registry({"slow": Found("slow", None, modules=["slow"])})
loading = threading.Thread(target=registry.strategies, daemon=True)
loading.start()
begun.wait()
threading.Timer(30, os._exit, (3,)).start()  # instead of waiting forever
child = os.fork()
if child == 0:
    os._exit(0 if registry.strategies() == ["own"] else 1)
threading.Timer(20, os.kill, (child, 9)).start()
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
loading.join()
print(code, flush=True)
os._exit(0)
"""
SLOW = """
import sys, time, regplug
sys.modules["begun"].event.set()
time.sleep(0.5)
regplug.default_registry()

@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("own", "slow_models:Slow")]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.parametrize("before", ["", "import regplug.registry.default"])
def test_a_fork_waits_for_every_registry_and_for_none_that_waits_for_it(
    tmp_path: Path, run_python: Callable[..., Any], before: str
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    done = run_python(f"{before}\n{FORK}", [tmp_path])
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_plugins_are_listed_under_the_lock() -> None:
    registry = Registry({}, disabled=["acme"])

    class Watched(dict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            assert registry._lock._lock._is_owned()  # type: ignore[attr-defined]
            return super().__iter__()

    registry._records = Watched(registry._records)
    assert [record.distribution for record in registry.plugins()] == ["acme"]


def test_a_strict_registry_raises_at_the_first_broken_plugin_and_again(module: Callable[[str], str]) -> None:
    broken = Found("acme", None, modules=[module("raise OSError('no')")])
    registry = Registry({"acme": broken, "regplug": BUILTIN}, strict=True)
    for _ in range(2):
        with pytest.raises(PluginError, match="OSError: no"):
            registry.strategies()
    registry.block("acme")
    assert registry.strategies() == BUILT_IN


def test_an_interrupted_import_says_nothing_of_the_plugin(
    module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module("import os\nif 'REGPLUG_TEST_INTERRUPT' in os.environ:\n    raise KeyboardInterrupt")
    registry = Registry({"acme": Found("acme", None, readouts=[("own", "late:Own")], modules=[name])})
    monkeypatch.setenv("REGPLUG_TEST_INTERRUPT", "1")
    with pytest.raises(KeyboardInterrupt):
        registry.strategies()
    monkeypatch.delenv("REGPLUG_TEST_INTERRUPT")
    assert registry.strategies() == ["own"]
    assert statuses(registry) == {"acme": "ok"}


def test_the_environment_disables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGPLUG_DISABLE", " Regplug.Zoo , never-installed,")
    registry = Registry.installed()
    assert "gem" not in registry.strategies()
    found = statuses(registry)
    assert (found["regplug-zoo"], found["never-installed"]) == ("blocked", "blocked")
    monkeypatch.delenv("REGPLUG_DISABLE")
    assert "gem" in Registry.installed().strategies()


def test_regplug_itself_is_neither_blocked_nor_forgotten_so_a_built_in_name_means_the_built_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry({"regplug": BUILTIN})
    for loaded in (False, True):
        for forget in (registry.block, registry.unregister):
            with pytest.raises(PluginError, match=r"^plugin 'regplug': expected another plugin than regplug's own"):
                forget("Regplug")
        with pytest.raises(PluginError, match="got one already known"):
            registry.register(Offers("pool"), "regplug")
        if not loaded:
            assert registry.strategies() == BUILT_IN
    assert registry.readout_entry("pool").build == "regplug.nn.readouts.averages:RegisterPooling"
    monkeypatch.setenv("REGPLUG_DISABLE", "acme, Regplug")
    with pytest.raises(PluginError, match="a built-in name always means the built-in"):
        Registry.installed()


@pytest.mark.parametrize(("value", "code"), [("1", 1), ("0", 0), ("", 0)])
def test_regplug_strict_is_on_at_one_and_off_else(
    value: str, code: int, run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    metadata = tmp_path / "acme-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[regplug_v1]\nacme = surely_not_there\n")
    done = run_python("import regplug; regplug.strategies()", [tmp_path], {"REGPLUG_STRICT": value})
    assert done.returncode == code
    assert ("PluginError: plugin 'acme': expected to import 'surely_not_there'" in done.stderr) == bool(code)


def test_the_default_registry_is_made_once_and_only_a_default() -> None:
    assert regplug.default_registry() is regplug.default_registry()
    assert regplug.strategies() == regplug.default_registry().strategies()
    assert regplug.backbones() == regplug.default_registry().backbones()
    assert type(regplug.create("mean", num_registers=2, hidden_dim=3)).__name__ == "RegisterMean"


@pytest.mark.parametrize("name", [None, 4, b"mean", ["mean"]])
def test_a_name_that_is_not_a_text_is_a_lookup_error(name: Any) -> None:
    with pytest.raises(NameLookupError, match="^strategy: expected a name, got "):
        Registry({"regplug": BUILTIN}).resolve(name, num_registers=4, hidden_dim=8)


def test_an_option_may_be_called_self_and_is_then_unknown() -> None:
    with pytest.raises(SpecError, match="option 'self': expected a known option"):
        Registry({"regplug": BUILTIN}).resolve("mean", num_registers=4, hidden_dim=8, self=3)


@pytest.mark.parametrize("name", ["", "my plugin", "a:b"])
def test_a_plugin_needs_a_name_that_a_bundle_can_store(name: str) -> None:
    with pytest.raises(PluginError, match="expected letters, digits"):
        Registry({"regplug": BUILTIN}).register(object(), name)


def test_a_strict_registry_with_a_broken_plugin_raises_at_every_lookup() -> None:
    found = {**discover(), "acme": Found("acme", None, modules=["no_such_module_anywhere"])}
    assert Registry(found).readout_entry("mean").name == "mean"
    strict = Registry(found, strict=True)
    for _ in range(2):
        with pytest.raises(PluginError, match="plugin 'acme'"):
            strict.readout_entry("mean")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: regplug.ReadoutEntry("a", "m:A", summary=object()),
            "summary: expected one line of at most 400 characters",
        ),
        (
            lambda: regplug.ReadoutEntry("a", "m:A", summary="one\ntwo"),
            "summary: expected one line of at most 400 characters",
        ),
        (lambda: regplug.ReadoutEntry("a", "m:A", equation=["c = x_1"]), "equation: expected one printable line of at"),
        (lambda: regplug.ReadoutEntry("a", "m:A", source="one\ntwo"), "source: expected one printable line of at most"),
        (lambda: regplug.ReadoutEntry("a", "m:A", source="\x1b[2J"), r"source: .*, got '\\x1b\[2J'"),
        (lambda: regplug.ReadoutEntry("a", "m:A", equation="x" * 401), "equation: expected one printable line of at"),
        (
            lambda: regplug.BackboneEntry("a", "m:A", layout="m:l", readouts="pool"),
            "readouts: expected a list of texts",
        ),
        (lambda: regplug.BackboneEntry("a", "m:A", layout="m:l", classes="m:A"), "classes: expected a list of texts"),
        (lambda: regplug.BackboneEntry("a", "m:A", layout="m:l", options=7), "options: expected names with values"),
        (lambda: regplug.FiLMEntry("a", "m:A", classes=[3]), "classes: expected a list of texts"),
        (lambda: regplug.FiLMEntry("a", "m:A", width=5), "width: expected text"),
        (lambda: regplug.FiLMEntry("a", "m:A", width_at=7), "width_at: expected text"),
    ],
)
def test_a_field_of_a_wrong_type_is_refused_when_the_entry_is_made(make, said):
    with pytest.raises(regplug.SpecError, match=said):
        make()

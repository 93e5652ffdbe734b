"""Protocol 1 stays valid, and old names of entries and options still work."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plugins import Plugin, builtin_with, registry_of
from torch import Tensor, nn

import regplug
from regplug import (
    BackboneEntry,
    BundleError,
    ExportBackendEntry,
    FiLMEntry,
    NameLookupError,
    PluginError,
    ReadoutEntry,
    Registry,
    SpecError,
)
from regplug.bundle.weights_file import fill, read_note
from regplug.commands.main import _show_warning
from regplug.nn.backbone import with_defaults
from regplug.registry import default, deprecation
from regplug.registry.discovery import Found

BUILTIN = Found("regplug", None, modules=["regplug.registry.builtin"])
FROZEN = Path(__file__).resolve().parents[1] / "data" / "protocol-1"


class Compress(nn.Module):
    def __init__(self, num_registers: int, hidden_dim: int, compressed_dim: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_dim, compressed_dim)

    def forward(self, registers: Tensor) -> Tensor:
        return self.linear(registers).flatten(1)


class CompressAsItWas(nn.Module):
    def __init__(self, num_registers: int, hidden_dim: int, dim: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_dim, dim)

    def forward(self, registers: Tensor) -> Tensor:
        return self.linear(registers).flatten(1)


@pytest.fixture(autouse=True)
def _a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning was given before."""
    monkeypatch.setattr(deprecation, "_warned", set())


def renamed(name: str = "squeeze", *old: str, options: Mapping[str, str] | None = None) -> ReadoutEntry:
    return ReadoutEntry(name, Compress, old_names=old, old_options=options or {})


SIZES: dict[str, Any] = {"num_registers": 4, "hidden_dim": 8}

# ---- protocols


def test_a_plugin_of_protocol_1_works_forever(run_with_torch: Any) -> None:
    """The folder is an installed distribution that no commit may change: an example of all published ones."""
    code = (
        "import json, torch, regplug\n"
        "registry = regplug.default_registry()\n"
        "[record] = [one for one in registry.plugins() if one.distribution == 'frozen-readouts']\n"
        "entries = [*registry.readout_entries(), *registry.film_entries(), *registry.backbone_entries(),\n"
        "           *registry.export_backend_entries()]\n"
        "sizes = regplug.measure_backbone(registry.backbone_entry('frozen-vit'))\n"
        "print(json.dumps([record.status, record.version,\n"
        "    [one.name for one in entries if one.full_name.startswith('frozen')],\n"
        "    [list(regplug.create(name, num_registers=4, hidden_dim=8)(torch.zeros(2, 4, 8)).shape)\n"
        "     for name in ('frozen-hook', 'frozen-readouts:frozen-line')],\n"
        "    sizes.layout.start, sizes.film_sites[0].where, registry.film_entry('frozen-film').order]))"
    )
    done = run_with_torch(code, [FROZEN])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "ok",
        "1.0",
        ["frozen-hook", "frozen-line", "frozen-film", "frozen-vit", "frozen-backend"],
        [[2, 5], [2, 3]],
        1,
        "blocks.0",
        "shift-first",
    ]


def distribution(folder: Path, name: str, entry_points: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def test_of_two_protocols_the_one_we_speak_is_used_and_a_newer_alone_is_listed_as_such(
    run_python: Any, tmp_path: Path
) -> None:
    distribution(tmp_path, "both", "[regplug_readouts_v1]\nold-way = both:Old\n[regplug_v2]\nnew-way = both_two\n")
    distribution(tmp_path, "newer", "[regplug_v3]\nnew-way = newer\n")
    for module in ("both_two", "newer"):
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('imported')")
    code = "import sys; sys.argv = ['regplug', 'list']\nfrom regplug.commands.main import main; main()"
    done = run_python(code, [tmp_path])
    assert done.returncode == 0, done.stderr
    listed = [line.split() for line in done.stdout.splitlines()]
    assert ["old-way", "both", "1.0"] in listed
    assert ["both", "1.0", "ok"] in listed
    [row] = [line for line in done.stdout.splitlines() if line.startswith("newer ")]
    assert row.split(maxsplit=3)[2:] == ["broken", "plugin 'newer': expected protocol 1, got 3; update regplug."]


# ---- names


@pytest.mark.parametrize("old", ["shrink", "acme:shrink", "ACME:shrink"])
def test_an_old_name_works_with_one_warning_that_says_the_new_one(old: str) -> None:
    registry = builtin_with(acme=renamed("squeeze", "shrink", "press"))
    with pytest.warns(FutureWarning) as caught:
        spec = registry.resolve(old, **SIZES)
    assert [str(one.message) for one in caught] == [f"strategy {old!r} is now named 'acme:squeeze'; use that."]
    assert caught[0].filename == __file__
    assert spec.strategy == "acme:squeeze"
    assert spec.as_dict()["strategy"] == "acme:squeeze"
    assert registry.resolve(old, **SIZES) == spec  # a second warning would be an error here
    assert registry.resolve("squeeze", **SIZES) == spec
    assert not {"shrink", "press"} & set(registry.strategies())


def test_if_warnings_are_errors_each_use_of_an_old_name_raises() -> None:
    registry = builtin_with(acme=renamed("squeeze", "shrink"))
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(FutureWarning, match="now named 'acme:squeeze'"):
                registry.readout_entry("shrink")


def test_a_current_name_wins_over_the_old_name_of_another() -> None:
    registry = builtin_with(acme=renamed("squeeze", "shrink", "pool"), zoo=renamed("shrink"))
    assert registry.readout_entry("shrink").full_name == "zoo:shrink"
    assert registry.readout_entry("pool").full_name == "regplug:pool"
    with pytest.warns(FutureWarning, match=r"^strategy 'acme:shrink' is now named 'acme:squeeze'; use that\.$"):
        assert registry.readout_entry("acme:shrink").full_name == "acme:squeeze"


def test_an_old_name_of_two_distributions_is_an_error_that_names_both() -> None:
    registry = builtin_with(acme=renamed("squeeze", "shrink"), zoo=renamed("press", "shrink"))
    with pytest.raises(NameLookupError) as caught:
        registry.readout_entry("shrink")
    assert str(caught.value) == ("strategy 'shrink': offered by acme and zoo; use 'acme:squeeze' or 'zoo:press'.")


def test_an_old_name_that_is_in_use_in_its_own_distribution_is_refused() -> None:
    registry = Registry({})
    for other in (renamed("shrink"), renamed("press", "shrink")):
        with pytest.raises(PluginError, match="expected each name once, got 'shrink' 2 times"):
            registry.register(Plugin(renamed("squeeze", "shrink"), other), "acme")
    assert registry.strategies() == []


@pytest.mark.parametrize("old", ["shrink", ("squeeze",), ("",), ("two words",), (3,), 7, None])
def test_invalid_old_names_are_refused(old: Any) -> None:
    with pytest.raises(SpecError, match="^ReadoutEntry 'squeeze': old_names: expected a list of (other names|texts)"):
        ReadoutEntry("squeeze", Compress, old_names=old)


def test_every_kind_of_entry_can_have_old_names() -> None:
    registry = registry_of(
        FiLMEntry("film", Compress, old_names=["old-film"]),
        BackboneEntry("vit", Compress, layout=Compress, old_names=["old-vit"]),
        ExportBackendEntry("backend", Compress, old_names=["old-backend"]),
    )
    with pytest.warns(FutureWarning) as caught:
        found = [
            registry.film_entry("old-film"),
            registry.backbone_entry("acme:old-vit"),
            registry.export_backend_entry("old-backend"),
        ]
    assert [one.name for one in found] == ["film", "vit", "backend"]
    assert [str(one.message).split("'")[0] for one in caught] == ["FiLM generator ", "backbone ", "export backend "]


# ---- options


def test_an_old_option_works_with_one_warning() -> None:
    registry = builtin_with(acme=renamed(options={"dim": "compressed_dim"}))
    with pytest.warns(FutureWarning) as caught:
        spec = registry.resolve("squeeze", **SIZES, dim=3)
    assert [str(one.message) for one in caught] == [
        "strategy 'squeeze': option 'dim' is now named 'compressed_dim'; use that."
    ]
    assert caught[0].filename == __file__
    assert (spec.options, spec.cond_dim) == ({"compressed_dim": 3}, 12)
    assert spec == registry.resolve("squeeze", **SIZES, compressed_dim=3) == registry.resolve("squeeze", **SIZES, dim=3)
    assert spec.build().linear.out_features == 3
    assert spec.formula == "3*R"  # it is specified again at other sizes


def test_an_option_under_both_names_is_refused() -> None:
    registry = builtin_with(acme=renamed(options={"dim": "compressed_dim"}))
    message = r"^strategy 'squeeze': option 'dim': expected only 'compressed_dim', its new name, got both\.$"
    with pytest.raises(SpecError, match=message):
        registry.resolve("squeeze", **SIZES, dim=3, compressed_dim=3)


def test_two_old_names_of_one_option_are_refused_together() -> None:
    registry = builtin_with(acme=renamed(options={"dim": "compressed_dim", "width": "compressed_dim"}))
    with pytest.warns(FutureWarning), pytest.raises(SpecError, match="option 'width': expected only 'compressed_dim'"):
        registry.resolve("squeeze", **SIZES, dim=3, width=5)


@pytest.mark.parametrize("default", ["squeeze", "acme:squeeze", "narrow"])
@pytest.mark.parametrize("own", ["compressed_dim", "dim"])
@pytest.mark.parametrize("strategy", ["squeeze", "acme:squeeze", "narrow", "acme:narrow"])
@pytest.mark.filterwarnings("ignore:.* is now named:FutureWarning")
def test_a_backbones_options_are_of_its_default_strategy_in_every_spelling(
    strategy: str, own: str, default: str
) -> None:
    registry = builtin_with(acme=renamed("squeeze", "narrow", options={"dim": "compressed_dim"}))
    vit = BackboneEntry("vit", build="x:V", layout="x:l", readouts=(default,), default=default, options={own: 5})
    chosen = registry.readout_entry(strategy)
    assert with_defaults(vit, chosen, {}, registry) == {"compressed_dim": 5}
    assert with_defaults(vit, chosen, {"dim": 3}, registry) == {"compressed_dim": 3}
    assert with_defaults(vit, chosen, {"compressed_dim": 3}, registry) == {"compressed_dim": 3}
    assert with_defaults(vit, registry.readout_entry("mean"), {}, registry) == {}


def test_another_strategy_works_if_the_default_one_is_not_installed() -> None:
    vit = BackboneEntry("vit", build="x:V", layout="x:l", readouts=("gone",), default="gone", options={"a": 5})
    assert with_defaults(vit, builtin_with().readout_entry("mean"), {}, builtin_with()) == {}


def test_the_command_line_warns_about_an_old_name_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    _show_warning(FutureWarning("strategy 'a' is now named 'b'; use that."), FutureWarning, "core.py", 911)
    assert capsys.readouterr().err == "warning: strategy 'a' is now named 'b'; use that.\n"


def test_an_old_option_of_a_wrong_type_is_refused_under_its_new_name() -> None:
    registry = builtin_with(acme=renamed(options={"dim": "compressed_dim"}))
    with pytest.warns(FutureWarning), pytest.raises(SpecError, match="option 'compressed_dim': expected int, got 'x'"):
        registry.resolve("squeeze", **SIZES, dim="x")


@pytest.mark.parametrize(
    "old",
    [["dim"], {"dim": 3}, {"dim": "dim"}, {"a": "b", "b": "c"}, {"hidden_dim": "width"}, {"dim": "hidden_dim"}, None],
)
def test_invalid_old_options_are_refused(old: Any) -> None:
    with pytest.raises(SpecError, match=r"^ReadoutEntry 'squeeze': old_options: expected old words, each with its new"):
        ReadoutEntry("squeeze", Compress, old_options=old)


# ---- what was written before


@pytest.fixture
def before_and_after(tmp_path: Path) -> tuple[Path, nn.Module, Registry]:
    """A bundle from before a renaming, what it was made of, and the registry of afterwards."""
    before = builtin_with(acme=ReadoutEntry("shrink", CompressAsItWas))
    spec = before.resolve("shrink", **SIZES, dim=3)
    module = spec.build()
    regplug.export(spec, module, tmp_path / "bundle", backends=[], registry=before)
    entry = ReadoutEntry("squeeze", Compress, old_names=["shrink"], old_options={"dim": "compressed_dim"})
    return tmp_path / "bundle", module, builtin_with(acme=entry)


def test_a_bundle_from_before_a_renaming_still_loads(before_and_after: tuple[Path, nn.Module, Registry]) -> None:
    bundle, module, registry = before_and_after
    with pytest.warns(FutureWarning) as caught:
        loaded = regplug.load(bundle, registry=registry)
    assert len(caught) == 2
    registers = torch.randn(2, 4, 8)
    assert type(loaded) is Compress
    assert torch.equal(loaded(registers), module(registers))
    assert regplug.verify(bundle, registry=registry).ok


def test_a_weights_file_from_before_a_renaming_still_fits_and_another_does_not(
    before_and_after: tuple[Path, nn.Module, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, module, registry = before_and_after
    monkeypatch.setattr(default, "_default", registry)
    weights = str(bundle / "weights.safetensors")
    spec = registry.resolve("squeeze", **SIZES, compressed_dim=3)
    fresh = spec.build()
    with pytest.warns(FutureWarning):
        fill(fresh, weights, spec)
    assert torch.equal(fresh.linear.weight, module.linear.weight)
    note = read_note(weights, "squeeze")
    assert (note.strategy, note.options) == ("acme:squeeze", {"compressed_dim": 3})
    other = registry.resolve("squeeze", **SIZES, compressed_dim=5)
    with pytest.raises(BundleError, match="options: expected {'compressed_dim': 5}, got {'compressed_dim': 3}"):
        fill(other.build(), weights, other)

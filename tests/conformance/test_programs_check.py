"""The checks of storage, modes, programs and imports: good readouts pass, and each check finds its fault."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from support.plugins import installed_with
from support.strategies import EVERY, D, R, spec_of
from support.wrong_programs import WRONG, registry_of_the_wrong

from regplug import ReadoutEntry, Registry, export, load
from regplug.backends.torchscript import TorchScriptBackend
from regplug.bundle.nonfinite import near_the_largest, with_infinity, with_nan
from regplug.conformance import compiled, extreme_inputs, light_import, programs, storage
from regplug.conformance.check import NOT_APPLICABLE, PASSED, DoesNotApplyError, run_check
from regplug.conformance.run import all_checks, subject_of
from regplug.errors import ConformanceError
from regplug.registry.discovery import discover

SIZES = {"num_registers": R, "hidden_dim": D}


@pytest.fixture(scope="module")
def registry():
    return registry_of_the_wrong()


def subject_named(registry, name, backends=("torchscript",)):
    spec = registry.resolve(f"wrong:{name}", num_registers=R, hidden_dim=D)
    return subject_of(spec, backends=backends, compiler="eager", registry=registry)


def verdicts(subject):
    checks = (*light_import.CHECKS, *storage.CHECKS, *compiled.CHECKS, *programs.checks(subject.backends))
    checks += extreme_inputs.checks(subject.backends)
    return {check.name: run_check(check, subject) for check in checks}


# ---- good readouts pass, wrong ones fail


@pytest.mark.parametrize(
    "strategy", ["regplug:mean", "regplug:compress-concat", "regplug-zoo:gem", "regplug-digits:digits-gate"]
)
def test_a_good_strategy_passes_every_check(strategy):
    found = verdicts(subject_of(spec_of(strategy), backends=["torchscript"], compiler="eager"))
    assert {name: result.detail for name, result in found.items() if result.verdict != PASSED} == {}


@pytest.mark.parametrize("readout", ["Scales", "RefusesNoSamples", "IsHalf"])
def test_a_good_readout_registered_in_memory_passes_all_but_the_import_of_its_plugin(registry, readout):
    found = verdicts(subject_named(registry, readout))
    assert {name for name, result in found.items() if result.verdict != PASSED} == {"light-plugin"}
    assert found["light-plugin"].verdict == NOT_APPLICABLE


@pytest.mark.parametrize("readout", WRONG, ids=lambda readout: readout.__name__)
def test_a_wrong_readout_fails_its_own_checks_and_no_others(registry, readout):
    found = verdicts(subject_named(registry, readout.__name__))
    assert {name for name, result in found.items() if not result.ok} == WRONG[readout]


def test_every_check_is_listed_and_its_docstring_says_what_and_why():
    names = {check.name: check.why for check in all_checks(["torchscript", "onnx"])}
    wanted = ["light-plugin", "state-dict", "safetensors", "deepcopy", "script", "compile", "export"]
    wanted += [f"{row}[{name}]" for row in ("program", "program-refuses") for name in ("torchscript", "onnx")]
    wanted += ["threads"]
    assert [name for name in names if name in wanted] == wanted
    assert all(len(names[name].split(". ")) > 1 for name in wanted)


# ---- programs


def test_a_program_is_exported_once_for_all_checks_and_forgotten_with_its_subject(registry, monkeypatch):
    made = []

    def export(self, source, real=TorchScriptBackend.export):
        made.append(source)
        return real(self, source)

    monkeypatch.setattr(TorchScriptBackend, "export", export)
    for name in ("Scales", "IsWrongScripted"):
        made.clear()
        subject = subject_named(registry, name)
        verdicts(subject)
        assert len(made) == 1
        alive = weakref.ref(subject)
        del subject
        gc.collect()
        assert alive() is None


def test_without_a_program_its_refusals_do_not_apply_and_name_the_failed_check(registry):
    found = verdicts(subject_named(registry, "IsWrongScripted"))
    refusals = found["program-refuses[torchscript]"]
    assert (refusals.verdict, refusals.detail) == (NOT_APPLICABLE, "there is no program, see program[torchscript]")
    assert "program 'torchscript': case 'batch_1': error" in found["program[torchscript]"].detail


def test_an_entry_of_no_plugin_has_no_programs_and_no_plugin_to_import(registry):
    subject = subject_named(registry, "Scales")
    of_no_plugin = replace(subject, spec=replace(subject.spec, entry=replace(subject.spec.entry, provenance=None)))
    found = verdicts(of_no_plugin)
    unasked = {name for name, result in found.items() if result.verdict == NOT_APPLICABLE}
    assert unasked == {
        "light-plugin",
        *(f"{row}[torchscript]" for row in ("program", "program-refuses", "not-finite", "overflow")),
    }
    assert found["threads"].verdict == PASSED


@pytest.mark.parametrize(
    ("backend", "seen", "detail"),
    [
        ("forgetful", "program[forgetful]", "program 'forgetful': case 'batch_2': expected an error of at most"),
        ("racing", "threads", "program 'racing', called by 4 threads: expected outputs within"),
    ],
)
def test_a_program_that_is_wrong_when_loaded_or_shared_fails(registry, backend, seen, detail):
    found = verdicts(subject_named(registry, "Scales", [backend]))
    assert {name: result.detail[: len(detail)] for name, result in found.items() if not result.ok} == {seen: detail}


def test_threads_call_the_first_program_that_exists(registry):
    found = verdicts(subject_named(registry, "Scales", ["forgetful", "racing"]))
    assert not found["threads"].ok


def test_a_program_that_accepts_wrong_inputs_is_reported_with_each_of_them(tmp_path):
    spec = spec_of("regplug:mean")
    manifest = export(spec, spec.build(), tmp_path / "b").manifest
    programs.refuse_wrong_inputs(load(tmp_path / "b", program="torchscript"), manifest)
    # eager converts another dtype
    with pytest.raises(ConformanceError, match=r"got an answer for wrong dtype \[2, 4, 24\] torch\.float64\.$"):
        programs.refuse_wrong_inputs(spec.build(), manifest)
    with pytest.raises(ConformanceError, match=r"for wrong R \[2, 3, 24\].*wrong D.*wrong rank \[4, 24\].*wrong dtype"):
        programs.refuse_wrong_inputs(lambda given: given, manifest)


def test_data_of_another_class_or_other_numbers_is_refused(registry):
    subject = subject_named(registry, "Scales")
    programs.compare_data(subject.trained(), subject.trained(), subject)
    other = subject_named(registry, "RefusesNoSamples")
    with pytest.raises(ConformanceError, match=r"^the bundle's data: expected a Scales, got a RefusesNoSamples\.$"):
        programs.compare_data(other.trained(), subject.trained(), subject)
    with pytest.raises(ConformanceError, match=r"^the bundle's data: expected outputs within 0, got a difference of"):
        programs.compare_data(subject.trained(1), subject.trained(), subject)


@pytest.mark.compiler
def test_one_strategy_passes_with_the_aotinductor_backend():
    subject = subject_of(spec_of("regplug:pool"), backends=["aotinductor"], compiler="eager")
    checks = (*programs.checks(subject.backends), *extreme_inputs.checks(subject.backends))
    assert [run_check(check, subject).detail for check in checks] == [""] * 5


# ---- numbers


def passes_over_nan(given):
    return given.nan_to_num(nan=-1e3, posinf=1e3, neginf=-1e3)


def spreads(given):
    return given + given.isnan().any() * float("nan")


def saturates(given):
    return given.clamp(-1e6, 1e6)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (passes_over_nan, with_nan, "program: registers with a NaN: expected NaN or infinity, got "),
        (passes_over_nan, with_infinity, "program: registers with an infinity: expected NaN or infinity, got "),
        (spreads, with_nan, "program: registers with a NaN: expected .*, got nan"),
        (saturates, near_the_largest, "program: registers with numbers near the largest: expected .*e.*, got "),
    ],
)
def test_a_program_that_gives_a_number_for_nan_or_nan_for_a_number_fails(wrong, kind, message):
    subject = subject_of(spec_of("regplug:mean"), backends=[], compiler="eager")
    readout = subject.trained()
    extreme_inputs.compare("program", lambda given: [readout(given)], subject, kind)
    with pytest.raises(ConformanceError, match=message):
        extreme_inputs.compare("program", lambda given: [readout(wrong(given))], subject, kind)


def test_the_check_does_not_apply_to_a_readout_that_refuses_nan():
    subject = subject_of(spec_of("regplug:mean"), backends=[], compiler="eager")

    class Refuses(torch.nn.Module):
        def forward(self, registers):
            if registers.isnan().any():
                raise ValueError("expected numbers")
            return registers.mean(1)

    object.__setattr__(subject, "trained", Refuses)
    with pytest.raises(DoesNotApplyError, match="refuses a NaN: ValueError: expected numbers"):
        extreme_inputs.compare("program", lambda given: [given.mean(1)], subject, with_nan)


class Spectrum(torch.nn.Module):
    """Linear algebra, which raises its own error for NaN."""

    def __init__(self, num_registers: int, hidden_dim: int):
        super().__init__()

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(registers)


def test_a_readout_whose_operation_refuses_nan_is_exported(tmp_path):
    registry = installed_with(ReadoutEntry("spectrum", build=Spectrum))
    spec = registry.resolve("spectrum", num_registers=R, hidden_dim=D)
    with pytest.raises(RuntimeError, match="non-finite"):
        spec.build()(torch.full((1, R, D), float("nan")))
    export(spec, spec.build(), tmp_path / "b", registry=registry)
    given = torch.randn(2, R, D)
    got = load(tmp_path / "b", program="torchscript", registry=registry)(given)
    torch.testing.assert_close(got, torch.linalg.svdvals(given))


@pytest.mark.torture  # as `make matrix`, in one process
@pytest.mark.parametrize("strategy", [name for name in EVERY if name != "regplug:mean"])
def test_every_strategys_archive_keeps_nan_and_infinity(strategy):
    subject = subject_of(spec_of(strategy), backends=["torchscript"], compiler="eager")
    assert [run_check(check, subject).detail for check in extreme_inputs.checks(subject.backends)] == ["", ""]


# ---- the plugin's module


def test_a_plugin_whose_module_imports_torch_is_imported_once_for_all_its_readouts(install_plugin, monkeypatch):
    source = (
        "import regplug, torch.nn\n"
        "@regplug.hookimpl\n"
        "def regplug_readouts():\n"
        "    return [regplug.ReadoutEntry(name, torch.nn.Flatten) for name in ('one', 'two')]\n"
    )
    modules = {"heavy_plugin.py": source, "torch/__init__.py": "", "torch/nn.py": ""}  # a stub: torch takes seconds
    site = install_plugin("heavy-plugin", modules, {"regplug_v1": {"heavy": "heavy_plugin"}})
    monkeypatch.syspath_prepend(site)
    registry, children = Registry(discover()), []
    monkeypatch.setattr(light_import, "run_elsewhere", counted(children, light_import.run_elsewhere))
    for strategy in ("one", "two"):
        (check,) = light_import.CHECKS
        result = run_check(check, subject_of(registry.resolve(strategy, **SIZES), backends=[], registry=registry))
        assert result.verdict == "failed"
        assert result.detail == (
            "plugin 'heavy-plugin': expected heavy_plugin to import no torch, got it; import it inside functions."
        )
    assert len(children) == 1


def counted(children, run):
    def counting(command, overdue):
        children.append(command)
        return run(command, overdue)

    return counting


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("raise SystemExit", "to import, got exit code 0: no message"),
        ("raise OSError('no such disk')", "to import, got exit code 1: OSError: no such disk"),
        ("import time; time.sleep(60)", "to import within 1 s, got no end"),
        ("import sys; print('hello'); print('hello', file=sys.stderr)", ""),
        ("import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()", ""),
        ("import atexit, time; atexit.register(time.sleep, 99)", ""),
        ("import subprocess; subprocess.Popen(['sleep', '99'])", ""),
    ],
    ids=["exits", "raises", "hangs", "prints", "thread", "exit-hook", "grandchild"],
)
def test_a_module_that_cannot_be_imported_in_a_new_process_is_reported_with_the_reason(
    tmp_path, monkeypatch, source, fault
):
    name = f"conformance_module_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    if "sleep" in source:
        monkeypatch.setattr(light_import, "TIME_LIMIT", 1)
    assert light_import.import_fault((name,)) == fault


def test_a_plugin_with_readouts_only_has_no_module_to_import(tmp_path, monkeypatch):
    metadata = tmp_path / "lines_only-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lines-only\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[regplug_readouts_v1]\nflat = torch.nn:Flatten\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry(discover())
    subject = subject_of(registry.resolve("flat", **SIZES), backends=[], registry=registry)
    with pytest.raises(DoesNotApplyError, match=r"^lines-only has entry points of readouts only"):
        light_import.light_plugin(subject)

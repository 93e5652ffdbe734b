"""Loading does each step once: a header is parsed, an entry looked up and a width measured a single time."""

import subprocess
import sys
from collections import Counter

import pytest
import torch

import regplug
from regplug.format import safetensors_header
from regplug.registry import cond_dim

SIZES = {"num_registers": 4, "hidden_dim": 24}


@pytest.fixture
def counts(monkeypatch):
    """How often each step was called."""
    found = Counter()

    def count(owner, name):
        original = getattr(owner, name)

        def counting(*args, **kwargs):
            found[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(safetensors_header, "_read_header")
    count(cond_dim, "probe")
    for name in ("readout_entry", "film_entry"):
        count(regplug.Registry, name)
    return found


def test_a_readout_is_loaded_with_one_measurement_and_one_lookup(bundles, counts):
    regplug.load(bundles / "readout")
    assert counts == {"_read_header": 2, "probe": 1, "readout_entry": 1}  # one header of weights, one of golden cases


def test_a_conditioner_is_loaded_with_one_measurement_and_one_lookup_of_each_entry(bundles, counts):
    regplug.load(bundles / "conditioner")
    assert counts == {"_read_header": 2, "probe": 1, "readout_entry": 1, "film_entry": 1}


@pytest.mark.parametrize("name", ["readout", "conditioner"])
def test_a_program_is_loaded_without_the_class_and_each_header_is_parsed_once(bundles, counts, name):
    regplug.load(bundles / name, program="torchscript")
    assert counts == {"_read_header": 2}


def test_verify_parses_each_header_once_for_all_programs(bundles, counts, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, fullgraph: module)
    assert regplug.verify(bundles / "conditioner", programs=True).ok
    assert counts == {"_read_header": 2, "probe": 1, "readout_entry": 1, "film_entry": 1}


def test_loading_in_a_new_process_does_not_import_torchs_compiler(tmp_path):
    """It takes as long as torch itself."""
    spec = regplug.resolve("pool", num_registers=3, hidden_dim=4)
    regplug.export(spec, spec.build(), tmp_path / "b")
    code = "import sys, regplug; regplug.load(sys.argv[1]); print({'torch._dynamo'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "b"], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

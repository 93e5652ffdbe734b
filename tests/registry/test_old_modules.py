"""Modules that had another path in 0.1.0 are found under it, with a warning."""

import base64
import importlib
import pickle
import sys

import pytest
import torch

import regplug
from regplug.registry import deprecation
from regplug.registry.old_modules import NEW_PATHS

# (a TokenLayout, the spec of "pool"), pickled by 0.1.0
PICKLED = base64.b64decode(
    "gAJjcmVncGx1Zy5sYXlvdXQKVG9rZW5MYXlvdXQKcQApgXEBfXECKFgNAAAAbnVtX3JlZ2lzdGVyc3EDSwRYCgAAAGhpZGRlbl9k"
    "aW1xBEsIWAUAAABzdGFydHEFSwFYBwAAAGluZGljZXNxBk5YCgAAAG51bV90b2tlbnNxB05YCgAAAG5vcm1hbGl6ZWRxCE51YmNy"
    "ZWdwbHVnLnNwZWMKUmVhZG91dFNwZWMKcQkoY3JlZ3BsdWcuZW50cmllcwpSZWFkb3V0RW50cnkKcQopgXELfXEMKFgEAAAAbmFt"
    "ZXENWAQAAABwb29scQ5YBQAAAGJ1aWxkcQ9YKQAAAHJlZ3BsdWcucmVhZG91dHMuYXZlcmFnZXM6UmVnaXN0ZXJQb29saW5ncRBY"
    "BwAAAHN1bW1hcnlxEVgPAAAAbGVhcm5lZCBhdmVyYWdlcRJYCgAAAHByb3ZlbmFuY2VxE2NyZWdwbHVnLmVudHJpZXMKUHJvdmVu"
    "YW5jZQpxFCmBcRV9cRYoWAwAAABkaXN0cmlidXRpb25xF1gHAAAAcmVncGx1Z3EYWAcAAAB2ZXJzaW9ucRlYBQAAADAuMS4wcRp1"
    "YlgJAAAAb2xkX25hbWVzcRspWAUAAABzaXplc3EcfXEdWAsAAABvbGRfb3B0aW9uc3EefXEfWAgAAABjb25kX2RpbXEgWCEAAABy"
    "ZWdwbHVnLnJlYWRvdXRzLnNpemVzOnBvb2xfd2lkdGhxIXViSwRLCH1xIksIiHRxI1JxJIZxJS4="
)


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """No warning was given yet, and no old path is imported."""
    monkeypatch.setattr(deprecation, "_warned", set())
    for name in NEW_PATHS:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("old", NEW_PATHS)
def test_an_old_path_gives_the_module_of_the_new_one_and_one_warning(old):
    with pytest.warns(FutureWarning, match="is now 'regplug") as warned:
        assert importlib.import_module(old) is importlib.import_module(NEW_PATHS[old])
    assert f"module {old!r} is now {NEW_PATHS[old]!r}" in {str(one.message).partition("; ")[0] for one in warned}
    importlib.import_module(old)  # no second warning, which would be an error here


def test_what_the_backends_of_0_1_0_import_is_there():
    with pytest.warns(FutureWarning, match=r"regplug\.golden"):
        from regplug.golden import flatten
    assert [tensor.shape for tensor in flatten([(torch.zeros(1), torch.zeros(2))])] == [(1,), (2,)]


def test_a_pickle_of_0_1_0_loads():
    with pytest.warns(FutureWarning):
        layout, spec = pickle.loads(PICKLED)
    assert layout == regplug.TokenLayout(num_registers=4, hidden_dim=8, start=1)
    assert (type(spec), spec.cond_dim) == (regplug.ReadoutSpec, 8)
    with pytest.warns(FutureWarning):
        assert spec.build()(torch.zeros(2, 4, 8)).shape == (2, 8)


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"regplug\.nonsense"):
        importlib.import_module("regplug.nonsense")

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import regplug
from regplug_onnx.backend import OnnxBackend


def test_listing_imports_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, regplug, regplug_onnx.plugin\n"
        "assert 'onnx' in [e.name for e in regplug_onnx.plugin.regplug_export_backends()]\n"
        "regplug.default_registry().export_backend_entry('onnx')\n"
        "print(sorted({'torch', 'onnx', 'onnxscript', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_registry_knows_which_distribution_offers_the_backend() -> None:
    entry = regplug.default_registry().export_backend_entry("onnx")
    assert entry.provenance is not None
    assert (entry.provenance.distribution, entry.provenance.version) == ("regplug-onnx", "0.1.0")


@pytest.mark.parametrize("opset", [17, 1000, "20", True, 20.0, None])
def test_an_opset_that_does_not_exist_is_refused(opset: object) -> None:
    with pytest.raises(regplug.SpecError, match=r"^program 'onnx': opset: expected 18 to \d+, got "):
        OnnxBackend(opset=opset)  # type: ignore[arg-type]


def test_the_readmes_blocks_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec("\n".join(blocks), values)
    assert values["conditioning"].shape == (2, 384)
    assert capfd.readouterr() == ("", "")

"""``regplug.rank`` on samples made by hand: what is wrong with them is said before anything is trained."""

import numpy as np
import pytest
import torch
from support.plugins import installed_with
from torch import nn

import regplug
from regplug.commands.rank import source_code
from regplug.errors import SpecError

FAST = {"seeds": 2, "folds": 3, "epochs": 3, "jobs": 1, "runtimes": []}
N, R, D = 60, 4, 6
GENERATOR = torch.Generator().manual_seed(0)
REGISTERS = torch.randn(N, R, D, generator=GENERATOR)
CLASSES = torch.arange(N) % 2
NUMBERS = torch.randn(N, 1, generator=GENERATOR)


def made(**changes):
    return regplug.Samples(**{"registers": REGISTERS, "targets": CLASSES, "classes": ("a", "b"), **changes})


BROKEN = REGISTERS.clone()
BROKEN[7, 0, 0] = torch.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"registers": REGISTERS.numpy()}, r"registers: expected a floating-point tensor \[n, R, D\], got ndarray"),
        ({"registers": REGISTERS[:, 0]}, r"registers: expected a floating-point tensor \[n, R, D\], got .*\[60, 6\]"),
        ({"registers": REGISTERS.long()}, r"registers: expected a floating-point tensor \[n, R, D\], got torch.int64"),
        ({"registers": BROKEN}, "registers: expected finite numbers, got NaN or infinity in sample 7"),
        ({"targets": CLASSES[:50]}, r"targets: expected a tensor \[60\] or \[60, K\], got \[50\]"),
        ({"targets": CLASSES.tolist()}, "targets: expected a tensor .* got list"),
        ({"targets": CLASSES.float()}, r"targets: expected integers \[60\] with classes, got torch.float32"),
        ({"targets": CLASSES - 1}, "targets: expected 0 to 1, an index of the classes, got -1 to 0"),
        ({"targets": CLASSES + 1}, "targets: expected 0 to 1, an index of the classes, got 1 to 2"),
        ({"targets": torch.zeros(N).long()}, "class"),
        ({"classes": None}, "targets: expected floats without classes, got torch.int64; name the classes"),
        ({"classes": None, "targets": torch.ones(N, 1)}, "expected numbers that vary"),
        ({"references": {"zz": REGISTERS[:, 0]}}, r"references: expected a mapping with cls and patches at most, got"),
        ({"references": {"cls": REGISTERS[:9, 0]}}, r"cls: expected \[60, 6\], got \[9, 6\]"),
        ({"targets": torch.tensor(1)}, r"targets: expected a tensor \[60\] or \[60, K\], got \[\]"),
        ({"classes": None, "targets": NUMBERS[:, None]}, r"expected \[n\] or \[n, K\], got \[60, 1, 1\]"),
        ({"groups": torch.zeros(N)}, r"groups: expected integers \[60\], got torch.float32 \[60\]"),
        ({"groups": torch.tensor(3)}, r"groups: expected integers \[60\], got torch.int64 \[\]"),
        ({"groups": CLASSES.tolist()}, r"groups: expected integers \[60\], got list"),
        ({"groups": CLASSES[:9]}, r"groups: expected one for each of 60 samples, got \[9\]"),
        (
            {"groups": torch.arange(N) // 3},
            "groups: expected at least 30, because intervals of fewer are not valid, got 20",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message, tmp_path):
    with pytest.raises(SpecError, match=message):
        regplug.rank(made(**changes), ["mean"], cache=tmp_path, **FAST)
    assert not [*tmp_path.iterdir()]


def test_something_else_than_samples_is_refused():
    with pytest.raises(SpecError, match=r"samples: expected regplug.Samples, got Tensor; use regplug.read_samples"):
        regplug.rank(REGISTERS, ["mean"], **FAST)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_registers_of_other_precisions_are_read(dtype, tmp_path):
    found = regplug.rank(made(registers=REGISTERS.to(dtype).requires_grad_()), ["mean"], cache=tmp_path, **FAST)
    assert found.rows[0].error is None


def test_a_large_origin_of_the_numbers_changes_nothing(tmp_path):
    """A time stamp, for example: float32 knows only each 64th second of it."""
    told = REGISTERS[:, 0, :1].double()
    scores = [
        regplug.rank(made(classes=None, targets=told + origin), ["concat"], cache=tmp_path, **{**FAST, "epochs": 20})
        for origin in (0, 1.7e9)
    ]
    assert scores[0].rows[0].score > 0.8
    assert scores[1].rows[0].score == pytest.approx(scores[0].rows[0].score, abs=0.01)


def test_scores_of_a_class_made_by_a_function_are_not_kept(tmp_path):
    """Two of them may have the same lines and the same name, and read other registers."""

    def reads(place):
        class Mine(nn.Module):
            def __init__(self, hidden_dim):
                super().__init__()

            def forward(self, registers):
                return registers[:, place]

        return Mine

    told = REGISTERS.clone()
    told[:, 1, 0] += 6 * CLASSES
    scores = []
    for place in (1, 0):
        registry = installed_with(regplug.ReadoutEntry("mine", build=reads(place)))
        found = regplug.rank(made(registers=told), ["mine"], registry=registry, cache=tmp_path, **FAST)
        scores.append(found.rows[0].score)
    assert scores[0] > 0.9
    assert scores[1] < 0.8


OWN_READOUT = """
from torch import nn

class Own(nn.Module):
    def forward(self, registers):
        return registers[:, 0]
"""


def test_the_scores_of_an_edited_file_are_not_taken(tmp_path, monkeypatch):
    file = tmp_path / "own_readout.py"
    file.write_text(OWN_READOUT)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source_code.code_of("own", "own_readout:Own")
    file.write_text(OWN_READOUT.replace("0]", "1]"))
    source_code._digest_of.cache_clear()
    assert before is not None
    assert source_code.code_of("own", "own_readout:Own") != before


def test_numpy_targets_are_named_in_the_message():
    with pytest.raises(SpecError, match="got ndarray"):
        regplug.rank(made(targets=np.zeros(N)), ["mean"], **FAST)

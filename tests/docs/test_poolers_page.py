"""The table of what published poolers do with padding is what they do, and its verdicts find what is wrong."""

import poolers_page
import pytest
import torch
from poolers_page import MASK, cells, pyg, with_mask
from support.strategies import EVERY, D, spec_of

import regplug

MASKED = [name for name in EVERY if spec_of(name).takes_mask and name != "regplug:join"]
RIGHT = [MASK, "same", "same", "same", "refused", "none"]


def test_the_table_is_that_of_the_installed_packages():
    assert f"<!-- poolers -->\n{poolers_page.table()}<!-- end -->" in poolers_page.PAGE.read_text(), (
        "run `python tests/docs/poolers_page.py`"
    )


@pytest.mark.parametrize("strategy", MASKED)
def test_every_strategy_with_a_mask_has_the_row_of_those_in_the_table(strategy):
    options = EVERY[strategy][0]
    assert cells(MASK, lambda: with_mask(regplug.create(strategy, num_registers=None, hidden_dim=D, **options))) == (
        RIGHT
    )


def total(x, mask):
    return (x * mask.unsqueeze(2)).sum(1)


def leaking(x, mask):
    """Right, but for a thousandth of the padding."""
    return total(x, mask) + 1e-3 * total(x, ~mask)


def by_count(x, mask):
    """NaN for an empty sample, and right with NaN in the padding."""
    return total(x.masked_fill(~mask.unsqueeze(2), 0), mask) / mask.sum(1, keepdim=True)


def of_the_batch(x, mask):
    """Subtracts what the batch holds."""
    visible = x.masked_fill(~mask.unsqueeze(2), 0)
    return visible.sum(1) - visible.mean((0, 1))


@pytest.mark.parametrize(
    ("pooler", "row"),
    [
        (lambda x, mask: x.mean(1), ["differs", "differs", "NaN", "other samples differ", "yes"]),
        (lambda x, mask: x[:, 0], ["differs", "same", "NaN", "reads the padding", "yes"]),
        (lambda x, mask: x[:, -1], ["same", "differs", "same", "other samples differ", "none"]),
        (total, ["same", "same", "NaN", "zeros", "none"]),
        (leaking, ["differs", "differs", "NaN", "other samples differ", "yes"]),
        (by_count, ["same", "same", "same", "NaN", "none"]),
        (of_the_batch, ["differs", "differs", "differs", "other samples differ", "none"]),
    ],
)
def test_the_verdicts_tell_wrong_poolers_apart(pooler, row):
    assert cells(MASK, lambda: with_mask(pooler)) == [MASK, *row]


def test_a_pooler_by_index_that_drops_a_sample_differs():
    def shifted(x, index, dim_size):
        return torch.zeros(dim_size, D).index_add(0, (index + 1) % dim_size, x)

    assert cells(poolers_page.INDEX, lambda: pyg(shifted))[1] == "differs"

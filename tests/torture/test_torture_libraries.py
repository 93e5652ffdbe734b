"""A share of the pairs of model libraries; and a wrong pair is detected."""

import shutil

import pytest
from support.consumer import built
from support.damage import replace_weights

from torture.libraries import LIBRARY, bundles, figures, right_pairs


@pytest.mark.torture
def test_every_library_runs_its_own_code_and_is_unloaded_after_its_last_use(tmp_path):
    found = figures(tmp_path, bundles(tmp_path), built() / "regplug_aoti_golden", 0.02, lambda word: None)
    assert [one.tried for one in found] == [20, 40, 22]
    assert {one.what: one.bad for one in found if not one.ok} == {}


@pytest.mark.compiler
def test_a_wrong_pair_is_not_counted_as_right(tmp_path):
    made = bundles(tmp_path, ["mean", "compress-concat"])
    folder = shutil.copytree(made["compress-concat"], tmp_path / "b")
    assert right_pairs([(made["mean"], folder), (made["mean"], made["compress-concat"])]) == 2
    replace_weights(folder, lambda state: {name: tensor + 1000 * (tensor == tensor) for name, tensor in state.items()})
    (folder / LIBRARY).write_bytes((made["mean"] / LIBRARY).read_bytes())
    assert right_pairs([(made["mean"], made["compress-concat"]), (made["mean"], folder)]) == 1

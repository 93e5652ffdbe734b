"""Arrays in and out, in a process that also runs torch."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch
from support.consumer import readout

import regplug
import regplug_runtime
from regplug.format.weights import save_tensors

pytestmark = pytest.mark.compiler

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def opened(bundle):
    with regplug_runtime.open(bundle) as one:
        yield one


def registers(*sizes):
    return RANDOM.standard_normal(sizes or (6, 4, 24), np.float32)


def test_both_runtimes_in_one_process_give_the_same(bundle, film_bundle):
    """Both bind the same library's functions: one to libtorch, one to its own."""
    pairs = [(regplug_runtime.open(one), regplug.load(one, program="aotinductor")) for one in (bundle, film_bundle)]
    (pooled, pooled_torch), (film, film_torch) = pairs
    for _ in range(3):
        given, tokens = registers(), registers(2, 9, 24)
        np.testing.assert_allclose(
            pooled.run(given), pooled_torch(torch.from_numpy(given)).numpy(), rtol=1e-5, atol=1e-6
        )
        made, wanted = film.run_film(tokens), film_torch(torch.from_numpy(tokens))
        np.testing.assert_allclose(
            np.stack([np.stack(pair) for pair in made]),
            torch.stack([torch.stack(pair) for pair in wanted]).numpy(),
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_bundle_says_what_it_holds(bundle, film_bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    with regplug_runtime.open(bundle) as one:
        assert (one.path, one.holds, one.strategy, one.cond_dim) == (
            str(bundle),
            "readout",
            "regplug:compress-concat",
            manifest["cond_dim"],
        )
        assert one.isa == "x86-64-v3"
        assert one.digest == regplug.load(bundle, program="aotinductor").digest
        assert one.inputs == (regplug_runtime.TensorSpec("registers", "float32", ("B", 4, 24)),)
        assert one.outputs == (regplug_runtime.TensorSpec("conditioning", "float32", ("B", 24)),)
        wanted = f"<Bundle {str(bundle)!r}: readout regplug:compress-concat, registers [B, 4, 24], float32, "
        assert repr(one) == f"{wanted}x86-64-v3>"
    assert repr(one) == f"{wanted}closed>"
    with regplug_runtime.open(film_bundle) as film:
        assert film.inputs[0].shape == ("B", "T", 24)
        assert [output.name for output in film.outputs] == ["gamma_0", "beta_0", "gamma_1", "beta_1"]


def strided():
    given = registers(12, 8, 48)
    record = np.zeros((6, 4, 24), [("flag", "u1"), ("number", "f4")])
    record["number"] = registers()
    data = np.empty(6 * 4 * 24 * 4 + 1, np.uint8)
    unaligned = data[1:].view(np.float32).reshape(6, 4, 24)
    unaligned[:] = registers()
    frozen = registers()
    frozen.setflags(write=False)
    yield "steps", given[::2, ::2, ::2]
    yield "backwards", given[::-2, ::-2, ::-2]
    yield "transposed", registers(24, 4, 6).T
    yield "one row for all", np.broadcast_to(registers(1, 1, 24), (6, 4, 24))
    yield "a field", record["number"]
    yield "unaligned", unaligned
    yield "read-only", frozen
    yield "a subclass", np.rec.array(registers()).view(np.memmap)
    yield "one sample", registers(1, 4, 24)


STRIDED = dict(strided())


@pytest.mark.parametrize("what", STRIDED)
def test_an_array_with_any_strides_gives_what_its_plain_copy_gives(opened, what):
    given = STRIDED[what]
    np.testing.assert_array_equal(opened.run(given), opened.run(np.array(given, order="C", subok=False)))


@pytest.mark.torture
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float16", 2e-3)])
def test_other_dtypes_run(tmp_path, dtype, tolerance):
    spec, module = readout("compress-concat")
    module = module.to(getattr(torch, dtype))
    regplug.export(spec, module, tmp_path / "b", backends=["aotinductor"])
    given = registers().astype(dtype)
    with regplug_runtime.open(tmp_path / "b") as opened:
        made = opened.run(given)
    assert made.dtype == dtype
    with torch.inference_mode():
        wanted = module(torch.from_numpy(given)).numpy()
    np.testing.assert_allclose(made, wanted, rtol=tolerance, atol=tolerance)


def test_an_empty_batch_gives_an_empty_array(opened, film_bundle):
    assert opened.run(registers(0, 4, 24)).shape == (0, 24)
    with regplug_runtime.open(film_bundle) as film:
        assert [one.shape for pair in film.run_film(registers(0, 9, 24)) for one in pair] == [(0, 5)] * 4


def test_an_array_outlives_its_bundle_and_may_be_written_to(bundle):
    given = registers()
    with regplug_runtime.open(bundle) as one:
        kept, again = one.run(given), one.run(given)
        copied = kept.copy()
        kept[:] = 0
        np.testing.assert_array_equal(again, copied)
        np.testing.assert_array_equal(one.run(given), copied)
    del one
    gc.collect()
    np.testing.assert_array_equal(again[1:3], copied[1:3])
    again += 1
    np.testing.assert_array_equal(again, copied + 1)


def test_the_pairs_of_a_conditioner_are_arrays_of_their_own(film_bundle):
    tokens = registers(2, 9, 24)
    with regplug_runtime.open(film_bundle) as film:
        pairs = film.run_film(tokens)
        copies = copy.deepcopy(pairs)
        pairs[0][0][:] = 7
        del pairs[0]
        gc.collect()
        np.testing.assert_array_equal(pairs[0], copies[1])
        np.testing.assert_array_equal(film.run_film(tokens), copies)


def memory() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - no buffer of the size of a page
        return int(file.read().split()[1])


def test_calls_and_openings_free_their_memory(bundle, opened):
    given = registers(4096, 4, 24)
    for _ in range(20):
        opened.run(given)
    before = memory()
    for _ in range(500):  # 200 MB of outputs
        opened.run(given)
    assert memory() - before < 10_000  # pages
    for _ in range(20):
        regplug_runtime.open(bundle)
    before = memory()
    for _ in range(100):
        regplug_runtime.open(bundle)
    assert memory() - before < 2_000


def test_reloaded_weights_take_effect_and_are_not_pickled(bundle, tmp_path):
    given = registers()
    weights = torch.randn(6, 24, generator=torch.Generator().manual_seed(4))
    (tmp_path / "w.safetensors").write_bytes(save_tensors({"compress.weight": weights}))
    with regplug_runtime.open(bundle) as one:
        before = one.run(given)
        one.reload(tmp_path / "w.safetensors")
        wanted = torch.nn.functional.linear(torch.from_numpy(given), weights).flatten(1).numpy()
        np.testing.assert_allclose(one.run(given), wanted, rtol=1e-5, atol=1e-5)
        assert not np.allclose(before, wanted)
        with pytest.raises(regplug_runtime.BundleError, match="got a bundle that was reloaded; open it in the worker"):
            pickle.dumps(one)


def test_a_pickled_bundle_is_the_same_bundle_or_none(bundle, tmp_path, monkeypatch):
    shutil.copytree(bundle, tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    with regplug_runtime.open("b") as one:
        data = pickle.dumps(one)
    monkeypatch.chdir("/")
    with pickle.loads(data) as again:
        assert again.digest == one.digest
        given = registers()
        np.testing.assert_array_equal(again.run(given), regplug_runtime.open(bundle).run(given))
    manifest = tmp_path / "b" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(regplug_runtime.BundleError, match=f"pinned is {one.digest}"):
        pickle.loads(data)


def test_closing_waits_for_the_calls_that_run(bundle):
    """The memory of a program must not be freed under a call."""
    given = registers(2048, 4, 24)
    wanted = regplug_runtime.open(bundle).run(given)
    for _ in range(20):
        one = regplug_runtime.open(bundle)
        started = threading.Event()
        found = []

        def call(one=one, started=started, found=found):
            try:
                while True:
                    made = one.run(given)
                    started.set()
                    found.append(np.array_equal(made, wanted))
            except regplug_runtime.BundleError:
                found.append("closed")

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        started.wait()
        one.close()
        for thread in threads:
            thread.join()
        assert found.count("closed") == 3
        assert set(found) == {True, "closed"}


def test_threads_run_while_another_reloads(bundle, tmp_path):
    given = registers(8, 4, 24)
    files, wanted = [], []
    one = regplug_runtime.open(bundle)
    for seed in range(2):
        weights = torch.randn(6, 24, generator=torch.Generator().manual_seed(seed))
        files.append(tmp_path / f"{seed}.safetensors")
        files[-1].write_bytes(save_tensors({"compress.weight": weights}))
        one.reload(files[-1])
        wanted.append(one.run(given))
    done = threading.Event()
    wrong = []

    def call():
        while not done.is_set():
            made = one.run(given)
            if not any(np.array_equal(made, one) for one in wanted):
                wrong.append(made)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        one.reload(files[turn % 2])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong

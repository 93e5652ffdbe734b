"""A share of the rounds of open, run, reload and close; and growth of memory is detected."""

from dataclasses import replace

import pytest
from support.consumer import built

from torture.soak import MAX_GROWTH, SAMPLES, Sample, figure, growth, samples_of, soak


@pytest.mark.torture
def test_memory_descriptors_and_threads_do_not_grow(tmp_path):
    found = soak(tmp_path, built() / "regplug_soak", 0.05, lambda word: None)
    assert {one.what.rpartition(": ")[2] for one in found} == {
        *("C++ torchscript", "C++ aotinductor", "Python data", "Python torchscript", "Python aotinductor"),
        "regplug_runtime",
    }
    assert {one.tried for one in found} == {500}
    assert {one.what: one.note for one in found if not one.ok} == {}


@pytest.mark.parametrize("kept", [0, 64 << 10])
def test_memory_that_each_round_leaks_is_detected(kept):
    rounds = 10_000
    samples = [Sample((100 << 20) + number * rounds // SAMPLES * kept, 5, 1) for number in range(SAMPLES)]
    assert growth(samples, rounds) == pytest.approx(kept)
    assert figure("x", rounds, samples).ok == (kept <= MAX_GROWTH)


def test_one_step_of_the_allocator_is_not_growth_but_a_tensor_per_round_is():
    rounds = 500
    stepped = [Sample((100 << 20) + (40 << 10) * (number > 50), 5, 1) for number in range(SAMPLES)]
    kept = [Sample((100 << 20) + number * rounds // SAMPLES * 1024, 5, 1) for number in range(SAMPLES)]
    assert growth(stepped, rounds) > MAX_GROWTH
    assert figure("x", rounds, stepped).ok
    assert not figure("x", rounds, kept).ok


@pytest.mark.parametrize("kept", ["descriptors", "threads"])
def test_a_leaked_descriptor_or_thread_is_detected(kept):
    samples = [Sample(100 << 20, 5, 1)] * SAMPLES
    assert figure("x", 100, samples).ok
    last = replace(samples[-1], **{kept: getattr(samples[-1], kept) + 1})
    assert not figure("x", 100, [*samples[:-1], last]).ok


def test_a_process_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="exit status 1"):
        samples_of(["false"])

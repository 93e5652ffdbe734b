"""A share of the rounds of open, run, reload and close, and the measure of growth, which sees what is kept."""

from dataclasses import replace

import pytest
from support.consumer import built

from torture.soak import MAX_GROWTH, SAMPLES, Sample, figure, growth, samples_of, soak


@pytest.mark.torture
def test_memory_descriptors_and_threads_stay_over_the_rounds(tmp_path):
    found = soak(tmp_path, built() / "regplug_soak", 0.05, lambda word: None)
    assert {one.what.rpartition(": ")[2] for one in found} == {
        "C++ torchscript", "C++ aotinductor", "Python data", "Python torchscript", "Python aotinductor",
    }  # fmt: skip
    assert {one.tried for one in found} == {500}
    assert {one.what: one.note for one in found if not one.ok} == {}


@pytest.mark.parametrize("kept", [0, 64 << 10])
def test_what_each_round_keeps_is_seen_in_the_slope(kept):
    rounds = 10_000
    samples = [Sample((100 << 20) + number * rounds // SAMPLES * kept, 5, 1) for number in range(SAMPLES)]
    assert growth(samples, rounds) == pytest.approx(kept)
    assert figure("x", rounds, samples).ok == (kept <= MAX_GROWTH)


def test_one_step_of_the_allocator_in_few_rounds_is_no_growth_and_a_tensor_a_round_is():
    rounds = 500
    stepped = [Sample((100 << 20) + (40 << 10) * (number > 50), 5, 1) for number in range(SAMPLES)]
    kept = [Sample((100 << 20) + number * rounds // SAMPLES * 1024, 5, 1) for number in range(SAMPLES)]
    assert growth(stepped, rounds) > MAX_GROWTH
    assert figure("x", rounds, stepped).ok
    assert not figure("x", rounds, kept).ok


@pytest.mark.parametrize("kept", ["descriptors", "threads"])
def test_a_descriptor_or_thread_that_is_kept_is_seen(kept):
    samples = [Sample(100 << 20, 5, 1)] * SAMPLES
    assert figure("x", 100, samples).ok
    last = replace(samples[-1], **{kept: getattr(samples[-1], kept) + 1})
    assert not figure("x", 100, [*samples[:-1], last]).ok


def test_a_process_that_ends_badly_is_no_row():
    with pytest.raises(RuntimeError, match="exit status 1"):
        samples_of(["false"])

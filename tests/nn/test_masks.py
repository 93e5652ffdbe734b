"""A mask says which tokens count: what is elsewhere changes nothing, in every mode, and no gradient reaches it."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.readouts import moved
from support.strategies import EVERY, D, spec_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import regplug
from regplug import ShapeError
from regplug.nn import masked_max, masked_mean, masked_softmax, zero_empty_rows, zero_padding

# a join has tests of its own: its parts have fixed places, and not all of them take a mask
MASKED = [strategy for strategy in EVERY if spec_of(strategy).takes_mask and strategy != "regplug:join"]
PADDINGS = (0.0, 3.0, math.nan, math.inf, -math.inf, 1e38)
LENGTHS = ((1,), (3,), (1, 4), (5, 2, 1))  # tokens that count, of each sample
every_masked = pytest.mark.parametrize("strategy", MASKED)
Run = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch.compiler.reset()


def readout_of(strategy: str, num_registers: int | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Its parameters are no longer the initial ones."""
    torch.manual_seed(0)
    options: Any = EVERY[strategy][0]
    spec = regplug.resolve(strategy, num_registers=num_registers, hidden_dim=D, **options)
    return moved(spec.build().to(dtype), 0.2)


def tokens_of(count: int, seed: int = 0) -> Tensor:
    return torch.randn(1, count, D, generator=torch.Generator().manual_seed(100 * seed + count))


def padded(samples: Sequence[Tensor], pattern: str, value: float, more: int = 2) -> tuple[Tensor, Tensor]:
    """The samples in one batch, with a mask of their tokens; the value is everywhere else."""
    longest = max(sample.shape[1] for sample in samples) + more
    tokens = torch.full((len(samples), longest, D), value, dtype=samples[0].dtype)
    mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, sample in enumerate(samples):
        count = sample.shape[1]
        places = {
            "right": torch.arange(count),
            "left": torch.arange(longest - count, longest),
            "scattered": torch.randperm(longest, generator=torch.Generator().manual_seed(row))[:count].sort().values,
        }[pattern]
        mask[row, places] = True
        tokens[row, places] = sample[0]
    return tokens, mask


def batches(paddings: Sequence[float] = PADDINGS) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """Samples, and the same samples padded in every way."""
    for lengths in LENGTHS:
        samples = [tokens_of(count, row) for row, count in enumerate(lengths)]
        for pattern in ("right", "left", "scattered"):
            for value in paddings:
                yield samples, *padded(samples, pattern, value)
        if len(set(lengths)) == 1:
            yield samples, *padded(samples, "right", 0.0, more=0)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = max(expected.abs().max().item(), 1e-6) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def exported(readout: nn.Module) -> Run:
    sizes = {0: torch.export.Dim("batch", min=0), 1: torch.export.Dim("tokens", min=1)}
    given = (torch.randn(2, 3, D), torch.ones(2, 3, dtype=torch.bool))
    graph: Run = torch.export.export(readout, given, dynamic_shapes=(sizes, sizes)).module()
    return graph


MODES: dict[str, Callable[[nn.Module], Run]] = {
    "eager": lambda readout: readout,
    "scripted": torch.jit.script,
    "compiled": lambda readout: torch.compile(readout, backend="eager", fullgraph=True, dynamic=True),
    "exported": exported,
}
every_mode = pytest.mark.parametrize("mode", MODES)


# ---- which strategies


def test_the_strategies_with_a_mask_are_those_that_take_any_number_of_tokens() -> None:
    takes_any = set()
    for strategy, (options, _) in EVERY.items():
        try:
            regplug.resolve(strategy, num_registers=None, hidden_dim=D, **options)  # type: ignore[arg-type]
        except regplug.SpecError:
            continue
        takes_any.add(strategy)
    assert set(MASKED) == takes_any
    assert {"regplug:mean", "regplug:gated-abmil", "regplug:attention", "regplug-zoo:max"} < takes_any
    assert len(MASKED) == 17


@pytest.mark.parametrize("strategy", [strategy for strategy in EVERY if not spec_of(strategy).takes_mask])
def test_a_strategy_with_a_weight_or_place_for_each_register_takes_no_mask(strategy: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        spec_of(strategy).build()(torch.zeros(2, 4, D), mask=torch.ones(2, 4, dtype=torch.bool))


# ---- padding


@every_masked
@every_mode
def test_a_sample_gives_the_same_alone_and_with_any_padding(strategy: str, mode: str) -> None:
    readout = readout_of(strategy)
    run = MODES[mode](readout)
    for samples, tokens, mask in batches():
        wanted = torch.cat([readout(sample) for sample in samples])
        close(run(tokens, mask), wanted)


@pytest.mark.compiler
@pytest.mark.parametrize("strategy", ["regplug:mean", "regplug:attention", "regplug-zoo:max", "regplug-zoo:mean-std"])
def test_inductors_code_gives_the_same_with_one_graph_for_all_sizes(strategy: str) -> None:
    readout = readout_of(strategy)
    run = torch.compile(readout, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for samples, tokens, mask in batches((math.nan, 1e38)):
            close(run(tokens, mask), torch.cat([readout(sample) for sample in samples]))
        empty, others = one_empty(math.inf)[1], torch.tensor([0, 1, 3])
        answer = run(one_empty(math.inf)[0], empty)
    assert (answer[2] == 0).all()
    close(answer[others], readout(one_empty(math.inf)[0][others], empty[others]))


def test_the_comparison_notices_a_token_more() -> None:
    readout = readout_of("regplug:mean")
    samples = [tokens_of(3), tokens_of(2, 1)]
    tokens, mask = padded(samples, "left", 3.0)
    wanted = torch.cat([readout(sample) for sample in samples])
    close(readout(tokens, mask), wanted)
    mask[1, 0] = True
    with pytest.raises(AssertionError):
        close(readout(tokens, mask), wanted)


@every_masked
@every_mode
def test_a_mask_of_all_tokens_changes_nothing(strategy: str, mode: str) -> None:
    readout = readout_of(strategy)
    run = MODES[mode](readout)
    for batch, count in ((1, 1), (3, 1), (1, 5), (4, 3)):
        tokens = torch.randn(batch, count, D, generator=torch.Generator().manual_seed(batch))
        close(run(tokens, torch.ones(batch, count, dtype=torch.bool)), readout(tokens))


@every_masked
@every_mode
def test_an_empty_batch_gives_an_empty_answer(strategy: str, mode: str) -> None:
    run = MODES[mode](readout_of(strategy))
    answer = run(torch.zeros(0, 3, D), torch.zeros(0, 3, dtype=torch.bool))
    assert answer.shape == (0, spec_of(strategy).cond_dim)


@functools.cache
def cached_readout(strategy: str) -> nn.Module:
    return readout_of(strategy).double()


@settings(deadline=None, max_examples=60)
@given(data=st.data(), strategy=st.sampled_from(MASKED), value=st.sampled_from(PADDINGS), batch=st.integers(1, 3))
def test_any_mask_gives_what_the_tokens_that_count_give_alone(
    data: st.DataObject, strategy: str, value: float, batch: int
) -> None:
    count = data.draw(st.integers(1, 6))
    rows = st.lists(st.booleans(), min_size=count, max_size=count).filter(any)
    mask = torch.tensor([data.draw(rows) for _ in range(batch)])
    tokens = torch.randn(batch, count, D, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    readout = cached_readout(strategy)
    wanted = torch.cat([readout(tokens[row : row + 1, mask[row]]) for row in range(batch)])
    tokens[~mask] = value
    close(readout(tokens, mask), wanted, 1e-9)


def numpy_answer(strategy: str, tokens: np.ma.MaskedArray[Any, Any]) -> Any:
    """The formula, by NumPy's own masked arrays."""
    mean, largest = tokens.mean(1), tokens.max(1)
    return {
        "regplug:mean": mean,
        "regplug-zoo:sum": tokens.sum(1),
        "regplug-zoo:max": largest,
        "regplug-zoo:avgmax": (mean + largest) / 2,
        "regplug-zoo:mean-std": np.ma.concatenate([mean, np.sqrt(tokens.var(1) + 1e-6)], 1),
    }[strategy].filled(math.nan)


@pytest.mark.parametrize(
    "strategy", ["regplug:mean", "regplug-zoo:sum", "regplug-zoo:max", "regplug-zoo:avgmax", "regplug-zoo:mean-std"]
)
def test_readouts_without_weights_give_what_numpys_masked_arrays_give(strategy: str) -> None:
    readout = readout_of(strategy).double()
    for samples, tokens, mask in batches((0.0, 3.0, -1e38)):
        assert len(samples) == len(tokens)
        hidden = np.broadcast_to(~mask.numpy()[:, :, None], tokens.shape)
        wanted = numpy_answer(strategy, np.ma.masked_array(tokens.double().numpy(), hidden))
        close(readout(tokens.double(), mask), torch.from_numpy(wanted), 1e-12)


@every_masked
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05), (torch.float16, 0.01)]
)
def test_in_each_dtype_it_is_near_the_float64_truth(strategy: str, dtype: torch.dtype, tolerance: float) -> None:
    readout = readout_of(strategy, dtype=dtype)
    truth = copy.deepcopy(readout).double()
    for run in (readout, torch.jit.script(readout)):
        for samples, tokens, mask in batches((math.nan,)):
            answer = run(tokens.to(dtype), mask)
            assert answer.dtype == dtype
            close(answer.double(), torch.cat([truth(sample.to(dtype).double()) for sample in samples]), tolerance)


def test_a_mean_in_16_bits_is_summed_in_float32() -> None:
    readout = readout_of("regplug:mean")
    tokens, mask = padded([torch.full((1, 40, D), 3000.0, dtype=torch.float16)], "left", math.nan)
    assert (readout(tokens, mask) == 3000).all()


@every_masked
@every_mode
def test_under_autocast_it_works(strategy: str, mode: str) -> None:
    readout = readout_of(strategy)
    run = MODES[mode](readout) if mode != "exported" else readout
    samples = [tokens_of(3), tokens_of(2, 1)]
    tokens, mask = padded(samples, "left", math.nan)
    wanted = torch.cat([readout(sample) for sample in samples]).detach()
    with torch.autocast("cpu", torch.bfloat16):
        answer = run(tokens.requires_grad_(), mask)
    close(answer.detach().float(), wanted, 0.05)
    answer.float().sum().backward()
    assert (tokens.grad[~mask] == 0).all()  # type: ignore[index]
    assert all(parameter.grad.isfinite().all() for parameter in readout.parameters())  # type: ignore[union-attr]


@every_masked
def test_tokens_of_another_dtype_are_converted_to_that_of_the_parameters(strategy: str) -> None:
    readout = readout_of(strategy)
    tokens, mask = padded([tokens_of(3), tokens_of(2, 1)], "left", math.nan)
    has_parameters = any(True for _ in readout.parameters())
    answer = readout(tokens.double(), mask)
    assert answer.dtype == (torch.float32 if has_parameters else torch.float64)
    close(answer.float(), readout(tokens, mask))


@every_masked
def test_a_fixed_number_is_still_checked_with_a_mask(strategy: str) -> None:
    readout, fixed = readout_of(strategy), readout_of(strategy, 4)
    tokens, mask = padded([tokens_of(3), tokens_of(2, 1)], "left", math.nan, more=1)
    close(fixed(tokens, mask), readout(tokens, mask))
    with pytest.raises(ShapeError, match=rf"expected registers \[B, 4, {D}\], got \[2, 3, {D}\]"):
        fixed(tokens[:, 1:], mask[:, 1:])


class Operations(TorchDispatchMode):
    """The operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))


@every_masked
def test_without_a_mask_no_operation_of_masks_runs(strategy: str) -> None:
    readout, tokens = readout_of(strategy), tokens_of(3)
    masking = {"aten.where", "aten.masked_fill", "aten.any", "aten.bitwise_not", "aten.all"}
    with Operations() as plain:
        readout(tokens)
    with Operations() as masked:
        readout(tokens, torch.ones(1, 3, dtype=torch.bool))
    assert not masking & plain.names
    assert masking & masked.names


# ---- gradients


def gradients_of(readout: nn.Module, run: Callable[..., Tensor], *given: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Those of the tokens, and of the parameters."""
    readout.zero_grad()
    tokens = given[0].clone().requires_grad_()
    output = run(tokens, *given[1:])
    cotangent = torch.randn(8, output.shape[1], generator=torch.Generator().manual_seed(0))[-len(output) :]
    (output * cotangent).sum().backward()
    assert tokens.grad is not None
    return tokens.grad, [
        torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in readout.parameters()
    ]


@every_masked
@pytest.mark.parametrize("mode", ["eager", "scripted", "compiled"])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, 1e38])
def test_no_gradient_reaches_the_padding_and_the_others_are_those_of_the_samples_alone(
    strategy: str, mode: str, value: float
) -> None:
    readout = readout_of(strategy)
    run = MODES[mode](readout)
    sample = tokens_of(3)
    wanted, wanted_parameters = gradients_of(readout, readout, sample)
    for pattern in ("right", "left", "scattered"):
        tokens, mask = padded([tokens_of(2, 1), sample], pattern, value)
        got, _ = gradients_of(readout, run, tokens, mask)
        assert (got[~mask] == 0).all()
        close(got[1][mask[1]], wanted[0])
        _, parameters = gradients_of(readout, run, *padded([sample], pattern, value))
        for one, other in zip(parameters, wanted_parameters, strict=True):
            close(one, other, 1e-4)


# ---- samples in which nothing counts

REFUSAL = "mask: expected a token that counts in every sample, got none in sample 2."


def one_empty(value: float) -> tuple[Tensor, Tensor]:
    """Four samples; nothing counts in the third."""
    tokens, mask = padded([tokens_of(count, count) for count in (2, 3, 1, 2)], "left", value)
    mask[2] = False
    tokens[2] = value
    return tokens, mask


@every_masked
def test_eager_and_scripted_code_refuses_a_sample_in_which_no_token_counts(strategy: str) -> None:
    readout = readout_of(strategy)
    text = f"readout {strategy.partition(':')[2]!r}: {REFUSAL}"
    with pytest.raises(ShapeError) as caught:
        readout(*one_empty(0.0))
    assert str(caught.value) == text
    with pytest.raises(torch.jit.Error, match=text):
        torch.jit.script(readout)(*one_empty(0.0))


@every_masked
@pytest.mark.parametrize("mode", ["on a device", "compiled", "exported"])
@pytest.mark.parametrize("value", [0.0, math.nan, 1e38])
def test_elsewhere_its_vector_is_zeros_with_zero_gradients(strategy: str, mode: str, value: float) -> None:
    readout = readout_of(strategy)
    if mode == "on a device":
        # its values are not read there, as while a graph is compiled
        with mock.patch("torch.compiler.is_compiling", return_value=True):
            _check_empty(readout, readout, value)
    else:
        _check_empty(readout, MODES[mode](readout), value)


def _check_empty(readout: nn.Module, run: Run, value: float) -> None:
    tokens, mask = one_empty(value)
    others = torch.tensor([True, True, False, True])
    answer = run(tokens, mask)
    assert (answer[2] == 0).all()
    close(answer[others], readout(tokens[others], mask[others]))
    got, parameters = gradients_of(readout, run, tokens, mask)
    assert (got[~mask] == 0).all()
    assert got.isfinite().all()
    only, no_gradients = gradients_of(readout, run, tokens[2:3], mask[2:3])
    assert (only == 0).all()
    assert all((one == 0).all() for one in no_gradients)
    assert all(one.isfinite().all() for one in parameters)


@every_masked
def test_inside_vmap_a_mask_gives_the_same_and_an_empty_sample_zeros(strategy: str) -> None:
    readout = readout_of(strategy)
    tokens, mask = one_empty(math.nan)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        answer = torch.vmap(lambda one, its: readout(one[None], its[None])[0])(tokens, mask)
    assert (answer[2] == 0).all()
    others = torch.tensor([0, 1, 3])
    close(answer[others], readout(tokens[others], mask[others]))


@every_masked
def test_a_fake_mask_gives_the_width(strategy: str) -> None:
    readout = readout_of(strategy)
    with FakeTensorMode(allow_non_fake_inputs=True):
        answer = readout(torch.zeros(2, 3, D), torch.ones(2, 3, dtype=torch.bool))
    assert answer.shape == (2, spec_of(strategy).cond_dim)


@every_masked
def test_on_the_meta_device_a_mask_gives_the_width(strategy: str) -> None:
    readout = readout_of(strategy).to("meta")
    answer = readout(torch.zeros(2, 3, D, device="meta"), torch.ones(2, 3, dtype=torch.bool, device="meta"))
    assert answer.shape == (2, spec_of(strategy).cond_dim)


# ---- masks that do not fit

OK = torch.ones(2, 9, dtype=torch.bool)


@every_masked
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (OK[:, :8], "expected mask [2, 9], got [2, 8]."),
        (OK[:1], "expected mask [2, 9], got [1, 9]."),
        (OK[0], "expected mask [2, 9], got [9]."),
        (OK[:, :, None], "expected mask [2, 9], got [2, 9, 1]."),
        (OK.to(torch.uint8), "mask: expected dtype bool, got uint8."),
        (OK.long(), "mask: expected dtype bool, got int64."),
        (OK.float(), "mask: expected dtype bool, got float32."),
        (OK.to("meta"), "mask: expected device cpu, got meta."),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_in_one_line(strategy: str, mask: Tensor, words: str) -> None:
    readout = readout_of(strategy)
    text = f"readout {strategy.partition(':')[2]!r}: {words}"
    with pytest.raises(ShapeError) as caught:
        readout(torch.zeros(2, 9, D), mask)
    assert str(caught.value) == text
    with pytest.raises(torch.jit.Error) as scripted:
        torch.jit.script(readout)(torch.zeros(2, 9, D), mask)
    assert text in str(scripted.value)


def test_a_scripted_mask_of_a_rare_dtype_is_refused_too() -> None:
    with pytest.raises(torch.jit.Error, match="mask: expected dtype bool, got another"):
        torch.jit.script(readout_of("regplug:mean"))(torch.zeros(2, 9, D), OK.bfloat16())


@every_masked
def test_an_array_in_place_of_a_mask_is_refused_by_its_class(strategy: str) -> None:
    with pytest.raises(ShapeError, match=r"mask: expected dtype bool, got ndarray\.$"):
        readout_of(strategy)(torch.zeros(2, 9, D), OK.numpy())  # type: ignore[arg-type]


# ---- the helpers, for authors


def test_the_helpers_are_as_documented() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False]])
    tokens = torch.tensor([[[1.0], [math.nan], [-4.0]], [[7.0], [math.inf], [1.0]]])
    visible = zero_padding(tokens, mask)
    assert visible.tolist() == [[[1.0], [0.0], [-4.0]], [[0.0], [0.0], [0.0]]]
    assert masked_mean(visible, mask).tolist() == [[-1.5], [0.0]]
    assert masked_mean(visible.long(), mask).tolist() == [[-1.5], [0.0]]
    assert masked_max(visible - 2, mask).tolist() == [[-1.0], [0.0]]
    weights = masked_softmax(visible, mask)
    assert weights[0, 1] == 0
    assert weights.sum(1).tolist() == [[1.0], [1.0]]
    assert zero_empty_rows(tokens[:, 0], mask).tolist() == [[1.0], [0.0]]

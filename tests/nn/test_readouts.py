"""The built-in readouts: their formulas, the modules of others as oracles, what their options refuse.

What every readout owes alike, in every way to run it, is in test_strategies.py.
"""

from __future__ import annotations

import doctest
import importlib
import io
import math
import pkgutil
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import torch
from nvsubquadratic.modules import film as upstream
from support.readouts import moved
from torch import Tensor, nn

import regplug
from regplug import SpecError
from regplug.nn.readouts import averages
from regplug.nn.readouts.attentions import RegisterAttention, RegisterGatedABMIL
from regplug.nn.readouts.averages import RegisterMean, RegisterPooling, WeightedSum
from regplug.nn.readouts.concatenations import (
    MambaRegReadout,
    RegisterCompressConcat,
    RegisterConcat,
    RegisterSelectConcat,
)

R, D, C = 5, 6, 3
MAKE: dict[str, Callable[[], nn.Module]] = {
    "mean": lambda: RegisterMean(R, D),
    "pool": lambda: RegisterPooling(R, D),
    "pool of any width": lambda: RegisterPooling(R),
    "concat": lambda: RegisterConcat(R, D),
    "compress-concat": lambda: RegisterCompressConcat(R, D, C),
    "select-concat": lambda: RegisterSelectConcat(R, D, (3, 0)),
    "mamba-reg": lambda: MambaRegReadout(R, D, ratio=2),
    "gated-abmil": lambda: RegisterGatedABMIL(R, D, attention_dim=2),
    "attention": lambda: RegisterAttention(R, D, num_queries=2, num_heads=3, mlp_ratio=1.5),
}
every_readout = pytest.mark.parametrize("name", MAKE)


def trained(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A readout with parameters other than the initial ones."""
    torch.manual_seed(0)
    return moved(MAKE[name]().to(dtype))


def registers(batch: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, R, D, generator=torch.Generator().manual_seed(batch)).to(dtype)


def identical(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_the_comparison_notices_one_wrong_bit_and_another_dtype() -> None:
    right = registers()
    wrong = right.clone()
    wrong[0, 0, 0] = torch.nextafter(wrong[0, 0, 0], torch.tensor(math.inf))
    for other in (wrong, right.double(), right[:2]):
        with pytest.raises(AssertionError):
            identical(other, right)
    identical(right.clone(), right)


# ---- formulas


def linear(layer: nn.Linear, values: list[float]) -> list[float]:
    biases = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    rows = zip(layer.weight.tolist(), biases, strict=True)
    return [sum(w * x for w, x in zip(row, values, strict=True)) + bias for row, bias in rows]


def softmax(values: list[float]) -> list[float]:
    raised = [math.exp(value) for value in values]
    return [one / sum(raised) for one in raised]


def average(weights: list[float], sample: list[list[float]]) -> list[float]:
    return [sum(w * x for w, x in zip(weights, column, strict=True)) for column in zip(*sample, strict=True)]


def gated_abmil(readout: RegisterGatedABMIL, sample: list[list[float]]) -> list[float]:
    scores = []
    for register in sample:
        value, gate = linear(readout.value, register), linear(readout.gate, register)
        hidden = [math.tanh(v) / (1 + math.exp(-u)) for v, u in zip(value, gate, strict=True)]
        scores += linear(readout.score, hidden)
    return average(softmax(scores), sample)


def attention(readout: RegisterAttention, sample: list[list[float]]) -> list[float]:
    width, answer = D // 3, []
    both = [linear(readout.kv, register) for register in sample]
    for latent in readout.latent[0].tolist():
        query, found = linear(readout.q, latent), []
        for at in range(0, D, width):
            keys = [register[at : at + width] for register in both]
            scores = [sum(q * k for q, k in zip(query[at : at + width], key, strict=True)) for key in keys]
            weights = softmax([score / math.sqrt(width) for score in scores])
            found += average(weights, [register[D + at : D + at + width] for register in both])
        attended = linear(readout.proj, found)
        mean = sum(attended) / D
        deviation = math.sqrt(sum((x - mean) ** 2 for x in attended) / D + 1e-6)
        scaled = zip(attended, readout.norm.weight.tolist(), readout.norm.bias.tolist(), strict=True)
        normed = [(x - mean) / deviation * weight + bias for x, weight, bias in scaled]
        hidden = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in linear(readout.mlp.fc1, normed)]
        answer += [x + y for x, y in zip(attended, linear(readout.mlp.fc2, hidden), strict=True)]
    return answer


def mamba_reg(readout: MambaRegReadout, sample: list[list[float]]) -> list[float]:
    flat = [x for register in sample for x in linear(readout.neck, register)]
    size = math.sqrt(sum(x * x for x in flat) / len(flat) + 1e-5)
    return [x / size * weight for x, weight in zip(flat, readout.norm_neck.weight.tolist(), strict=True)]


FORMULAS = {
    "mean": lambda readout, sample: average([1 / R] * R, sample),
    "pool": lambda readout, sample: average(softmax(readout.logits.tolist()), sample),
    "pool of any width": lambda readout, sample: average(softmax(readout.logits.tolist()), sample),
    "concat": lambda readout, sample: [x for register in sample for x in register],
    "compress-concat": lambda readout, sample: [x for one in sample for x in linear(readout.compress, one)],
    "select-concat": lambda readout, sample: sample[3] + sample[0],
    "mamba-reg": mamba_reg,
    "gated-abmil": gated_abmil,
    "attention": attention,
}


@every_readout
def test_a_readout_computes_its_formula(name: str) -> None:
    readout, given = trained(name, torch.float64), registers(dtype=torch.float64)
    expected = torch.tensor([FORMULAS[name](readout, sample) for sample in given.tolist()], dtype=torch.float64)
    torch.testing.assert_close(readout(given), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(readout(given.flip(2)), expected, rtol=1e-12, atol=1e-12)


def test_the_learned_average_starts_as_the_plain_one() -> None:
    torch.testing.assert_close(RegisterPooling(R, D)(registers()), RegisterMean(R, D)(registers()))


def test_pooling_of_any_width_takes_any_width_in_every_mode() -> None:
    readout = RegisterPooling(R)
    assert readout.out_dim is None
    torch.compiler.reset()
    for run in (readout, torch.jit.script(readout), torch.compile(readout, backend="eager", fullgraph=True)):
        assert [run(torch.zeros(2, R, width)).shape[1] for width in (1, 7, 384)] == [1, 7, 384]
        for wrong in (torch.zeros(2, R + 1, D), torch.zeros(R, D)):
            with pytest.raises(
                (ValueError, RuntimeError, torch.jit.Error), match=rf"readout 'pool': expected registers \[B, {R}, "
            ):
                run(wrong)


@pytest.mark.parametrize("strategy", ["attention", "gated-abmil"])
def test_what_attends_does_not_ask_in_which_order_the_registers_come(strategy: str) -> None:
    readout = trained(strategy)
    torch.testing.assert_close(readout(registers().flip(1)), readout(registers()), rtol=1e-5, atol=1e-6)


# ---- nvSubquadratic as the oracle


def oracles(name: str) -> tuple[nn.Module, nn.Module]:
    """Our readout and theirs, with the same trained weights."""
    ours = trained(name)
    theirs = upstream.RegisterCompressConcat(R, D, C) if name == "compress-concat" else upstream.RegisterPooling(R)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


seeds = pytest.mark.parametrize("name", ["pool", "pool of any width", "compress-concat"])


@seeds
def test_a_checkpoint_loads_strictly_both_ways(name: str) -> None:
    ours, theirs = oracles(name)
    fresh = MAKE[name]()
    fresh.load_state_dict(theirs.state_dict(), strict=True)
    identical(dict(fresh.state_dict()), dict(ours.state_dict()))
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({}, strict=True)


@pytest.mark.parametrize(
    ("batch", "num", "dim", "width"), [(1, 4, 384, 96), (7, 14, 384, 96), (2, 1, 1, 1), (0, 4, 8, 2)]
)
def test_compress_concat_answers_as_upstream_to_the_bit(batch: int, num: int, dim: int, width: int) -> None:
    ours, theirs = RegisterCompressConcat(num, dim, width), upstream.RegisterCompressConcat(num, dim, width)
    theirs.load_state_dict(ours.state_dict())
    given = torch.randn(batch, num, dim)
    with torch.no_grad():
        identical(ours(given), theirs(given))


@pytest.mark.parametrize(("batch", "num", "dim"), [(1, 4, 384), (7, 14, 384), (2, 1, 1), (0, 4, 8)])
def test_pooling_answers_as_upstream(batch: int, num: int, dim: int) -> None:
    ours, theirs = RegisterPooling(num, dim), upstream.RegisterPooling(num)
    with torch.no_grad():
        ours.logits += torch.randn(num)
    theirs.load_state_dict(ours.state_dict())
    given = torch.randn(batch, num, dim)
    with torch.no_grad():
        torch.testing.assert_close(ours(given), theirs(given), rtol=1e-6, atol=1e-6)


@seeds
def test_gradients_are_those_of_upstream(name: str) -> None:
    found = []
    for readout in oracles(name):
        given = registers().requires_grad_()
        readout(given).square().sum().backward()
        found.append([given.grad, *(parameter.grad for parameter in readout.parameters())])
    assert all(gradient.abs().max() > 0 for gradient in found[0])
    torch.testing.assert_close(found[0], found[1])


def test_the_fast_backward_of_pooling_is_right_to_every_order_and_under_every_transform() -> None:
    torch.manual_seed(0)
    weights = torch.rand(R, dtype=torch.float64, requires_grad=True)
    given = registers(dtype=torch.float64).requires_grad_()

    def plain(weights: Tensor, given: Tensor) -> Tensor:
        return torch.einsum("r,brc->bc", weights, given)

    fast = WeightedSum.apply
    batched = {"check_batched_grad": True, "check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(fast, (weights, given), **batched)
    assert torch.autograd.gradgradcheck(fast, (weights, given))
    for change in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        found, wanted = (
            change(lambda w, run=run: run(w, given.detach()).square().sum())(weights.detach()) for run in (fast, plain)
        )
        torch.testing.assert_close(found, wanted)


def test_pooling_uses_the_fast_backward_for_large_inputs_with_the_same_result() -> None:
    batch, found = averages.LARGE // (R * D) + 1, []
    for readout in oracles("pool"):
        given = registers(batch).requires_grad_()
        output = readout(given)
        output.backward(torch.ones_like(output))
        found.append([output.detach(), given.grad, readout.logits.grad])
    assert type(oracles("pool")[0](registers(batch)).grad_fn).__name__ == "WeightedSumBackward"
    assert type(oracles("pool")[0](registers(3)).grad_fn).__name__ != "WeightedSumBackward"
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    ours = oracles("pool")[0]
    with torch.autocast("cpu", torch.bfloat16):
        halved = ours(registers(batch, torch.bfloat16).requires_grad_())
    halved.backward(torch.ones_like(halved))
    assert (halved.dtype, ours.logits.grad.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(ours.logits.grad, found[0][2], rtol=0.1, atol=0.1 * found[0][2].abs().max().item())


class Adapted(nn.Module):
    """A linear layer with an addition, like an adapter; ``weight`` is that of the layer inside."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.weight = inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


class Quantized(nn.Module):
    """A linear layer that keeps its weight as small integers, like a quantizer."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.scale = inner.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((inner.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


@pytest.mark.parametrize(
    "change", ["adapter", "bias", "hook", "patch", "integers", "parametrization", "a plain tensor"]
)
def test_a_changed_projection_is_called_as_it_is_and_not_only_its_weight_read(change: str) -> None:
    found = []
    for readout in oracles("compress-concat"):
        layer = readout.compress
        if change == "adapter":
            readout.compress = Adapted(layer)
        elif change == "bias":
            readout.compress = nn.Linear(D, C, bias=True)
            readout.compress.load_state_dict({"weight": layer.weight, "bias": torch.ones(C)})
        elif change == "hook":
            layer.register_forward_hook(lambda module, given, output: output + 1)
        elif change == "patch":
            layer.forward = lambda x, forward=layer.forward: forward(x) + 1
        elif change == "integers":
            readout.compress = Quantized(layer)
        elif change == "parametrization":
            nn.utils.parametrizations.weight_norm(layer)
        else:
            weight = layer.weight.detach()
            del layer.weight
            layer.weight = weight
        found.append(readout)
    ours, theirs = found
    given = registers()
    torch.testing.assert_close(ours(given), theirs(given))
    if change in ("adapter", "bias", "integers"):
        torch.testing.assert_close(torch.jit.script(ours)(given), theirs(given))


def test_initial_values_are_those_of_upstream() -> None:
    torch.manual_seed(3)
    ours = RegisterCompressConcat(R, D, C)
    torch.manual_seed(3)
    identical(ours.compress.weight, upstream.RegisterCompressConcat(R, D, C).compress.weight)
    identical(RegisterPooling(R, D).logits, upstream.RegisterPooling(R).logits)


@seeds
def test_weight_decay_tags_and_flop_counts_are_those_of_upstream(name: str) -> None:
    ours, theirs = oracles(name)
    words = ("_no_weight_decay", "_weight_decay")
    tags = [[[getattr(p, word, None) for word in words] for p in readout.parameters()] for readout in (ours, theirs)]
    assert tags[0] == tags[1]
    assert [ours.flop_count(dim) for dim in (1, D, 384)] == [theirs.flop_count(dim) for dim in (1, D, 384)]


def test_compress_concat_keeps_the_attributes_of_upstream() -> None:
    ours, theirs = oracles("compress-concat")
    for word in ("num_registers", "hidden_dim", "compressed_dim", "out_dim"):
        assert getattr(ours, word) == getattr(theirs, word)
        assert type(getattr(ours, word)) is int
    assert ours.compress.bias is None
    assert repr(ours) == repr(theirs)


# ---- timm and transformers as oracles


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("gelu", ["exact", "tanh"])
def test_attention_answers_as_that_of_timm_with_the_same_weights(queries: int, gelu: str) -> None:
    from timm.layers import AttentionPoolLatent

    ours = RegisterAttention(R, 48, num_queries=queries, num_heads=4, gelu=gelu)
    activation = partial(nn.GELU, approximate="none" if gelu == "exact" else "tanh")
    norm = partial(nn.LayerNorm, eps=1e-6)
    theirs = AttentionPoolLatent(
        48, num_heads=4, latent_len=queries, pool_type="", norm_layer=norm, act_layer=activation
    )
    ours.load_state_dict(theirs.state_dict(), strict=True)
    given = torch.randn(3, R, 48)
    torch.testing.assert_close(ours(given), theirs(given).flatten(1), rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours(given.flip(2)), theirs(given).flatten(1), rtol=1e-6, atol=1e-6)


def test_attention_answers_as_the_head_of_siglip_with_the_same_weights() -> None:
    from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    config = SiglipVisionConfig(hidden_size=48, num_attention_heads=4, intermediate_size=96)
    theirs = SiglipMultiheadAttentionPoolingHead(config).eval()
    ours = RegisterAttention(R, 48, num_heads=4, mlp_ratio=2.0, gelu="tanh")
    state = theirs.state_dict()
    query, *key_value = state.pop("attention.in_proj_weight").chunk(3)
    query_bias, *key_value_bias = state.pop("attention.in_proj_bias").chunk(3)
    ours.load_state_dict(
        {
            "latent": state["probe"],
            "q.weight": query,
            "q.bias": query_bias,
            "kv.weight": torch.cat(key_value),
            "kv.bias": torch.cat(key_value_bias),
            **{f"proj.{word}": state[f"attention.out_proj.{word}"] for word in ("weight", "bias")},
            **{f"norm.{word}": state[f"layernorm.{word}"] for word in ("weight", "bias")},
            **{key: value for key, value in state.items() if key.startswith("mlp.")},
        },
        strict=True,
    )
    given = torch.randn(3, R, 48)
    torch.testing.assert_close(ours(given), theirs(given), rtol=1e-5, atol=1e-6)


def test_mamba_reg_keeps_the_keys_and_the_start_of_its_source() -> None:
    torch.manual_seed(0)
    readout = MambaRegReadout(12, 384, ratio=2)
    shapes = {key: tuple(value.shape) for key, value in readout.state_dict().items()}
    assert shapes == {"neck.weight": (192, 384), "norm_neck.weight": (2304,)}
    assert readout.neck.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert readout.norm_neck.weight.unique().tolist() == [1.0]


# ---- as a module among others


@every_readout
def test_a_saved_archive_keeps_its_sizes(name: str) -> None:
    readout = trained(name)
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(readout), archive)
    archive.seek(0)
    loaded = torch.jit.load(archive)
    assert (loaded.out_dim, loaded.num_registers) == (readout.out_dim, R)
    identical(loaded(registers()), readout(registers()))


def test_a_readout_moves_and_trains_as_any_module() -> None:
    readout = RegisterCompressConcat(R, D, C)
    before = readout.compress.weight.clone()
    optimizer = torch.optim.SGD(readout.parameters(), lr=0.1)
    readout(registers()).sum().backward()
    optimizer.step()
    assert not torch.equal(before, readout.compress.weight)
    assert readout.to("meta")(torch.zeros(9, R, D, device="meta")).shape == (9, R * C)


# ---- options


@pytest.mark.parametrize(
    ("strategy", "options", "text"),
    [
        ("compress-concat", {"compressed_dim": 0}, "compressed_dim: expected a positive integer, got 0"),
        ("select-concat", {"indices": ()}, "expected different integers from 0 to 4, at least one, got []"),
        ("select-concat", {"indices": (0, 5)}, "expected different integers from 0 to 4, at least one, got [0, 5]"),
        ("select-concat", {"indices": (-1,)}, "expected different integers from 0 to 4, at least one, got [-1]"),
        ("select-concat", {"indices": (1, 1)}, "expected different integers from 0 to 4, at least one, got [1, 1]"),
        ("select-concat", {"indices": (0, True)}, "option 'indices': expected tuple[int, ...], got (0, True)"),
        ("mamba-reg", {"ratio": 1}, "MambaRegReadout: ratio: expected 2 or more, got 1; use 'concat'"),
        ("mamba-reg", {"ratio": 4}, "MambaRegReadout: hidden_dim: expected a multiple of ratio=4, got 6"),
        ("gated-abmil", {"attention_dim": -1}, "attention_dim: expected a positive integer, got -1"),
        ("attention", {"num_queries": 0}, "RegisterAttention: num_queries: expected a positive integer, got 0"),
        ("attention", {}, "RegisterAttention: hidden_dim: expected a multiple of num_heads=8, got 6"),
        ("attention", {"num_heads": 3, "mlp_ratio": math.nan}, "option 'mlp_ratio': expected float, got nan"),
        ("attention", {"num_heads": 3, "mlp_ratio": math.inf}, "expected a JSON value, got inf"),
        ("attention", {"num_heads": 3, "mlp_ratio": 0.1}, "mlp_ratio: expected at least 1 / 6, got 0.1"),
        ("attention", {"num_heads": 3, "gelu": "fast"}, "option 'gelu': expected Literal['exact', 'tanh'], got 'fast'"),
        ("attention", {"num_head": 3}, "option 'num_head': expected a known option, got 3"),
    ],
)  # fmt: skip
def test_an_option_that_does_not_fit_is_refused_by_pair(strategy: str, options: dict, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        regplug.resolve(strategy, num_registers=R, hidden_dim=D, **options)
    assert text in str(caught.value)


# ---- examples in docstrings


def modules_of(package: ModuleType) -> list[str]:
    """The package's modules, but not the one that runs the command line when it is imported."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(one.name for one in found if not one.name.endswith("__main__"))]


@pytest.mark.parametrize("module", modules_of(regplug))
def test_the_examples_in_the_docstrings_run(module: str) -> None:
    report = doctest.testmod(importlib.import_module(module))
    assert report.failed == 0

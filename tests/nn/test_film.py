"""The FiLM generator: its formula, nvSubquadratic's as the reference, every way to run it, its refusals."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from nvsubquadratic.modules import film as upstream
from support.readouts import moved
from torch import Tensor, nn

from regplug import KernelFiLMGenerator, ShapeError, SpecError

WIDTH, KERNEL, LAYERS, HIDDEN = 6, 4, 3, 5
SIZES = {"cond_dim": WIDTH, "kernel_hidden_dim": KERNEL, "num_film_layers": LAYERS, "film_hidden_dim": HIDDEN}


def trained(dtype: torch.dtype = torch.float32) -> KernelFiLMGenerator:
    torch.manual_seed(0)
    return moved(KernelFiLMGenerator(**SIZES).to(dtype))


def conditioning(batch: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(batch)).to(dtype)


def identical(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_the_comparison_of_pairs_notices_a_swap_and_a_missing_pair() -> None:
    right = trained()(conditioning())
    for wrong in ([(beta, gamma) for gamma, beta in right], right[:-1], right[::-1]):
        with pytest.raises(AssertionError):
            identical(wrong, right)
    identical([(gamma.clone(), beta.clone()) for gamma, beta in right], right)


# ---- formula


def plain_answer(film: KernelFiLMGenerator, sample: list[float]) -> list[list[list[float]]]:
    """The formula for one sample, in plain Python numbers: per layer gamma, then beta."""

    def linear(layer: nn.Module, values: list[float]) -> list[float]:
        rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        return [sum(w * x for w, x in zip(row, values, strict=True)) + bias for row, bias in rows]

    hidden = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in linear(film.mlp[0], sample)]
    flat = linear(film.mlp[2], hidden)
    parts = [flat[at : at + KERNEL] for at in range(0, len(flat), KERNEL)]
    return [parts[2 * layer : 2 * layer + 2] for layer in range(LAYERS)]


def test_the_generator_computes_its_formula_gamma_first() -> None:
    film, given = trained(torch.float64), conditioning(dtype=torch.float64)
    pairs = film(given)
    for sample, values in enumerate(given.tolist()):
        expected = torch.tensor(plain_answer(film, values), dtype=torch.float64)
        found = torch.stack([torch.stack((gamma[sample], beta[sample])) for gamma, beta in pairs])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(found.flip(1), expected, rtol=1e-12, atol=1e-12)


def test_the_modulation_is_the_identity_at_the_start() -> None:
    pairs = KernelFiLMGenerator(**SIZES)(conditioning())
    assert len(pairs) == LAYERS
    for gamma, beta in pairs:
        identical(gamma, torch.ones(3, KERNEL))
        identical(beta, torch.zeros(3, KERNEL))


def test_a_small_random_start_is_near_the_identity_and_moves_with_its_deviation() -> None:
    torch.manual_seed(1)
    film = KernelFiLMGenerator(**SIZES, init_type="small_random")
    assert 0 < film.mlp[2].weight.abs().max() < 1e-3
    wide = KernelFiLMGenerator(400, 64, 4, init_type="small_random", init_std=0.5)
    assert wide.mlp[2].weight.std().item() == pytest.approx(0.5, rel=0.05)
    identical(wide.mlp[2].bias.view(4, 2, 64)[:, 0], torch.ones(4, 64))


# ---- nvSubquadratic as the oracle


def oracles(**options: Any) -> tuple[KernelFiLMGenerator, upstream.KernelFiLMGenerator]:
    torch.manual_seed(5)
    ours = KernelFiLMGenerator(**SIZES, **options)
    torch.manual_seed(5)
    return ours, upstream.KernelFiLMGenerator(**SIZES, **options)


@pytest.mark.parametrize("init_type", ["identity", "small_random"])
def test_initial_values_are_those_of_upstream_to_the_bit(init_type: str) -> None:
    ours, theirs = oracles(init_type=init_type, init_std=0.3)
    assert list(ours.state_dict()) == ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]
    identical(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_a_checkpoint_loads_strictly_both_ways() -> None:
    ours, theirs = trained(), upstream.KernelFiLMGenerator(**SIZES)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    fresh = KernelFiLMGenerator(**SIZES)
    fresh.load_state_dict(theirs.state_dict(), strict=True)
    identical(dict(fresh.state_dict()), dict(ours.state_dict()))


@pytest.mark.parametrize("batch", [0, 1, 2, 65])
def test_pairs_are_those_of_upstream_to_the_bit(batch: int) -> None:
    ours, theirs = trained(), upstream.KernelFiLMGenerator(**SIZES)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        identical(ours(conditioning(batch)), theirs(conditioning(batch)))


def test_gradients_are_those_of_upstream() -> None:
    ours, theirs = trained(), upstream.KernelFiLMGenerator(**SIZES)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for film in (ours, theirs):
        given = conditioning().requires_grad_()
        sum((gamma.square() + 3 * beta).sum() for gamma, beta in film(given)).backward()
        found.append([given.grad, *(parameter.grad for parameter in film.parameters())])
    assert all(gradient.abs().max() > 0 for gradient in found[0])
    torch.testing.assert_close(found[0], found[1])


def tags(film: nn.Module) -> dict[str, tuple[object, object]]:
    words = ("_no_weight_decay", "_weight_decay")
    return {name: tuple(getattr(p, word, None) for word in words) for name, p in film.named_parameters()}


@pytest.mark.parametrize("no_weight_decay", [True, False, 0.0, 1e-3, 1, 0], ids=repr)
def test_weight_decay_tags_are_those_of_upstream(no_weight_decay: bool | float) -> None:
    ours, theirs = oracles(no_weight_decay=no_weight_decay)
    assert tags(ours) == tags(theirs)


@pytest.mark.parametrize(
    ("no_weight_decay", "weight"),
    [(True, (True, None)), (False, (None, None)), (0.0, (None, 0.0)), (1e-3, (None, 1e-3))],
    ids=repr,
)
def test_biases_never_decay_and_weights_as_configured(
    no_weight_decay: bool | float, weight: tuple[object, object]
) -> None:
    found = tags(KernelFiLMGenerator(**SIZES, no_weight_decay=no_weight_decay))
    assert found["mlp.0.bias"] == found["mlp.2.bias"] == (True, None)
    assert found["mlp.0.weight"] == found["mlp.2.weight"] == weight


def test_the_flop_count_is_that_of_upstream() -> None:
    ours, theirs = oracles()
    assert ours.flop_count() == theirs.flop_count()
    assert KernelFiLMGenerator(384, 32, 3).flop_count() == 2 * 384 * 64 + 64 + 2 * 64 * 192


@pytest.mark.parametrize(
    "wrong", [{"num_film_layers": 0}, {"num_film_layers": -2}, {"init_type": "x"}, {"init_type": ""}], ids=str
)
def test_refusals_read_as_those_of_upstream(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be >= 1|Unknown init_type") as theirs:
        upstream.KernelFiLMGenerator(**SIZES | wrong)
    with pytest.raises(SpecError) as ours:
        KernelFiLMGenerator(**SIZES | wrong)
    assert str(ours.value) == str(theirs.value)
    assert isinstance(ours.value, ValueError)


def test_the_defaults_are_those_of_upstream() -> None:
    ours, theirs = KernelFiLMGenerator(384, 32, 2), upstream.KernelFiLMGenerator(384, 32, 2)
    shapes = [{name: value.shape for name, value in film.state_dict().items()} for film in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert tags(ours) == tags(theirs)


# ---- every way to run it

BATCHES = (0, 1, 2, 7)


@pytest.mark.parametrize("way", ["scripted", "compiled", "exported"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_way_to_run_it_answers_as_eager(way: str, dtype: torch.dtype) -> None:
    film = trained(dtype)
    batch_size = torch.export.Dim("batch", min=0)
    torch.compiler.reset()
    if way == "scripted":
        run = torch.jit.script(film)
    elif way == "compiled":
        run = torch.compile(film, backend="eager", fullgraph=True)
    else:
        run = torch.export.export(film, (conditioning(dtype=dtype),), dynamic_shapes=({0: batch_size},)).module()
    for batch in BATCHES:
        given = conditioning(batch, dtype)
        pairs = film(given)
        identical(run(given), pairs)
        assert [part.shape for pair in pairs for part in pair] == [(batch, KERNEL)] * (2 * LAYERS)
        assert pairs[0][0].dtype == dtype


def test_one_layer_gives_one_pair_scripted_too() -> None:
    film = KernelFiLMGenerator(WIDTH, KERNEL, 1)
    identical(torch.jit.script(film)(conditioning()), film(conditioning()))
    assert len(film(conditioning())) == 1


def test_a_strided_conditioning_vector_is_read_as_its_copy() -> None:
    film = trained()
    strided = torch.randn(3, 2 * WIDTH)[:, ::2]
    torch.testing.assert_close(film(strided), film(strided.contiguous()), rtol=1e-6, atol=1e-6)


def test_a_saved_archive_keeps_its_sizes() -> None:
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(trained()), archive)
    archive.seek(0)
    loaded = torch.jit.load(archive)
    assert {word: getattr(loaded, word) for word in SIZES} == SIZES
    identical(loaded(conditioning()), trained()(conditioning()))


# ---- refusals


@pytest.mark.parametrize("shape", [(3, WIDTH + 1), (3, WIDTH - 1), (WIDTH, 3), ()], ids=str)
def test_another_width_is_refused_eager_scripted_and_compiled_with_both(shape: tuple[int, ...]) -> None:
    film = trained()
    text = f"FiLM generator: expected conditioning [B, {WIDTH}], got {list(shape)}."
    with pytest.raises(ShapeError) as eager:
        film(torch.zeros(shape))
    assert str(eager.value) == text
    with pytest.raises(torch.jit.Error) as scripted:
        torch.jit.script(film)(torch.zeros(shape))
    assert text in str(scripted.value)
    torch.compiler.reset()
    with pytest.raises(RuntimeError) as compiled:
        torch.compile(film, backend="eager", fullgraph=True)(torch.zeros(shape))
    assert f"FiLM generator: expected conditioning [B, {WIDTH}]" in str(compiled.value)


@pytest.mark.parametrize("word", ["cond_dim", "kernel_hidden_dim", "film_hidden_dim"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True])
def test_a_size_that_is_no_positive_integer_is_refused_by_name(word: str, value: object) -> None:
    with pytest.raises(SpecError) as caught:
        KernelFiLMGenerator(**SIZES | {word: value})
    assert str(caught.value) == f"KernelFiLMGenerator: {word}: expected a positive integer, got {value!r}."


@pytest.mark.parametrize("layers", [None, "2", 2.0])
def test_a_number_of_layers_that_is_no_integer_is_refused(layers: Any) -> None:
    with pytest.raises(SpecError, match="num_film_layers: expected a positive integer"):
        KernelFiLMGenerator(12, 3, layers)

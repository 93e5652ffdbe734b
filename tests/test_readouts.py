"""The built-in readouts: their formulas, nvSubquadratic's as the oracle, every way to run them, what they refuse."""

from __future__ import annotations

import doctest
import importlib
import io
import math
import pkgutil
import re
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from nvsubquadratic.modules import film as upstream
from torch import Tensor, nn

import regplug
from regplug import ShapeError, SpecError
from regplug.readouts.averages import RegisterMean, RegisterPooling
from regplug.readouts.concatenations import RegisterCompressConcat, RegisterConcat

R, D, C = 5, 7, 3
MAKE: dict[str, Callable[[], nn.Module]] = {
    "mean": lambda: RegisterMean(R, D),
    "pool": lambda: RegisterPooling(R, D),
    "pool of any width": lambda: RegisterPooling(R),
    "concat": lambda: RegisterConcat(R, D),
    "compress-concat": lambda: RegisterCompressConcat(R, D, C),
}
WIDTHS = {"mean": D, "pool": D, "pool of any width": D, "concat": R * D, "compress-concat": R * C}
every_readout = pytest.mark.parametrize("name", MAKE)


def trained(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A readout whose parameters are no longer the initial ones."""
    torch.manual_seed(0)
    readout = MAKE[name]().to(dtype)
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter += torch.randn_like(parameter)
    return readout


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


def plain_answer(name: str, readout: nn.Module, sample: list[list[float]]) -> list[float]:
    """The formula for one sample, in plain Python numbers."""
    if name == "concat":
        return [value for register in sample for value in register]
    if name == "compress-concat":
        rows = readout.compress.weight.tolist()
        return [sum(w * x for w, x in zip(row, register, strict=True)) for register in sample for row in rows]
    raised = [1.0] * R if name == "mean" else [math.exp(logit) for logit in readout.logits.tolist()]
    weights = [one / sum(raised) for one in raised]
    return [sum(weights[r] * sample[r][d] for r in range(R)) for d in range(D)]


@every_readout
def test_a_readout_computes_its_formula(name: str) -> None:
    readout, given = trained(name, torch.float64), registers(dtype=torch.float64)
    expected = torch.tensor([plain_answer(name, readout, sample) for sample in given.tolist()], dtype=torch.float64)
    torch.testing.assert_close(readout(given), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(readout(given.flip(2)), expected, rtol=1e-12, atol=1e-12)


@every_readout
def test_a_readout_states_the_width_it_gives(name: str) -> None:
    readout = MAKE[name]()
    assert readout(registers()).shape == (3, WIDTHS[name])
    assert readout.out_dim == (None if name == "pool of any width" else WIDTHS[name])


@every_readout
def test_a_strategy_of_the_registry_is_the_class_itself(name: str) -> None:
    options = {"compressed_dim": C} if name == "compress-concat" else {}
    strategy = name.partition(" ")[0]
    made = regplug.create(strategy, num_registers=R, hidden_dim=D, **options)
    assert type(made) is type(MAKE[name]())
    assert made.out_dim == WIDTHS[name]
    assert (made.num_registers, made.hidden_dim) == (R, D)


def test_the_learned_average_starts_as_the_plain_one() -> None:
    torch.testing.assert_close(RegisterPooling(R, D)(registers()), RegisterMean(R, D)(registers()))


@pytest.mark.parametrize("name", ["mean", "pool"])
def test_an_average_does_not_depend_on_the_other_samples(name: str) -> None:
    readout = trained(name)
    torch.testing.assert_close(readout(registers())[1:2], readout(registers()[1:2]))


def test_pooling_of_any_width_takes_any_width() -> None:
    readout = RegisterPooling(R)
    assert [readout(torch.zeros(2, R, width)).shape[1] for width in (1, 7, 384)] == [1, 7, 384]


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


def test_flop_counts_follow_their_formulas() -> None:
    assert RegisterPooling(4, 384).flop_count(384) == 3 * 4 + 2 * 4 * 384
    assert RegisterCompressConcat(4, 384, 96).flop_count(384) == 4 * 2 * 384 * 96
    assert RegisterMean(4, 384).flop_count(384) == 4 * 384
    assert RegisterConcat(4, 384).flop_count(384) == 0


def test_compress_concat_keeps_the_attributes_of_upstream() -> None:
    ours, theirs = oracles("compress-concat")
    for word in ("num_registers", "hidden_dim", "compressed_dim", "out_dim"):
        assert getattr(ours, word) == getattr(theirs, word)
        assert type(getattr(ours, word)) is int
    assert ours.compress.bias is None
    assert repr(ours) == repr(theirs)


# ---- every way to run it

BATCHES = (0, 1, 2, 7)


@pytest.fixture
def compiled() -> Callable[[nn.Module], Callable[[Tensor], Tensor]]:
    torch.compiler.reset()
    return lambda module: torch.compile(module, backend="eager", fullgraph=True)


@every_readout
def test_a_scripted_readout_answers_as_the_eager_one(name: str) -> None:
    readout = trained(name)
    scripted = torch.jit.script(readout)
    for batch in BATCHES:
        identical(scripted(registers(batch)), readout(registers(batch)))


@every_readout
def test_a_compiled_readout_answers_as_the_eager_one(
    name: str, compiled: Callable[[nn.Module], Callable[[Tensor], Tensor]]
) -> None:
    readout = trained(name)
    fast = compiled(readout)
    for batch in BATCHES:
        identical(fast(registers(batch)), readout(registers(batch)))


@every_readout
def test_an_exported_readout_takes_any_batch_and_answers_as_the_eager_one(name: str) -> None:
    readout = trained(name)
    batch_size = torch.export.Dim("batch", min=0)
    exported = torch.export.export(readout, (registers(),), dynamic_shapes=({0: batch_size},)).module()
    for batch in BATCHES:
        identical(exported(registers(batch)), readout(registers(batch)))


@every_readout
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_a_readout_works_in_each_dtype_and_keeps_it(name: str, dtype: torch.dtype, tolerance: float) -> None:
    readout = trained(name, dtype)
    given = registers(dtype=dtype)
    exact = trained(name, dtype).double()(given.double())
    answer = readout(given)
    assert answer.dtype == dtype
    torch.testing.assert_close(answer.double(), exact, rtol=tolerance, atol=tolerance)
    identical(torch.jit.script(readout)(given), answer)


@every_readout
@pytest.mark.parametrize("start", [0, 1, 4])
def test_a_register_slice_of_the_tokens_is_read_as_its_contiguous_copy(name: str, start: int) -> None:
    readout = trained(name)
    tokens = torch.randn(3, R + 4, D)
    strided = tokens[:, start : start + R]
    assert not strided.is_contiguous()
    for run in (readout, torch.jit.script(readout)):
        torch.testing.assert_close(run(strided), readout(strided.contiguous()), rtol=1e-6, atol=1e-6)


@every_readout
def test_a_saved_archive_still_tells_its_sizes(name: str) -> None:
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


# ---- refusals

WRONG_SHAPES = {
    "one register too many": (2, R + 1, D),
    "one register too few": (2, R - 1, D),
    "another width": (2, R, D + 1),
    "registers and width exchanged": (2, D, R),
    "no batch": (R, D),
    "a fourth size": (2, R, D, 1),
    "no size at all": (),
}
wrong_shapes = pytest.mark.parametrize("why", WRONG_SHAPES)


def refusal(name: str, shape: tuple[int, ...]) -> str:
    wanted = D if name != "pool of any width" else (shape[-1] if shape else 0)
    strategy = name.partition(" ")[0]
    return f"readout {strategy!r}: expected registers [B, {R}, {wanted}], got {list(shape)}."


def fits_any_width(name: str, why: str) -> bool:
    return name == "pool of any width" and why == "another width"


refused = [(name, why) for name in MAKE for why in WRONG_SHAPES if not fits_any_width(name, why)]


@pytest.mark.parametrize(("name", "why"), refused)
def test_a_wrong_shape_is_refused_eager_and_scripted_with_both_shapes(name: str, why: str) -> None:
    shape = WRONG_SHAPES[why]
    readout = MAKE[name]()
    with pytest.raises(ShapeError) as eager:
        readout(torch.zeros(shape))
    assert str(eager.value) == refusal(name, shape)
    assert isinstance(eager.value, ValueError)
    with pytest.raises(torch.jit.Error) as scripted:
        torch.jit.script(readout)(torch.zeros(shape))
    assert refusal(name, shape) in str(scripted.value)


@every_readout
@pytest.mark.parametrize("why", ["one register too many", "registers and width exchanged", "no batch"])
def test_a_wrong_shape_is_refused_compiled_with_the_text_inside(
    name: str, why: str, compiled: Callable[[nn.Module], Callable[[Tensor], Tensor]]
) -> None:
    with pytest.raises(RuntimeError) as caught:
        compiled(MAKE[name]())(torch.zeros(WRONG_SHAPES[why]))
    strategy = name.partition(" ")[0]
    assert f"readout {strategy!r}: expected registers [B, {R}, " in str(caught.value)


@every_readout
def test_an_exported_readout_refuses_another_number_of_registers(name: str) -> None:
    exported = torch.export.export(MAKE[name](), (registers(),)).module()
    assert exported(registers()).shape == (3, WIDTHS[name])
    with pytest.raises(AssertionError, match=re.escape(f"{R}")):
        exported(torch.zeros(3, R + 1, D))


@pytest.mark.parametrize("word", ["num_registers", "hidden_dim", "compressed_dim"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4"])
def test_a_size_that_is_no_positive_integer_is_refused_by_name(word: str, value: object) -> None:
    sizes = {"num_registers": R, "hidden_dim": D, "compressed_dim": C, word: value}
    classes = {RegisterCompressConcat: 3, RegisterConcat: 2, RegisterMean: 2, RegisterPooling: 2}
    for readout, count in classes.items():
        given = dict(list(sizes.items())[:count])
        if word in given:
            with pytest.raises(SpecError) as caught:
                readout(**given)
            assert str(caught.value) == f"{readout.__name__}: {word}: expected a positive integer, got {value!r}."


# ---- examples in docstrings


def modules_of(package: ModuleType) -> list[str]:
    """The package's modules, but not the one that runs the command line when it is imported."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(one.name for one in found if not one.name.endswith("__main__"))]


@pytest.mark.parametrize("module", modules_of(regplug))
def test_the_examples_in_the_docstrings_run(module: str) -> None:
    report = doctest.testmod(importlib.import_module(module))
    assert report.failed == 0


@pytest.mark.parametrize(
    "public", [RegisterMean, RegisterPooling, RegisterConcat, RegisterCompressConcat, regplug.KernelFiLMGenerator]
)
def test_each_module_of_the_data_path_shows_a_shape_in_its_docstring(public: type) -> None:
    (example,) = (test for test in doctest.DocTestFinder(recurse=False).find(public) if test.examples)
    assert "torch.Size" in example.examples[-1].want
    example.examples[-1].want = "torch.Size([2, 5])\n"
    assert doctest.DocTestRunner(verbose=False).run(example, out=lambda text: None).failed == 1

"""Every installed strategy, built-in and of the plugins: what every readout must do, and what ours do in addition."""

import copy
import doctest
import re

import pytest
import torch
from support.strategies import EVERY, D, R, registers, spec_of, trained
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

import regplug
from regplug import ShapeError
from regplug.conformance import check_readout

OURS = [name for name in EVERY if not name.startswith("regplug-digits")]
every_strategy = pytest.mark.parametrize("strategy", EVERY)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


def close(actual, expected, tolerance=1e-6):
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def compiled(readout):
    return torch.compile(readout, backend="eager", fullgraph=True, dynamic=True)


def exported(readout, dtype=torch.float32):
    batch = torch.export.Dim("batch", min=0)
    return torch.export.export(readout, (registers(dtype=dtype),), dynamic_shapes=({0: batch},)).module()


def test_the_table_names_every_strategy_that_is_installed():
    installed = {entry.full_name for entry in regplug.default_registry().readout_entries()}
    # nvSubquadratic's own two are unchanged: they check nothing of what ours do
    assert set(EVERY) == {name for name in installed if not name.startswith("regplug-nvsubquadratic:")}


def test_the_comparison_notices_a_small_difference_and_another_dtype():
    right = registers()
    close(right.clone(), right)
    for wrong in (right * (1 + 1e-5), right.double(), right[:1]):
        with pytest.raises(AssertionError):
            close(wrong, right)


@every_strategy
def test_it_does_what_every_readout_must(strategy):
    results = check_readout(spec_of(strategy), backends=["torchscript"], compiler="eager")
    # digits-gate has no flop_count
    skipped = {"flop-count"} if strategy.startswith("regplug-digits") else set()
    if not spec_of(strategy).takes_mask or strategy == "regplug:join":  # a part of this join counts its tokens
        skipped |= {"mask-padding", "mask-gradient", "mask-empty-row", "mask-all-true", "any-count"}
    others = {(result.check, result.verdict) for result in results if result.verdict != "passed"}
    assert others == {(check, "not applicable") for check in skipped}, results


@every_strategy
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        (torch.bfloat16, 0.05),
        pytest.param(torch.float64, 1e-12, marks=pytest.mark.torture),
        pytest.param(torch.float16, 0.01, marks=pytest.mark.torture),
    ],
)
def test_in_each_dtype_it_is_near_the_float64_truth(strategy, dtype, tolerance):
    readout, given = trained(strategy, dtype), registers(dtype=dtype)
    truth = copy.deepcopy(readout).double()(given.double())
    for run in (readout, torch.jit.script(readout), exported(readout, dtype)):
        answer = run(given)
        assert answer.dtype == dtype
        close(answer.double(), truth, tolerance)


# ---- precision


@every_strategy
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float64])
def test_registers_of_another_dtype_are_converted_to_that_of_the_parameters_in_every_mode(strategy, given):
    readout = trained(strategy)
    asked = registers(dtype=given)
    has_parameters = any(True for _ in readout.parameters())
    expected = readout(asked.float() if has_parameters else asked)
    runs = [readout, torch.jit.script(readout), compiled(readout)]
    if given == torch.bfloat16:
        runs.append(exported(readout, given))
    for run in runs:
        answer = run(asked)
        assert answer.dtype == (torch.float32 if has_parameters else given)
        close(answer, expected)


@every_strategy
def test_on_the_meta_device_registers_of_another_dtype_are_converted_too(strategy):
    readout = trained(strategy).to("meta")
    answer = readout(registers(dtype=torch.bfloat16).to("meta"))
    has_parameters = any(True for _ in readout.parameters())
    assert answer.dtype == (torch.float32 if has_parameters else torch.bfloat16)
    assert answer.shape == (3, spec_of(strategy).cond_dim)


@every_strategy
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast_it_works_in_every_mode(strategy, given):
    readout, asked = trained(strategy), registers(dtype=given)
    truth = readout(asked.float()).detach()
    runs = [readout, torch.jit.script(readout)]
    if given == torch.bfloat16:
        runs.append(compiled(readout))
    for run in runs:
        with torch.autocast("cpu", torch.bfloat16):
            answer = run(asked.clone().requires_grad_())
        close(answer.detach().float(), truth, 0.05)
        if answer.requires_grad:
            answer.float().sum().backward()
            assert all(parameter.grad.isfinite().all() for parameter in readout.parameters())


# ---- training


@every_strategy
def test_gradients_reach_every_parameter_and_every_register_that_is_read(strategy):
    torch.manual_seed(0)
    readout, given = spec_of(strategy).build(), registers().requires_grad_()
    output = readout(given)
    output.backward(torch.randn_like(output))
    for name, parameter in readout.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    one = {"regplug-zoo:first-token": [0], "regplug-zoo:last-token": [R - 1]}
    read = one.get(strategy, EVERY[strategy][0].get("indices", range(R)))
    assert all(given.grad[:, index].abs().max() > 0 for index in read)


# ---- what it says of itself


@pytest.mark.parametrize("strategy", OURS)
def test_the_flop_count_is_that_of_torch_where_torch_counts(strategy):
    readout = trained(strategy)
    # it does not know the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        readout(registers(1))
    assert readout.flop_count(D) - EVERY[strategy][1] == counter.get_total_flops()


@pytest.mark.parametrize("strategy", OURS)
def test_its_docstring_states_formula_source_and_a_shape(strategy):
    readout_class = spec_of(strategy).readout_class
    (example,) = (test for test in doctest.DocTestFinder(recurse=False).find(readout_class) if test.examples)
    assert "torch.Size" in example.examples[-1].want
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
    example.examples[-1].want = "torch.Size([2, 5])\n"
    assert doctest.DocTestRunner(verbose=False).run(example, out=lambda text: None).failed == 1
    assert re.search("``[^`]*c = ", readout_class.__doc__)
    assert strategy.endswith((":mean", ":concat", ":sum", ":max")) or "Source: " in readout_class.__doc__


# ---- refusals

WRONG_SHAPES = [(2, R + 1, D), (2, R - 1, D), (2, R, D + 1), (2, D, R), (R, D), (2, R, D, 1), ()]


@pytest.mark.parametrize("strategy", OURS)
def test_a_wrong_shape_is_refused_naming_both_shapes(strategy):
    readout = trained(strategy)
    scripted = torch.jit.script(readout)
    for shape in WRONG_SHAPES:
        text = f"readout {strategy.partition(':')[2]!r}: expected registers [B, {R}, {D}], got {list(shape)}."
        with pytest.raises(ShapeError, match=f"^{re.escape(text)}$"):
            readout(torch.zeros(shape))
        with pytest.raises(torch.jit.Error, match=re.escape(text)):
            scripted(torch.zeros(shape))
    # Dynamo hides the text, and compiles again for each rank
    for shape in WRONG_SHAPES[:2]:
        with pytest.raises(RuntimeError, match=re.escape(f"expected registers [B, {R}, ")):
            compiled(readout)(torch.zeros(shape))


@pytest.mark.parametrize("strategy", OURS)
@pytest.mark.parametrize("word", ["num_registers", "hidden_dim"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4"])
def test_a_size_that_is_no_positive_integer_is_refused_by_name(strategy, word, value):
    build = spec_of(strategy).readout_class
    arguments = {**spec_of(strategy).arguments, word: value}
    with pytest.raises(regplug.SpecError) as caught:
        build(**arguments)
    assert str(caught.value) == f"{build.__name__}: {word}: expected a positive integer, got {value!r}."


def modules_seen(readout, given):
    """The modules that a global hook sees; FLOP counters and profilers set one."""
    seen = []
    hook = register_module_forward_hook(lambda module, *_: seen.append(module))
    readout(given)
    hook.remove()
    return seen


@every_strategy
def test_a_global_hook_sees_the_call_of_every_layer_with_weights(strategy):
    readout = trained(strategy)
    layers = {name for name, part in readout.named_children() if isinstance(part, (nn.Linear, nn.LayerNorm))}
    seen = modules_seen(readout, registers())
    assert {name for name in layers if readout.get_submodule(name) not in seen} == set()
    with torch.inference_mode():
        assert all(readout.get_submodule(name) in modules_seen(readout, registers()) for name in layers)


def test_the_hook_of_these_tests_does_not_see_a_layer_that_is_not_called():
    readout = trained("regplug:compress-concat")
    readout.forward = lambda given: nn.functional.linear(given, readout.compress.weight).flatten(1)
    assert readout.compress not in modules_seen(readout, registers())

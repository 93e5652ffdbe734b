"""From tokens to FiLM pairs: the composition by hand, every way to run it, and parts that do not fit together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nvsubquadratic.modules.film import KernelFiLMGenerator as UpstreamGenerator
from support.readouts import moved
from torch import Tensor, nn

import regplug
from regplug import Conditioner, KernelFiLMGenerator, ShapeError, SpecError, TokenLayout
from regplug.nn.conditioner import BuiltReadout
from regplug.nn.pairing import Convention
from regplug.nn.readouts.averages import RegisterMean, RegisterPooling
from regplug.nn.readouts.concatenations import RegisterCompressConcat, RegisterConcat
from regplug.registry.entries import ReadoutEntry
from regplug.registry.spec import specify

R, D, KERNEL, LAYERS = 3, 5, 4, 2
SIZES = {"num_registers": R, "hidden_dim": D}
LAYOUTS = {
    "front": TokenLayout(**SIZES, start=1),
    "back": TokenLayout(**SIZES, start=-R - 2),
    "fixed": TokenLayout(**SIZES, start=2, num_tokens=9),
    "explicit": TokenLayout(**SIZES, indices=(0, 4, 6), num_tokens=9),
    "interleaved": TokenLayout.interleaved(**SIZES, num_patches=8),
}
READOUTS = {
    "mean": lambda: RegisterMean(R, D),
    "pool": lambda: RegisterPooling(R, D),
    "concat": lambda: RegisterConcat(R, D),
    "compress-concat": lambda: RegisterCompressConcat(R, D, 2),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
every_readout = pytest.mark.parametrize("readout", READOUTS)
Pairs = list[tuple[Tensor, Tensor]]


def conditioner_for(layout: TokenLayout, readout: str) -> Conditioner:
    made = READOUTS[readout]()
    torch.manual_seed(0)
    return moved(Conditioner(layout, made, KernelFiLMGenerator(made.out_dim, KERNEL, LAYERS)))


def tokens_for(layout: TokenLayout, batch: int = 2, more: int = 4) -> Tensor:
    length = layout.num_tokens or layout.min_tokens + more
    return torch.randn(batch, length, D, generator=torch.Generator().manual_seed(batch))


def by_hand(conditioner: Conditioner, tokens: Tensor) -> Pairs:
    """Fancy indexing, readout, generator."""
    positions = list(conditioner.layout.positions(tokens.shape[1]))
    return conditioner.film(conditioner.readout(tokens[:, positions]))


def identical(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_the_comparison_notices_tokens_that_moved_by_one() -> None:
    conditioner = conditioner_for(LAYOUTS["front"], "concat")
    tokens = tokens_for(LAYOUTS["front"])
    identical(conditioner(tokens), by_hand(conditioner, tokens))
    with pytest.raises(AssertionError):
        identical(conditioner(tokens), by_hand(conditioner, tokens.roll(1, dims=1)))


# ---- composition


@every_layout
@every_readout
def test_a_conditioner_is_the_composition_of_its_parts(layout: TokenLayout, readout: str) -> None:
    conditioner = conditioner_for(layout, readout)
    for batch in (0, 1, 2, 7):
        tokens = tokens_for(layout, batch)
        pairs = conditioner(tokens)
        identical(pairs, by_hand(conditioner, tokens))
        assert [part.shape for pair in pairs for part in pair] == [(batch, KERNEL)] * (2 * LAYERS)


@every_layout
@every_readout
def test_a_scripted_conditioner_answers_as_the_eager_one(layout: TokenLayout, readout: str) -> None:
    conditioner = conditioner_for(layout, readout)
    scripted = torch.jit.script(conditioner)
    for batch in (0, 1, 2):
        for more in (0, 9):
            tokens = tokens_for(layout, batch, more)
            identical(scripted(tokens), conditioner(tokens))


@pytest.mark.parametrize("layout", [LAYOUTS["fixed"], LAYOUTS["explicit"]], ids=["a slice", "a stack"])
def test_a_compiled_conditioner_answers_as_the_eager_one(layout: TokenLayout) -> None:
    torch.compiler.reset()
    conditioner = conditioner_for(layout, "compress-concat")
    compiled = torch.compile(conditioner, backend="eager", fullgraph=True)
    for batch in (0, 1, 2):
        identical(compiled(tokens_for(layout, batch)), conditioner(tokens_for(layout, batch)))


@every_layout
def test_an_exported_conditioner_answers_as_the_eager_one(layout: TokenLayout) -> None:
    conditioner = conditioner_for(layout, "pool")
    dynamic = {0: torch.export.Dim("batch", min=0)}
    if layout.num_tokens is None:
        dynamic[1] = torch.export.Dim("length", min=layout.min_tokens)
    exported = torch.export.export(conditioner, (tokens_for(layout),), dynamic_shapes=(dynamic,)).module()
    for batch in (0, 1, 2):
        for more in (0, 9):
            tokens = tokens_for(layout, batch, more)
            identical(exported(tokens), conditioner(tokens))


class CountingConcat(RegisterConcat):
    """Counts its forwards."""

    forwards = 0

    def forward(self, registers: Tensor) -> Tensor:
        type(self).forwards += 1
        return super().forward(registers)


def test_a_readout_built_from_its_spec_is_not_run_again_to_measure_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingConcat, "forwards", 0)
    spec = specify(ReadoutEntry("counting", CountingConcat), R, D, {})
    assert CountingConcat.forwards == 1  # on the meta device
    film = KernelFiLMGenerator(spec.cond_dim, KERNEL, LAYERS)
    built = Conditioner(LAYOUTS["front"], BuiltReadout(spec), film)
    assert CountingConcat.forwards == 1
    unmeasured = Conditioner(LAYOUTS["front"], spec.build(), film)
    assert CountingConcat.forwards == 2
    identical(built(tokens_for(LAYOUTS["front"])), unmeasured(tokens_for(LAYOUTS["front"])))


def test_a_built_readout_is_checked_against_the_layout_and_the_generator() -> None:
    readout = BuiltReadout(regplug.resolve("concat", **SIZES))
    with pytest.raises(SpecError, match=r"^FiLM generator KernelFiLMGenerator: .* width 7, got 15 from RegisterConcat"):
        Conditioner(LAYOUTS["front"], readout, KernelFiLMGenerator(7, KERNEL, LAYERS))
    other = TokenLayout(num_registers=R + 1, hidden_dim=D, start=1)
    with pytest.raises(SpecError, match="^strategy 'concat': num_registers: expected 4 as the layout has, got 3"):
        Conditioner(other, readout, KernelFiLMGenerator(R * D, KERNEL, LAYERS))


def test_the_keys_are_those_of_readout_and_film() -> None:
    conditioner = conditioner_for(LAYOUTS["explicit"], "pool")
    film = [f"film.mlp.{layer}.{word}" for layer in (0, 2) for word in ("weight", "bias")]
    assert list(conditioner.state_dict()) == ["readout.logits", *film]
    fresh = conditioner_for(LAYOUTS["front"], "pool")
    fresh.load_state_dict(conditioner.state_dict(), strict=True)


def test_gradients_reach_the_registers_and_every_parameter() -> None:
    conditioner = conditioner_for(LAYOUTS["explicit"], "compress-concat")
    tokens = tokens_for(LAYOUTS["explicit"]).requires_grad_()
    sum((gamma * gamma + beta).sum() for gamma, beta in conditioner(tokens)).backward()
    assert tokens.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == [0, 4, 6]
    assert all(parameter.grad.abs().max() > 0 for parameter in conditioner.parameters())


def test_a_conditioner_is_copied_and_moved_as_any_module() -> None:
    conditioner = conditioner_for(LAYOUTS["front"], "pool")
    again = copy.deepcopy(conditioner).double()
    tokens = tokens_for(LAYOUTS["front"])
    torch.testing.assert_close(
        [(gamma.float(), beta.float()) for gamma, beta in again(tokens.double())], conditioner(tokens)
    )
    assert (again.layout, again.convention) == (conditioner.layout, conditioner.convention)


def test_making_a_conditioner_leaves_readout_and_random_numbers_alone() -> None:
    readout = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(R * D), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in readout.state_dict().items()}
    state = torch.get_rng_state()
    conditioner = Conditioner(LAYOUTS["front"], readout, FixedPairs(R * D), form="gamma", order="gamma-first")
    assert torch.equal(torch.get_rng_state(), state)
    identical(dict(readout.state_dict()), before)
    assert conditioner.readout is readout
    assert all(module.training for module in readout.modules())


# ---- what the pairs mean


class FixedPairs(nn.Module):
    """A third-party generator: scale is the first part of the conditioning vector, shift the second."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.cond_dim = cond_dim

    def forward(self, conditioning: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(conditioning, 2 * conditioning), (3 * conditioning, 4 * conditioning)]


@pytest.mark.parametrize("stated", [{}, {"form": "gamma"}, {"order": "shift-first"}])
def test_a_generator_that_says_nothing_of_its_pairs_is_refused(stated: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="^FiLM generator FixedPairs: expected a known family or a stated form and ord"):
        Conditioner(LAYOUTS["front"], RegisterMean(R, D), FixedPairs(D), **stated)


@pytest.mark.parametrize("form", ["gamma", "1+gamma"])
def test_a_stated_convention_is_kept_and_the_pairs_come_out_gamma_first(form: str) -> None:
    readout, layout = RegisterMean(R, D), LAYOUTS["explicit"]
    tokens = tokens_for(layout)
    vector = readout(tokens[:, [0, 4, 6]])
    made = [(vector, 2 * vector), (3 * vector, 4 * vector)]
    first = Conditioner(layout, readout, FixedPairs(D), form=form, order="gamma-first")
    shifted = Conditioner(layout, readout, FixedPairs(D), form=form, order="shift-first")
    identical(first(tokens), made)
    identical(shifted(tokens), [(gamma, beta) for beta, gamma in made])
    assert first.convention == shifted.convention == Convention(form, "gamma-first")


def test_a_swapped_pair_is_swapped_scripted_compiled_and_exported_too() -> None:
    torch.compiler.reset()
    layout = LAYOUTS["front"]
    conditioner = Conditioner(layout, RegisterMean(R, D), FixedPairs(D), form="gamma", order="shift-first")
    tokens = tokens_for(layout)
    for run in (
        torch.jit.script(conditioner),
        torch.compile(conditioner, backend="eager", fullgraph=True),
        torch.export.export(conditioner, (tokens,)).module(),
    ):
        pairs = run(tokens)
        identical(pairs, conditioner(tokens))
        assert torch.equal(pairs[0][0], 2 * pairs[0][1])


@pytest.mark.parametrize("generator", [KernelFiLMGenerator, UpstreamGenerator])
def test_a_known_family_needs_no_form_and_order(generator: Any) -> None:
    conditioner = Conditioner(LAYOUTS["front"], RegisterMean(R, D), generator(D, KERNEL, LAYERS))
    assert conditioner.convention == Convention("gamma", "gamma-first")
    pairs = conditioner(tokens_for(LAYOUTS["front"]))
    identical(pairs[0], (torch.ones(2, KERNEL), torch.zeros(2, KERNEL)))


def test_a_form_that_is_none_of_the_two_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"^FiLM generator FixedPairs: form: expected one of gamma, 1\+gamma, got 'beta'"
    ):
        Conditioner(LAYOUTS["front"], RegisterMean(R, D), FixedPairs(D), form="beta", order="gamma-first")


# ---- what does not fit together


class AnyReadout(nn.Module):
    """A readout with neither sizes nor out_dim: its width is known after a forward."""

    def __init__(self, wanted: int = D) -> None:
        super().__init__()
        self.linear = nn.Linear(wanted, 2)

    def forward(self, registers: Tensor) -> Tensor:
        return self.linear(registers).flatten(1)


class SaysWrong(AnyReadout):
    out_dim = 7


class Asserts(nn.Module):
    """Refuses with an assertion, like much research code."""

    def forward(self, registers: Tensor) -> Tensor:
        assert registers.shape[1] == 99, "99 registers wanted"
        return registers[:, 0]


class FixedWeights(nn.Module):
    """A readout with a buffer and no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(R))

    def forward(self, registers: Tensor) -> Tensor:
        return torch.einsum("r,brd->bd", self.weights, registers)


class GivesTokens(nn.Module):
    def forward(self, registers: Tensor) -> Tensor:
        return registers


def film(width: int) -> KernelFiLMGenerator:
    return KernelFiLMGenerator(width, KERNEL, LAYERS)


@pytest.mark.parametrize(
    ("readout", "width", "text"),
    [
        (
            RegisterMean(R + 1, D),
            D,
            f"readout RegisterMean: num_registers: expected {R} as the layout has, got {R + 1}.",
        ),
        (RegisterMean(R, D + 1), D, f"readout RegisterMean: hidden_dim: expected {D} as the layout has, got {D + 1}."),
        (RegisterMean(R, D), 9, f"expected conditioning of width 9, got {D} from RegisterMean."),
        (RegisterPooling(R), 9, f"expected conditioning of width 9, got {D} from RegisterPooling."),
        (RegisterConcat(R, D), D, f"expected conditioning of width {D}, got {R * D} from RegisterConcat."),
        (AnyReadout(), 7, f"expected conditioning of width 7, got {2 * R} from AnyReadout."),
        (SaysWrong(), 7, f"readout SaysWrong: out_dim: expected {2 * R}, which its forward gives, got 7."),
        (AnyReadout(D + 1), 6, f"readout AnyReadout: expected to read registers [2, {R}, {D}], got "),
        (Asserts(), D, f"expected to read registers [2, {R}, {D}], got AssertionError: 99 registers wanted"),
        (GivesTokens(), D, f"expected [2, cond_dim] for registers [2, {R}, {D}], got [2, {R}, {D}]."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_parts_that_do_not_fit_are_refused_with_both_numbers(readout: nn.Module, width: int, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Conditioner(LAYOUTS["front"], readout, film(width))
    assert text in str(caught.value)


def test_parts_of_strangers_that_fit_are_taken() -> None:
    conditioner = Conditioner(LAYOUTS["interleaved"], AnyReadout(), film(2 * R))
    tokens = tokens_for(LAYOUTS["interleaved"])
    identical(conditioner(tokens), by_hand(conditioner, tokens))


def test_a_generator_that_says_no_width_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"^FiLM generator Linear: expected an integer attribute cond_dim or .*, got none"
    ):
        Conditioner(LAYOUTS["front"], RegisterMean(R, D), nn.Linear(D, 2), form="gamma", order="gamma-first")


def test_the_parts_may_be_on_the_meta_device() -> None:
    with torch.device("meta"):
        conditioner = Conditioner(LAYOUTS["front"], RegisterCompressConcat(R, D, 2), film(2 * R))
        assert conditioner(torch.zeros(9, 8, D))[0][0].shape == (9, KERNEL)
        fixed = Conditioner(LAYOUTS["front"], FixedWeights(), film(D))
        assert fixed(torch.zeros(9, 8, D))[0][0].shape == (9, KERNEL)


@pytest.mark.parametrize("shape", [(2, 3, D), (2, 9, D + 1), (9, D)], ids=str)
def test_other_tokens_are_refused_eager_and_scripted_with_both_shapes(shape: tuple[int, ...]) -> None:
    conditioner = conditioner_for(LAYOUTS["front"], "pool")
    text = f"TokenLayout: expected tokens [B, T, {D}] with T >= {R + 1}, got {list(shape)}."
    with pytest.raises(ShapeError) as eager:
        conditioner(torch.zeros(shape))
    assert str(eager.value) == text
    with pytest.raises(torch.jit.Error) as scripted:
        torch.jit.script(conditioner)(torch.zeros(shape))
    assert text in str(scripted.value)


def test_a_class_or_a_spec_in_place_of_a_module_is_refused_with_the_arguments_name() -> None:
    film = KernelFiLMGenerator(D, 3, 1)
    spec = regplug.resolve("mean", num_registers=R, hidden_dim=D)
    with pytest.raises(SpecError, match="^Conditioner: layout: expected a TokenLayout, got None"):
        Conditioner(None, RegisterMean(R, D), film)  # type: ignore[arg-type]
    for readout in (spec, RegisterMean):
        with pytest.raises(SpecError, match="^Conditioner: readout: expected a Module, got "):
            Conditioner(LAYOUTS["front"], readout, film)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="^Conditioner: film: expected a Module, got "):
        Conditioner(LAYOUTS["front"], RegisterMean(R, D), KernelFiLMGenerator)  # type: ignore[arg-type]

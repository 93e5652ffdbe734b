"""Six public FiLM families pair unchanged; the table's entry for each is what its module computes."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import normalization
from nvsubquadratic.modules.film import KernelFiLMGenerator as UpstreamGenerator
from support.errors import message_of
from support.readouts import moved
from torch import Tensor, nn
from torch.nn import functional as F

import regplug
from regplug import SpecError
from regplug.nn.pairing import WIDTH_WORDS, convention_of, film_family
from regplug.registry import builtin

PAGE = Path(__file__).resolve().parents[2] / "docs" / "film.md"
R, D, WIDTH, BATCH = 4, 8, 12, 3

# ---- what cannot be installed here, rebuilt: the published module, constructor, names and order

PUBLISHED: dict[str, type[nn.Module]] = {}


def published(module: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """The class as if it had been imported from ``module``."""

    def move(cls: type[nn.Module]) -> type[nn.Module]:
        cls.__module__ = module
        PUBLISHED[f"{module}:{cls.__name__}"] = cls
        return cls

    return move


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """One head; its layers come before those that take the conditioning vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1)))


@published("models")
class DiTBlock(nn.Module):
    def __init__(self, hidden_size, num_heads, mlp_ratio=4.0, **block_kwargs):
        super().__init__()
        assert hidden_size % num_heads == 0, "dim should be divisible by num_heads"
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        inner = int(hidden_size * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(hidden_size, inner), nn.GELU(), nn.Linear(inner, hidden_size))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x, c):
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate[:, None] * self.attn(modulate(self.norm1(x), shift, scale))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


@published("models")
class FinalLayer(nn.Module):
    def __init__(self, hidden_size, patch_size, out_channels):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def convolution(in_channels: int, out_channels: int, kernel_size: int, n_groups: int) -> nn.Module:
    norm = nn.GroupNorm(n_groups, out_channels)
    return nn.Sequential(nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2), norm, nn.Mish())


@published("diffusion_policy.model.diffusion.conditional_unet1d")
class ConditionalResidualBlock1D(nn.Module):
    def __init__(self, in_channels, out_channels, cond_dim, kernel_size=3, n_groups=8, cond_predict_scale=False):
        super().__init__()
        sizes = ((in_channels, out_channels), (out_channels, out_channels))
        self.blocks = nn.ModuleList(convolution(*pair, kernel_size, n_groups) for pair in sizes)
        self.cond_predict_scale = cond_predict_scale
        self.out_channels = out_channels
        cond_channels = 2 * out_channels if cond_predict_scale else out_channels
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, cond_channels), nn.Unflatten(1, (-1, 1)))
        self.residual_conv = nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x, cond):
        out, embed = self.blocks[0](x), self.cond_encoder(cond)
        if self.cond_predict_scale:
            embed = embed.reshape(len(embed), 2, self.out_channels, 1)
            out = embed[:, 0] * out + embed[:, 1]
        else:
            out = out + embed
        return self.blocks[1](out) + self.residual_conv(x)


@published("lerobot.policies.diffusion.modeling_diffusion")
class DiffusionConditionalResidualBlock1d(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_dim: int,
        kernel_size: int = 3,
        n_groups: int = 8,
        use_film_scale_modulation: bool = False,
    ):
        super().__init__()
        self.use_film_scale_modulation = use_film_scale_modulation
        self.out_channels = out_channels
        self.conv1 = convolution(in_channels, out_channels, kernel_size, n_groups)
        cond_channels = 2 * out_channels if use_film_scale_modulation else out_channels
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, cond_channels))
        self.conv2 = convolution(out_channels, out_channels, kernel_size, n_groups)
        self.residual_conv = nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        out, embed = self.conv1(x), self.cond_encoder(cond)[..., None]
        if self.use_film_scale_modulation:
            out = embed[:, : self.out_channels] * out + embed[:, self.out_channels :]
        else:
            out = out + embed
        return self.conv2(out) + self.residual_conv(x)


@published("film_efficientnet.film_conditioning_layer")
class FilmConditioning(nn.Module):
    def __init__(self, num_channels: int, text_vector_size: int = 512):
        super().__init__()
        self._projection_add = nn.Linear(text_vector_size, num_channels)
        self._projection_mult = nn.Linear(text_vector_size, num_channels)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, conv_filters: Tensor, conditioning: Tensor):
        add, mult = self._projection_add(conditioning), self._projection_mult(conditioning)
        return (1 + mult[..., None, None]) * conv_filters + add[..., None, None]


@published("classifier_free_guidance_pytorch.classifier_free_guidance_pytorch")
class FiLM(nn.Module):
    def __init__(self, dim, hidden_dim):
        super().__init__()
        last = nn.Linear(4 * hidden_dim, 2 * hidden_dim)
        self.net = nn.Sequential(nn.Linear(dim, 4 * hidden_dim), nn.SiLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, conditions, hiddens):
        scale, shift = self.net(conditions).chunk(2, dim=-1)
        return hiddens * (scale[:, None] + 1) + shift[:, None]


# ---- how each is called


@dataclass
class Case:
    """One way to build a family's class.

    ``before`` and ``after`` name the modules around the modulation: it takes what the first gives, and the second
    gets what it gives; None for the features and for the output.
    """

    family: str
    cls: type[nn.Module]
    features: tuple[int, ...]
    call: Callable[[nn.Module, Tensor, Tensor], Any]
    projected: Callable[[nn.Module, Tensor], Any]
    options: dict[str, Any] = field(default_factory=dict)
    before: str | None = None
    after: str | None = None
    shift_only: bool = False

    def __str__(self) -> str:
        return "-".join([self.cls.__name__, *(f"{word}={value}" for word, value in self.options.items())])


def in_order(film: nn.Module, x: Tensor, c: Tensor) -> Any:
    return film(x, c)


def by_silu(film: nn.Module, c: Tensor) -> Any:
    return film.linear(F.silu(c))


TOKENS, IMAGES, SIGNALS = (5, WIDTH), (6, 2, 2), (3, 7)
BLOCK = {"in_channels": 3, "out_channels": 8}
CASES = [
    *(
        Case("dit", cls, TOKENS, in_order, lambda film, c: film.adaLN_modulation(c).split(WIDTH, 1), options, *around)
        for cls, options, *around in (
            (DiTBlock, {"num_heads": 2}, "norm1", "attn"),
            (FinalLayer, {"patch_size": 1, "out_channels": 3}, "norm_final", "linear"),
        )
    ),
    *(
        Case(
            "diffusers-zero",
            cls,
            TOKENS,
            lambda film, x, c: film(x, emb=c),
            lambda film, c: by_silu(film, c).split(WIDTH, 1),
            before="norm",
        )
        for cls in (
            normalization.AdaLayerNormZero,
            normalization.AdaLayerNormZeroSingle,
            normalization.SD35AdaLayerNormZeroX,
        )
    ),
    Case(
        "diffusers-norm",
        normalization.AdaLayerNorm,
        (5, 6),
        lambda film, x, c: film(x, temb=c),
        lambda film, c: by_silu(film, c).chunk(2, 1),
        {"output_dim": 2 * 6, "chunk_dim": 1},
        before="norm",
    ),
    Case(
        "diffusers-continuous",
        normalization.AdaLayerNormContinuous,
        (5, 6),
        in_order,
        lambda film, c: by_silu(film, c).chunk(2, 1),
        {"embedding_dim": 6},
        before="norm",
    ),
    Case(
        "diffusers-group",
        normalization.AdaGroupNorm,
        IMAGES,
        in_order,
        lambda film, c: film.linear(c).chunk(2, 1),
        {"out_dim": 6, "num_groups": 6, "eps": 0.0},
    ),
    *(
        Case(family, cls, SIGNALS, in_order, projected, {**BLOCK, word: scale}, *around, shift_only=not scale)
        for scale in (True, False)
        for family, cls, projected, word, around in (
            (
                "diffusion-policy",
                ConditionalResidualBlock1D,
                lambda film, c: film.cond_encoder(c)[..., 0].split(8, 1),
                "cond_predict_scale",
                ("blocks.0", "blocks.1"),
            ),
            (
                "lerobot",
                DiffusionConditionalResidualBlock1d,
                lambda film, c: film.cond_encoder(c).split(8, 1),
                "use_film_scale_modulation",
                ("conv1", "conv2"),
            ),
        )
    ),
    Case(
        "rt1",
        FilmConditioning,
        IMAGES,
        in_order,
        lambda film, c: (film._projection_add(c), film._projection_mult(c)),
        {"num_channels": 6},
    ),
    Case(
        "rt1-lucidrains",
        FiLM,
        (5, 6),
        lambda film, x, c: film(c, x),
        lambda film, c: film.net(c).chunk(2, 1),
        {"hidden_dim": 6},
    ),
]
PAIRS = Case(
    "kernel-film",
    UpstreamGenerator,
    (),
    lambda film, _, c: film(c)[0],
    lambda film, c: film.mlp(c).chunk(2, 1),
    {"kernel_hidden_dim": 4, "num_film_layers": 1},
)
each_family = pytest.mark.parametrize("case", [*CASES, PAIRS], ids=str)
each_that_applies = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module")
def spec() -> regplug.ReadoutSpec:
    """Gives 12 numbers: 4 registers, 3 each."""
    return regplug.resolve("compress-concat", num_registers=R, hidden_dim=D, compressed_dim=3)


@pytest.fixture(autouse=True)
def importable() -> Iterator[None]:
    """The rebuilt classes are importable under their published names."""
    with pytest.MonkeyPatch.context() as patch:
        for reference, cls in PUBLISHED.items():
            module = reference.partition(":")[0]
            patch.setitem(sys.modules, module, sys.modules.get(module) or types.ModuleType(module))
            patch.setattr(sys.modules[module], cls.__name__, cls, raising=False)
        yield


def trained(film: nn.Module) -> nn.Module:
    """Weights away from the initial ones, with which most modulate by nothing."""
    torch.manual_seed(1)
    return moved(film, 0.3)


def features_of(case: Case) -> Tensor:
    return torch.randn(BATCH, *case.features, generator=torch.Generator().manual_seed(2))


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


refusal = functools.partial(message_of, regplug.pair)


# ---- pairing


@each_family
@pytest.mark.parametrize("by_name", [False, True], ids=["class", "name"])
def test_a_family_is_built_unchanged_with_the_width_of_the_readout(
    spec: regplug.ReadoutSpec, case: Case, by_name: bool
) -> None:
    name = f"{case.cls.__module__}:{case.cls.__qualname__}"
    film = regplug.pair(spec, name if by_name else case.cls, **case.options)
    assert type(film) is case.cls
    assert film_family(film).full_name == f"regplug:{case.family}"
    with torch.no_grad():
        assert case.call(film, features_of(case), torch.randn(BATCH, WIDTH)) is not None
    with pytest.raises(RuntimeError):  # what pairing saves its users from
        case.call(film, features_of(case), torch.randn(BATCH, WIDTH + 1))


@each_family
def test_an_instance_is_returned_itself_or_refused_with_both_widths(spec: regplug.ReadoutSpec, case: Case) -> None:
    film = regplug.pair(spec, case.cls, **case.options)
    assert regplug.pair(spec, film) is film
    other = regplug.resolve("compress-concat", num_registers=R, hidden_dim=D, compressed_dim=4)
    assert refusal(other, film) == (
        f"FiLM generator {case.cls.__name__}: "
        "expected conditioning of width 12, got 16 from strategy 'compress-concat'."
    )


@each_family
def test_gradients_go_through_the_pair_to_the_readout(spec: regplug.ReadoutSpec, case: Case) -> None:
    readout, film = spec.build(), trained(regplug.pair(spec, case.cls, **case.options))
    output = tensors(case.call(film, features_of(case), readout(torch.randn(BATCH, R, D))))
    assert all(part.shape[0] == BATCH for part in output)
    sum(part.square().sum() for part in output).backward()
    for parameter in (*readout.parameters(), *film.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


# ---- the table


def modulation(case: Case, film: nn.Module, given: Tensor, conditioning: Tensor) -> tuple[Tensor, Tensor]:
    """The features before and after modulation, channels last."""
    h = given
    if case.cls is normalization.AdaGroupNorm:  # calls a function, which no hook sees
        h = F.group_norm(given, film.num_groups, eps=film.eps)
    seen = {"before": h}
    if case.before:
        before = film.get_submodule(case.before)
        before.register_forward_hook(lambda _, given, out: seen.update(before=out))
    if case.after:
        film.get_submodule(case.after).register_forward_pre_hook(lambda _, given: seen.update(after=given[0]))
    output = tensors(case.call(film, given, conditioning))[0]
    channels = 2 if case.features[-1] in (WIDTH, 6) else 1
    return seen["before"].movedim(channels, -1), seen.get("after", output).movedim(channels, -1)


def expected_modulation(form: str, order: str, case: Case, h: Tensor, projected: Any) -> Tensor:
    if case.shift_only:
        return h + projected[0][:, None]
    broadcast = [part.view(BATCH, *[1] * (h.dim() - 2), -1) for part in projected[:2]]
    gamma, beta = broadcast if order == "gamma-first" else broadcast[::-1]
    return (gamma if form == "gamma" else 1 + gamma) * h + beta


@each_that_applies
def test_form_and_order_of_the_table_are_what_the_module_computes(spec: regplug.ReadoutSpec, case: Case) -> None:
    film = trained(regplug.pair(spec, case.cls, **case.options))
    entry = film_family(film)
    conditioning = torch.randn(BATCH, WIDTH)
    with torch.no_grad():
        h, found = modulation(case, film, features_of(case), conditioning)
        projected = case.projected(film, conditioning)
        torch.testing.assert_close(found, expected_modulation(entry.form, entry.order, case, h, projected))
        if case.shift_only:
            return
        other_form = "gamma" if entry.form == "1+gamma" else "1+gamma"
        other_order = "gamma-first" if entry.order == "shift-first" else "shift-first"
        for form, order in ((other_form, entry.order), (entry.form, other_order)):
            with pytest.raises(AssertionError):
                torch.testing.assert_close(found, expected_modulation(form, order, case, h, projected))


def test_the_pairs_of_nvsubquadratic_are_the_identity_at_its_start_gamma_first(spec: regplug.ReadoutSpec) -> None:
    film = regplug.pair(spec, UpstreamGenerator, **PAIRS.options)
    entry = film_family(film)
    assert (entry.form, entry.order, entry.gives_pairs) == ("gamma", "gamma-first", True)
    [(gamma, beta)] = film(torch.randn(BATCH, WIDTH))
    torch.testing.assert_close((gamma, beta), (torch.ones(BATCH, 4), torch.zeros(BATCH, 4)), rtol=0, atol=0)


def rows() -> list[str]:
    """The table of docs/film.md, made from the registry."""
    made = []
    for entry in builtin.regplug_films():
        classes = "<br>".join(f"`{name}`" for name in (entry.build, *entry.classes))
        conditioner = "yes" if entry.gives_pairs else "no"
        cells = [entry.name, classes, f"`{entry.width}`", f"`{entry.width_at}`", entry.form, entry.order, conditioner]
        made.append(f"| {' | '.join([*cells, entry.summary])} |")
    return made


def test_the_page_shows_what_the_code_knows() -> None:
    families = PAGE.read_text().partition("\n## Families\n")[2].partition("\n## ")[0]
    shown = [line for line in families.splitlines() if line.startswith("| ")]
    assert shown[1:] == rows(), "docs/film.md should read:\n" + "\n".join(rows())
    assert all(f"`{word}`" in PAGE.read_text() for word in WIDTH_WORDS)


def test_every_family_of_the_table_is_tested_here_and_none_is_imported_to_be_known() -> None:
    entries = builtin.regplug_films()
    assert {case.family for case in (*CASES, PAIRS)} == {entry.name for entry in entries}
    names = [name for entry in entries for name in (entry.build, *entry.classes)]
    assert all(isinstance(name, str) for name in names)
    assert len(set(names)) == len(names)


# ---- conditioners


def layout() -> regplug.TokenLayout:
    return regplug.TokenLayout(num_registers=R, hidden_dim=D, start=1)


@each_that_applies
@pytest.mark.parametrize("stated", [{}, {"form": "gamma", "order": "gamma-first"}], ids=["known", "stated"])
def test_what_applies_film_itself_is_no_generator_for_a_conditioner(
    spec: regplug.ReadoutSpec, case: Case, stated: dict[str, str]
) -> None:
    film = regplug.pair(spec, case.cls, **case.options)
    with pytest.raises(SpecError) as caught:
        regplug.Conditioner(layout(), spec.build(), film, **stated)
    assert str(caught.value) == (
        f"FiLM generator {case.cls.__name__}: expected forward(conditioning) -> [(gamma, beta), ...], got a module "
        "that applies FiLM itself; attach without film=, then pair: in your own forward, call it with your features "
        "and the readout's output."
    )


def test_the_generator_of_nvsubquadratic_may_be_a_conditioners(spec: regplug.ReadoutSpec) -> None:
    film = regplug.pair(spec, UpstreamGenerator, **PAIRS.options)
    [(gamma, beta)] = regplug.Conditioner(layout(), spec.build(), film)(torch.randn(2, 9, D))
    assert gamma.shape == beta.shape == (2, 4)


# ---- what is not recognised


class CopiedBlock(DiTBlock):
    """Simulates a copy: the registry below knows no family."""


UNKNOWING = regplug.Registry({})


def test_a_copy_is_paired_by_naming_its_width_and_nothing_is_guessed(spec: regplug.ReadoutSpec) -> None:
    made = regplug.pair(spec, CopiedBlock, width="hidden_size", num_heads=2, registry=UNKNOWING)
    place = "adaLN_modulation.1.in_features"
    assert regplug.pair(spec, made, width=place, registry=UNKNOWING) is made
    assert "expected conditioning of width 14, got 12" in refusal(
        spec, CopiedBlock(14, 2), width=place, registry=UNKNOWING
    )
    for film in (CopiedBlock, made):  # its first layer is none of the conditioning vector
        assert refusal(spec, film, registry=UNKNOWING).endswith("got none; use width= to name it.")
    assert refusal(spec, made, width="adaLN_modulation.7.in_features", registry=UNKNOWING) == (
        "FiLM generator CopiedBlock: expected an integer attribute adaLN_modulation.7.in_features, got none; "
        "use width= to name it."
    )


def test_a_copy_that_takes_features_too_is_no_generator_even_with_stated_form_and_order() -> None:
    with pytest.raises(SpecError, match="got a module that applies FiLM itself"):
        convention_of(CopiedBlock(12, 2), "1+gamma", "shift-first", registry=UNKNOWING)


class WiderBlock(DiTBlock):
    """A user's class: its conditioning vector has another width than its tokens."""

    def __init__(self, hidden_size: int, cond_dim: int, num_heads: int = 1) -> None:
        super().__init__(hidden_size, num_heads)
        self.adaLN_modulation[1] = nn.Linear(cond_dim, 6 * hidden_size)


def test_a_subclass_with_another_width_argument_is_not_taken_for_its_family(spec: regplug.ReadoutSpec) -> None:
    assert refusal(spec, WiderBlock, hidden_size=6) == (
        "FiLM generator WiderBlock: expected one of hidden_size, cond_dim, global_cond_dim, "
        "conditioning_embedding_dim, conditioning_dim, cond_channels, dim_condition, condition_shape, context_dim, "
        "llm_dim in its constructor, got hidden_size, cond_dim; use width= to name it."
    )
    made = regplug.pair(spec, WiderBlock, width="cond_dim", hidden_size=6)
    assert regplug.pair(spec, made) is made  # by its layer, not by its tokens' width
    assert made(torch.randn(BATCH, 5, 6), torch.randn(BATCH, WIDTH)).shape == (BATCH, 5, 6)


def test_what_takes_no_conditioning_vector_does_not_pair(spec: regplug.ReadoutSpec) -> None:
    assert "got none; use width= to name it." in refusal(spec, normalization.AdaLayerNormSingle)


def test_a_constructor_that_refuses_the_width_is_reported(spec: regplug.ReadoutSpec) -> None:
    text = refusal(spec, DiTBlock, num_heads=5)
    assert "got hidden_size=12, num_heads=5: AssertionError: dim should be divisible by num_heads" in text
    assert f"({__file__}:" in text


def test_the_default_of_diffusers_norm_takes_one_vector_and_no_batch() -> None:
    film = trained(normalization.AdaLayerNorm(WIDTH))
    tokens, vector = torch.randn(BATCH, 5, WIDTH), torch.randn(WIDTH)
    scale, shift = by_silu(film, vector).chunk(2)
    torch.testing.assert_close(film(tokens, temb=vector), film.norm(tokens) * (1 + scale) + shift)
    with pytest.raises(RuntimeError):
        film(tokens, temb=torch.randn(BATCH, WIDTH))

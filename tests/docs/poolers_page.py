"""Writes the table of docs/readouts.md that says what published poolers do with padding, from a run of each.

Run `python tests/docs/poolers_page.py` after a package's version in the Makefile changed.
"""

import re
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.models.embeddings import AttentionPooling, MochiAttentionPool
from nvsubquadratic.modules.film import RegisterPooling
from perceiver_pytorch import Perceiver
from sentence_transformers.sentence_transformer.modules import Pooling
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.pool1d import global_pool_nlc
from timm.models.naflexvit import global_pool_naflex
from torch_geometric.nn import aggr
from transformers import BertConfig, Siglip2VisionConfig, SiglipVisionConfig
from transformers.models.bert.modeling_bert import BertPooler
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.models.siglip2.modeling_siglip2 import Siglip2MultiheadAttentionPoolingHead
from x_transformers.x_transformers import AttentionPool

import regplug
from regplug import ShapeError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "readouts.md"
TABLE = re.compile(r"(?<=<!-- poolers -->\n).*?(?=<!-- end -->)", re.DOTALL)
D, N = 24, 7
LENGTHS = (4, 2, 5)
TOLERANCE = 1e-5
HEADS = {"hidden_size": D, "num_attention_heads": 2, "intermediate_size": 2 * D}


def sentence_transformers(mode):
    """Its ``Pooling`` in one mode."""
    pooling = Pooling(D, pooling_mode=mode)
    return lambda x, mask: pooling({"token_embeddings": x, "attention_mask": mask.long()})["sentence_embedding"]


def pyg(aggregation):
    """An aggregation of PyG, whose input is the tokens that count and the sample of each."""
    return lambda x, mask: aggregation(x[mask], mask.nonzero()[:, 0], dim_size=len(x))


def with_mask(pooler, of_mask=lambda mask: mask):
    """A module that takes a mask as its second argument."""
    return lambda x, mask: pooler(x, of_mask(mask)).flatten(1)


def without_mask(pooler):
    """A module that takes none."""
    return lambda x, mask: pooler(x).flatten(1)


def perceiver():
    """One block, with the tokens' positions left out."""
    sizes = {"num_latents": 2, "latent_dim": D, "latent_heads": 2, "cross_dim_head": 12, "latent_dim_head": 12}
    whole = Perceiver(
        num_freq_bands=1, max_freq=1.0, depth=1, input_channels=D, input_axis=1, fourier_encode_data=False, **sizes
    )
    return lambda x, mask: whole(x, mask=mask, return_embeddings=True).flatten(1)


def strategy(name, **options):
    """A readout of regplug."""
    return with_mask(regplug.create(name, num_registers=None, hidden_dim=D, **options))


def sdpa_mask(mask):
    """``[B, 1, 1, N]``."""
    return mask[:, None, None, :]


ALL = {"num_prefix_tokens": 0}
NO, MASK, INDEX = "no", "yes", "an index of samples"
# package -> its poolers: what each is called here, what it takes, and how it is made
POOLERS = {
    "sentence-transformers": {
        f"`Pooling`, {mode}": (MASK, partial(sentence_transformers, mode))
        for mode in ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
    },
    "timm": {
        "`AttentionPoolLatent`": (MASK, lambda: with_mask(AttentionPoolLatent(D, num_heads=2), sdpa_mask)),
        **{
            f"`global_pool_nlc`, {kind}": (NO, partial(without_mask, partial(global_pool_nlc, pool_type=kind, **ALL)))
            for kind in ("token", "avg")
        },
        **{
            f"`global_pool_naflex`, {kind}": (
                MASK,
                partial(with_mask, partial(global_pool_naflex, pool_type=kind, **ALL)),
            )
            for kind in ("avg", "max")
        },
    },
    "transformers": {
        "`BertPooler`": (NO, lambda: without_mask(BertPooler(BertConfig(**HEADS)))),
        "`SiglipMultiheadAttentionPoolingHead`": (
            NO,
            lambda: without_mask(SiglipMultiheadAttentionPoolingHead(SiglipVisionConfig(**HEADS))),
        ),
        "`Siglip2MultiheadAttentionPoolingHead`": (
            MASK,
            lambda: with_mask(
                Siglip2MultiheadAttentionPoolingHead(Siglip2VisionConfig(**HEADS, attn_implementation="sdpa"))
            ),
        ),
    },
    "torch-geometric": {
        "`MeanAggregation`": (INDEX, lambda: pyg(aggr.MeanAggregation())),
        "`MaxAggregation`": (INDEX, lambda: pyg(aggr.MaxAggregation())),
        "`SetTransformerAggregation`": (INDEX, lambda: pyg(aggr.SetTransformerAggregation(D, heads=2).eval())),
    },
    "diffusers": {
        "`AttentionPooling`": (NO, lambda: without_mask(AttentionPooling(2, D))),
        "`MochiAttentionPool`": (MASK, lambda: with_mask(MochiAttentionPool(2, D))),
    },
    "x-transformers": {"`AttentionPool`": (MASK, lambda: with_mask(AttentionPool(D, heads=2, dim_head=12)))},
    "perceiver-pytorch": {"`Perceiver`": (MASK, perceiver)},
    "nvsubquadratic": {"`RegisterPooling`": (NO, lambda: without_mask(RegisterPooling(N)))},
    "regplug": {
        "`mean`": (MASK, partial(strategy, "mean")),
        "`attention`": (MASK, partial(strategy, "attention", num_heads=3)),
    },
}


def batch(side, value, empty=()):
    """Samples padded on one side with a value, and the mask; of the empty ones nothing counts."""
    places, counts = torch.arange(N), torch.tensor(LENGTHS)[:, None]
    mask = places < counts if side == "right" else places >= N - counts
    tokens = torch.full((len(LENGTHS), N, D), value)
    tokens[mask] = torch.randn(sum(LENGTHS), D, generator=torch.Generator().manual_seed(1))
    mask[list(empty)] = False
    return tokens.masked_fill(~mask.unsqueeze(2), value), mask


def same(found, wanted):
    """Whether they differ by rounding alone."""
    return bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def alone(run, tokens, mask):
    """Each sample without its padding."""
    rows = zip(tokens, mask, strict=True)
    return torch.cat([run(one[its][None], torch.ones(1, int(its.sum()), dtype=torch.bool)) for one, its in rows])


def verdict(run, side, value):
    """What it gives for a batch that is padded so."""
    tokens, mask = batch(side, value)
    wanted, found = alone(run, tokens, mask), run(tokens, mask)
    if same(found, wanted):
        return "same"
    return "NaN" if found.isnan().any() else "differs"


def of_empty(run):
    """What it gives for a sample in which nothing counts."""
    answers = []
    for value in (3.0, 5.0):
        tokens, mask = batch("right", value, empty=[1])
        try:
            answers.append(run(tokens, mask))
        except ShapeError:
            return "refused"
    others = [0, 2]
    if not same(answers[0][others], alone(run, tokens[others], mask[others])):
        return "other samples differ"
    one, other = answers[0][1], answers[1][1]
    if one.isnan().any():
        return "NaN"
    if one.isinf().any():
        return "infinite"
    if not torch.allclose(one, other):
        return "reads the padding"
    if (one == 0).all():
        return "zeros"
    return "lowest number" if (one < -1e30).all() else "a constant"


def gradient(run, values):
    """Whether padding of these values gets a gradient."""
    for value in values:
        tokens, mask = batch("left", value)
        run(tokens.requires_grad_(), mask).square().sum().backward()
        if tokens.grad.isnan().any() or tokens.grad[~mask].any():
            return "yes"
    return "none"


def cells(takes, make):
    """The row of a pooler."""
    torch.manual_seed(0)
    run = make()
    try:
        sides = [verdict(run, side, 3.0) for side in ("left", "right")]
    except RuntimeError:
        return [takes, *["takes one number of tokens"] * 2, *["-"] * 3]
    if takes == INDEX:  # padding never gets in
        return [takes, *sides, "-", of_empty(run), "-"]
    unset = verdict(run, "left", torch.nan)
    values = (3.0, torch.nan) if unset == "same" else (3.0,)
    return [takes, *sides, unset, of_empty(run) if takes == MASK else "-", gradient(run, values)]


def table():
    """The table's lines, by package."""
    heads = ("package", "pooler", "takes a mask", "padding left", "padding right", "NaN in padding", "empty sample")
    lines = ["| " + " | ".join((*heads, "gradient to padding")) + " |", "|" + "---|" * 8]
    for package, poolers in POOLERS.items():
        for name, pooler in poolers.items():
            lines.append("| " + " | ".join((f"{package} {version(package)}", name, *cells(*pooler))) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda _: table(), PAGE.read_text()))

"""regplug's own strategies, FiLM generator and export backends: a plugin like any other."""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import Any

from regplug.registry.entries import ExportBackendEntry, FiLMEntry, ReadoutEntry
from regplug.registry.hookspecs import hookimpl


@hookimpl
def regplug_readouts() -> list[ReadoutEntry]:
    """The built-in strategies."""
    return [
        ReadoutEntry(
            "mean",
            "regplug.nn.readouts.averages:RegisterMean",
            cond_dim="regplug.nn.readouts.sizes:mean_width",
            summary="mean pooling over the registers",
            equation="c = (1 / R) sum_r x_r",
        ),
        ReadoutEntry(
            "pool",
            "regplug.nn.readouts.averages:RegisterPooling",
            cond_dim="regplug.nn.readouts.sizes:pool_width",
            summary="learned weighted pooling, one weight per register",
            equation="c = sum_r softmax(w)_r x_r",
            source="nvSubquadratic, modules/film.py",
        ),
        ReadoutEntry(
            "concat",
            "regplug.nn.readouts.concatenations:RegisterConcat",
            cond_dim="regplug.nn.readouts.sizes:concat_width",
            summary="all registers, concatenated",
            equation="c = [x_1 || ... || x_R]",
        ),
        ReadoutEntry(
            "compress-concat",
            "regplug.nn.readouts.concatenations:RegisterCompressConcat",
            cond_dim="regplug.nn.readouts.sizes:compress_concat_width",
            summary="each register through one shared projection, then concatenated",
            equation="c = [W x_1 || ... || W x_R]",
            source="nvSubquadratic, modules/film.py; the idea is Mamba-Reg's (Wang et al., 2024)",
        ),
        ReadoutEntry(
            "select-concat",
            "regplug.nn.readouts.concatenations:RegisterSelectConcat",
            cond_dim="regplug.nn.readouts.sizes:select_concat_width",
            summary="selected registers, concatenated",
            equation="c = [x_i1 || ... || x_ik]",
            source=(
                "RADIO's summary (Ranzinger et al., 2024, arXiv:2312.06709), which reads the class tokens "
                "of chosen teachers"
            ),
        ),
        ReadoutEntry(
            "mamba-reg",
            "regplug.nn.readouts.concatenations:MambaRegReadout",
            cond_dim="regplug.nn.readouts.sizes:mamba_reg_width",
            summary="compressed, concatenated, normalized: the head of Mamba-Reg",
            equation="c = RMSNorm([W x_1 || ... || W x_R])",
            source="Mamba-Reg (Wang et al., 2024, arXiv:2405.14858), models_mamba.py",
        ),
        ReadoutEntry(
            "gated-abmil",
            "regplug.nn.readouts.attentions:RegisterGatedABMIL",
            cond_dim="regplug.nn.readouts.sizes:gated_abmil_width",
            summary="gated attention pooling, as the aggregation of ABMIL",
            equation="a = softmax_r(w (tanh(V x_r) * sigm(U x_r))), c = sum_r a_r x_r",
            source="Ilse et al., 2018 (arXiv:1802.04712), equation 9",
        ),
        ReadoutEntry(
            "attention",
            "regplug.nn.readouts.attentions:RegisterAttention",
            cond_dim="regplug.nn.readouts.sizes:attention_width",
            summary="attention pooling with learned queries (MAP head, attentive probe)",
            equation="z_i = W_o MHA(q_i; W_k X, W_v X), y_i = z_i + MLP(LayerNorm(z_i)), c = [y_1 || ... || y_q]",
            source="SigLIP (Zhai et al., 2023, arXiv:2303.15343)",
        ),
        ReadoutEntry(
            "join",
            "regplug.nn.readouts.joins:TokenJoin",
            cond_dim="regplug.nn.readouts.join_parts:join_width",
            summary="readouts of several groups of tokens, concatenated",
            equation="c = [c_1 || ... || c_k]",
            source="DINOv2's linear input (Oquab et al., 2023, arXiv:2304.07193)",
        ),
    ]


@hookimpl
def regplug_films() -> list[FiLMEntry]:
    """The built-in FiLM generator, and the public families of film_families.csv, which docs/film.md shows."""
    # not by its path: the package may be in a zip file
    text = files("regplug.registry").joinpath("film_families.csv").read_text("utf-8")
    families: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    return [
        FiLMEntry(
            "kernel-film",
            "regplug.nn.film:KernelFiLMGenerator",
            width_at="mlp.0.in_features",
            classes=("nvsubquadratic.modules.film:KernelFiLMGenerator",),
            summary="conditioning vector to FiLM pairs (gamma, beta), one for each hidden layer of a kernel network",
        ),
        # each applies FiLM to the features itself
        *(FiLMEntry(**{**family, "classes": family["classes"].split()}, gives_pairs=False) for family in families),
    ]


@hookimpl
def regplug_export_backends() -> list[ExportBackendEntry]:
    """The built-in export backends."""
    return [
        ExportBackendEntry(
            "torchscript",
            "regplug.backends.torchscript:TorchScriptBackend",
            summary="legacy: runs wherever libtorch does, deprecated by PyTorch",
        ),
        ExportBackendEntry(
            "aotinductor",
            "regplug.backends.aotinductor:AOTInductorBackend",
            summary="compiled for an instruction set; weights are inputs, so new ones need no compiler",
        ),
    ]

"""regplug's own strategies, FiLM generator and export backends: a plugin like any other."""

from __future__ import annotations

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
            summary="mean over the registers",
        ),
        ReadoutEntry(
            "pool",
            "regplug.nn.readouts.averages:RegisterPooling",
            cond_dim="regplug.nn.readouts.sizes:pool_width",
            summary="learned average",
        ),
        ReadoutEntry(
            "concat",
            "regplug.nn.readouts.concatenations:RegisterConcat",
            cond_dim="regplug.nn.readouts.sizes:concat_width",
            summary="all registers, flat",
        ),
        ReadoutEntry(
            "compress-concat",
            "regplug.nn.readouts.concatenations:RegisterCompressConcat",
            cond_dim="regplug.nn.readouts.sizes:compress_concat_width",
            summary="each register through one shared projection, then flat",
        ),
        ReadoutEntry(
            "select-concat",
            "regplug.nn.readouts.concatenations:RegisterSelectConcat",
            cond_dim="regplug.nn.readouts.sizes:select_concat_width",
            summary="chosen registers, flat",
        ),
        ReadoutEntry(
            "mamba-reg",
            "regplug.nn.readouts.concatenations:MambaRegReadout",
            cond_dim="regplug.nn.readouts.sizes:mamba_reg_width",
            summary="compressed, flat, normalised, as Mamba-Reg reads its registers",
        ),
        ReadoutEntry(
            "gated-abmil",
            "regplug.nn.readouts.attentions:RegisterGatedABMIL",
            cond_dim="regplug.nn.readouts.sizes:gated_abmil_width",
            summary="weighted sum by a small gated network",
        ),
        ReadoutEntry(
            "attention",
            "regplug.nn.readouts.attentions:RegisterAttention",
            cond_dim="regplug.nn.readouts.sizes:attention_width",
            summary="learned queries attend over the registers (MAP head)",
        ),
    ]


@hookimpl
def regplug_films() -> list[FiLMEntry]:
    """The built-in FiLM generator, and the public families that are known by name; docs/film.md shows them."""
    norms, diffusion = "diffusers.models.normalization", "policies.diffusion.modeling_diffusion"
    return [
        FiLMEntry(
            "kernel-film",
            "regplug.nn.film:KernelFiLMGenerator",
            width_at="mlp.0.in_features",
            classes=("nvsubquadratic.modules.film:KernelFiLMGenerator",),
            summary="conditioning vector -> (gamma, beta) for each hidden layer of a kernel network",
        ),
        FiLMEntry(
            "dit",
            "models:DiTBlock",
            width="hidden_size",
            width_at="adaLN_modulation.1.in_features",
            form="1+gamma",
            order="shift-first",
            gives_pairs=False,
            classes=("models:FinalLayer",),
            summary="facebookresearch/DiT: shift, scale, gate, twice; tokens are cond_dim wide too",
        ),
        FiLMEntry(
            "diffusers-zero",
            f"{norms}:AdaLayerNormZero",
            width="embedding_dim",
            width_at="linear.in_features",
            form="1+gamma",
            order="shift-first",
            gives_pairs=False,
            classes=(f"{norms}:AdaLayerNormZeroSingle", f"{norms}:SD35AdaLayerNormZeroX"),
            summary="shift, scale, gate; gives back the gates; tokens are cond_dim wide too",
        ),
        FiLMEntry(
            "diffusers-norm",
            f"{norms}:AdaLayerNorm",
            width="embedding_dim",
            width_at="linear.in_features",
            form="1+gamma",
            order="shift-first",
            gives_pairs=False,
            summary="with chunk_dim=1 (0 is for one vector, unbatched, gamma first); output_dim is twice the features'",
        ),
        FiLMEntry(
            "diffusers-continuous",
            f"{norms}:AdaLayerNormContinuous",
            width="conditioning_embedding_dim",
            width_at="linear.in_features",
            form="1+gamma",
            gives_pairs=False,
            summary="embedding_dim is the width of the features",
        ),
        FiLMEntry(
            "diffusers-group",
            f"{norms}:AdaGroupNorm",
            width="embedding_dim",
            width_at="linear.in_features",
            form="1+gamma",
            gives_pairs=False,
            summary="out_dim is the width of the features",
        ),
        FiLMEntry(
            "diffusion-policy",
            "diffusion_policy.model.diffusion.conditional_unet1d:ConditionalResidualBlock1D",
            width_at="cond_encoder.1.in_features",
            gives_pairs=False,
            summary="with cond_predict_scale=True; without, beta alone is added",
        ),
        FiLMEntry(
            "lerobot",
            f"lerobot.{diffusion}:DiffusionConditionalResidualBlock1d",
            width_at="cond_encoder.1.in_features",
            gives_pairs=False,
            classes=(f"lerobot.common.{diffusion}:DiffusionConditionalResidualBlock1d",),
            summary="with use_film_scale_modulation=True; without, beta alone is added",
        ),
        FiLMEntry(
            "rt1",
            "film_efficientnet.film_conditioning_layer:FilmConditioning",
            width="text_vector_size",
            width_at="_projection_add.in_features",
            form="1+gamma",
            order="shift-first",
            gives_pairs=False,
            classes=("pytorch_robotics_transformer.film_efficientnet.film_conditioning_layer:FilmConditioning",),
            summary="maruya24/pytorch_robotics_transformer: two layers that start at zero, that of beta first",
        ),
        FiLMEntry(
            "rt1-lucidrains",
            "classifier_free_guidance_pytorch.classifier_free_guidance_pytorch:FiLM",
            width="dim",
            width_at="net.0.in_features",
            form="1+gamma",
            gives_pairs=False,
            summary="lucidrains/robotic-transformer-pytorch: hidden_dim is the width of the features",
        ),
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

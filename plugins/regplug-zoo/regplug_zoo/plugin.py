"""The readouts that this package offers. Imports no torch, so listing stays fast."""

from __future__ import annotations

import regplug


@regplug.hookimpl
def regplug_readouts() -> list[regplug.ReadoutEntry]:
    """Offer every readout of this package."""
    return [
        regplug.ReadoutEntry(
            "sum",
            "regplug_zoo.moments:RegisterSum",
            cond_dim="regplug_zoo.sizes:sum_width",
            summary="sum pooling over the registers",
            equation="c = sum_r x_r",
            source="Deep Sets (Zaheer et al., 2017), with the identity inside and outside",
        ),
        regplug.ReadoutEntry(
            "max",
            "regplug_zoo.moments:RegisterMax",
            cond_dim="regplug_zoo.sizes:max_width",
            summary="max pooling: the largest value of each channel",
            equation="c = max_r x_r",
            source="PointNet (Qi et al., 2017)",
        ),
        regplug.ReadoutEntry(
            "avgmax",
            "regplug_zoo.moments:RegisterAvgMax",
            cond_dim="regplug_zoo.sizes:avgmax_width",
            summary="mean and max pooling, averaged",
            equation="c = (mean_r x_r + max_r x_r) / 2",
            source='timm, layers/pool1d.py, global_pool_nlc with pool_type="avgmax"',
        ),
        regplug.ReadoutEntry(
            "mean-std",
            "regplug_zoo.moments:RegisterMeanStd",
            cond_dim="regplug_zoo.sizes:mean_std_width",
            summary="mean and standard deviation, concatenated (statistics pooling)",
            equation="c = [m || sqrt(mean_r (x_r - m)^2 + eps)], m = mean_r x_r",
            source="x-vectors' statistics pooling (Snyder et al., 2018)",
        ),
        regplug.ReadoutEntry(
            "first-token",
            "regplug_zoo.positions:RegisterFirstToken",
            cond_dim="regplug_zoo.sizes:first_token_width",
            summary="the first token that counts (class-token pooling, CLS)",
            equation="c = x_1",
            source="BERT (Devlin et al., 2019, arXiv:1810.04805), the class token before its pooler",
        ),
        regplug.ReadoutEntry(
            "last-token",
            "regplug_zoo.positions:RegisterLastToken",
            cond_dim="regplug_zoo.sizes:last_token_width",
            summary="the last token that counts (last-token pooling, EOS)",
            equation="c = x_R",
            source="GPT (Radford et al., 2018), whose classifiers read the last token",
        ),
        regplug.ReadoutEntry(
            "mean-sqrt-len",
            "regplug_zoo.positions:RegisterMeanSqrtLen",
            cond_dim="regplug_zoo.sizes:mean_sqrt_len_width",
            summary="sum pooling, divided by the root of the number of tokens",
            equation="c = (1 / sqrt(R)) sum_r x_r",
            source=(
                "Universal Sentence Encoder (Cer et al., 2018, arXiv:1803.11175); "
                "sentence-transformers, mean_sqrt_len_tokens"
            ),
        ),
        regplug.ReadoutEntry(
            "weighted-mean",
            "regplug_zoo.positions:RegisterWeightedMean",
            cond_dim="regplug_zoo.sizes:weighted_mean_width",
            summary="mean pooling with weights that grow with the position",
            equation="c = sum_r r x_r / sum_r r",
            source="SGPT (Muennighoff, 2022, arXiv:2202.08904); sentence-transformers, weightedmean",
        ),
        regplug.ReadoutEntry(
            "gem",
            "regplug_zoo.weighted:RegisterGeM",
            cond_dim="regplug_zoo.sizes:gem_width",
            summary="generalized-mean pooling (GeM) with a learned exponent, for any sign",
            equation="c = sign(m) (|m| + eps)^(1/p), m = mean_r sign(x_r) |x_r|^p",
            source=(
                'GeM (Radenovic et al., 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation"), '
                "made sign-safe"
            ),
        ),
        regplug.ReadoutEntry(
            "channel-pool",
            "regplug_zoo.weighted:RegisterChannelPooling",
            cond_dim="regplug_zoo.sizes:channel_pool_width",
            summary="learned weighted pooling, one weight per register and channel",
            equation="c = sum_r softmax_r(w)_r * x_r",
            source="nvSubquadratic, modules/film.py, RegisterPooling, made per channel",
        ),
        regplug.ReadoutEntry(
            "per-register-compress-concat",
            "regplug_zoo.concatenations:PerRegisterCompressConcat",
            cond_dim="regplug_zoo.sizes:per_register_compress_concat_width",
            summary="each register through its own projection, then concatenated",
            equation="c = [W_1 x_1 || ... || W_R x_R]",
            source="nvSubquadratic, modules/film.py, RegisterCompressConcat, with its projection not shared",
        ),
        regplug.ReadoutEntry(
            "concat-linear",
            "regplug_zoo.concatenations:RegisterConcatLinear",
            cond_dim="regplug_zoo.sizes:concat_linear_width",
            summary="all registers, concatenated, through one linear layer",
            equation="c = W [x_1 || ... || x_R] + b",
            source=(
                "DINO (Caron et al., 2021), eval_linear.py, which reads the concatenated class tokens of "
                "several blocks so"
            ),
        ),
        regplug.ReadoutEntry(
            "abmil",
            "regplug_zoo.attention:RegisterABMIL",
            cond_dim="regplug_zoo.sizes:abmil_width",
            summary="attention pooling: weights computed from the registers",
            equation="c = sum_r softmax_r(w^T tanh(V x_r)) x_r",
            source="Ilse et al., 2018 (arXiv:1802.04712), equation 8",
        ),
        regplug.ReadoutEntry(
            "simpool",
            "regplug_zoo.attention:RegisterSimPool",
            cond_dim="regplug_zoo.sizes:simpool_width",
            summary="attention pooling with the mean register as the query",
            equation="c = sum_r softmax_r((W_q m)^T W_k n_r / sqrt(D)) n_r, n_r = LayerNorm(x_r), m = mean_r x_r",
            source='SimPool (Psomas et al., 2023, "Keep It SimPool")',
        ),
        regplug.ReadoutEntry(
            "class-attention",
            "regplug_zoo.attention:RegisterClassAttention",
            cond_dim="regplug_zoo.sizes:class_attention_width",
            summary="attention pooling with a learned class token as the query",
            equation="c = P [o_1 || ... || o_H] + b, o_h = sum_j softmax_j((Q_h t)^T K_h u_j / sqrt(D / H)) V_h u_j",
            source="CaiT (Touvron et al., 2021)",
        ),
        regplug.ReadoutEntry(
            "pma",
            "regplug_zoo.queries:RegisterPMA",
            cond_dim="regplug_zoo.sizes:pma_width",
            summary="attention pooling with learned seeds, concatenated (PMA of Set Transformer)",
            equation=(
                "c = [y_1 || ... || y_k], y_i = o_i + relu(W_o o_i), o_i = q_i + sum_r softmax_r(q_i^T W_k "
                "x_r / sqrt(D)) W_v x_r, q_i = W_q s_i"
            ),
            source="Set Transformer (Lee et al., 2019)",
        ),
        regplug.ReadoutEntry(
            "efficient-probing",
            "regplug_zoo.queries:RegisterEfficientProbing",
            cond_dim="regplug_zoo.sizes:efficient_probing_width",
            summary="attentive probe with many learned queries, each for a part of the channels",
            equation="c = [c_1 || ... || c_M], c_i = sum_r softmax_r(q_i^T x_r / sqrt(D)) V_i x_r",
            source=(
                'Psomas et al., 2025, "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency"'
            ),
        ),
        regplug.ReadoutEntry(
            "sinusoidal",
            "regplug_zoo.times:SinusoidalEmbedding",
            cond_dim="regplug_zoo.sizes:sinusoidal_width",
            summary="sines and cosines of each number, for a join's time (time embedding)",
            equation=(
                "c = [e(x_11) || ... || e(x_RD)], e(t) = [sin(w_k t) || cos(w_k t)], "
                "w_k = max_period^(-k / (dim / 2 - 1))"
            ),
            source="Vaswani et al., 2017 (arXiv:1706.03762); Ho et al., 2020 (arXiv:2006.11239)",
        ),
    ]

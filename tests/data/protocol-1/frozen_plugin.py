"""Every hook and every field of protocol 1."""

import regplug


@regplug.hookimpl
def regplug_readouts():
    return [
        regplug.ReadoutEntry(
            "frozen-hook", "frozen_models:Hooked", sizes={"in_features": "hidden_dim"}, summary="by a hook"
        )
    ]


@regplug.hookimpl
def regplug_films():
    return [
        regplug.FiLMEntry(
            "frozen-film",
            build="frozen_models:Film",
            width="width",
            form="1+gamma",
            order="shift-first",
            classes=("elsewhere:Film",),
            width_at="linear.in_features",
            gives_pairs=True,
        )
    ]


@regplug.hookimpl
def regplug_backbones():
    return [
        regplug.BackboneEntry(
            "frozen-vit",
            build="frozen_models:ViT",
            layout="frozen_models:layout_of",
            film_sites="frozen_models:film_sites",
            readouts=("frozen-hook", "frozen-line"),
            default="frozen-hook",
            options={},
            classes=("elsewhere:ViT",),
            tokens="frozen_models:tokens",
            describe="frozen_models:describe",
            weights="frozen_models:weights",
        )
    ]


@regplug.hookimpl
def regplug_export_backends():
    return [regplug.ExportBackendEntry("frozen-backend", "frozen_models:Backend", summary="none")]

"""Writes the table of docs/backbones.md from the plugins.

Run `python tests/docs/backbones_page.py` after a backbone changed.
"""

import re
from collections import defaultdict
from pathlib import Path

import torch

import regplug
from regplug.nn.backbone import ask_layout, build_backbone

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"
TABLE = re.compile(r"(?<=<!-- backbones -->\n).*?(?=<!-- end -->)", re.DOTALL)
TIMM = ("eva", "naflexvit", "vision_transformer")
# one block is enough to see a layout; timm's sapiens2 wants a number of key heads for each
ONE_BLOCK = {"depth": 1, "num_classes": 0}
NUM_PATCHES = (224 // 16) ** 2  # of nvSubquadratic's shipped configurations
# by default it carries none
OPTIONS = {"dinov3_vit": {"num_register_tokens": 4}}

FEATURES, HIDDEN = "`forward_features`", "`last_hidden_state`"
# backbone or class -> how its registers are read; what of it a bundle holds, and as which programs
READ = {
    "VisionTransformer": (FEATURES, "whole: TorchScript, AOTInductor"),
    "Eva": (FEATURES, "whole: TorchScript, AOTInductor"),
    "NaFlexVit": (FEATURES + ", of images or NaFlex patches", "its readouts"),
    "transformers": (HIDDEN, "whole: AOTInductor"),
    "nvsubquadratic": ("its own readout, of all tokens after the last block", "its readouts"),
    "mamba-reg": ("sizes and checkpoints only", "its readouts"),
    "vit5": ("sizes only", "its readouts"),
    "digits-vit": ("its own blocks, of the tokens of the last one", "its readouts"),
}


def models_of_timm():
    """Name and model, on the meta device, of every timm model with a register parameter."""
    import timm

    for name in timm.list_models():
        if timm.models.model_entrypoint(name).__module__.rpartition(".")[2] in TIMM:
            heads = {"num_kv_heads": [1]} if "sapiens2" in name else {}
            with torch.device("meta"):
                model = timm.create_model(name, **ONE_BLOCK, **heads)
            if getattr(model, "embeds", model).reg_token is not None:
                yield name, model


def sketch(backbone, layout):
    """The sequence in words."""
    if layout.indices is not None:
        return f"a register after every {layout.indices[0]} patches"
    if backbone == "nvsubquadratic":
        return f"[patches, {'CLS, ' if layout.start > NUM_PATCHES else ''}REG, PAD]"
    if layout.start < 0:
        return "[CLS, patches, REG]" if backbone == "vit5" else "[patches, REG]"
    return "[" + {0: "", 1: "CLS, "}.get(layout.start, f"CLS x {layout.start}, ") + "REG, patches]"


def place(layout):
    """The layout as ``TokenLayout`` takes it."""
    length = f", num_tokens={layout.num_tokens}" if layout.num_tokens else ""
    if layout.indices is None:
        return f"start={layout.start}{length}"
    return f"indices={layout.indices[0]}, {layout.indices[1]}, ...{length}"


def layouts():
    """(label, key of READ, model's name, layout) of everything in the table."""
    registry = regplug.default_registry()
    timm = registry.backbone_entry("timm")
    for name, model in sorted(models_of_timm(), key=lambda one: (type(one[1]).__name__, one[0])):
        yield f"timm {type(model).__name__}", type(model).__name__, name, ask_layout(timm, model)
    from regplug_nvsubquadratic.official import MAMBA_REG, VIT5
    from regplug_nvsubquadratic.shipped import CONFIGURATIONS
    from regplug_transformers.families import FAMILIES

    named = {
        "transformers": [family.model_type for family in FAMILIES],
        "nvsubquadratic": [name for name, one in CONFIGURATIONS.items() if one.num_registers],
        "mamba-reg": list(MAMBA_REG),
        "vit5": list(VIT5),
        "digits-vit": [None],
    }
    for backbone, models in named.items():
        entry = registry.backbone_entry(backbone)
        for model in models:
            options = OPTIONS.get(model, {})
            with torch.device("meta"):
                layout = ask_layout(entry, build_backbone(entry, model, **options))
            given = "".join(f", {word}={value}" for word, value in options.items())
            yield backbone, backbone, f"{model or ''}{given}", layout


def span(values):
    """One number, or the numbers, or the ends of many."""
    values = sorted(set(values))
    return ", ".join(map(str, values)) if len(values) < 4 else f"{values[0]}-{values[-1]}"


def table(found):
    """The table's lines; models that differ in size alone share one."""
    groups = defaultdict(list)
    for label, key, name, layout in found:
        groups[label, key, sketch(label, layout), place(layout), layout.normalized].append((name, layout))
    lines = ["| backbone | models | R | D | tokens | layout | registers come | read by | exports |", "|" + "---|" * 9]
    for (label, key, tokens, where, normalized), members in groups.items():
        names = [name for name, _ in members if name]
        models = ", ".join(f"`{name}`" for name in names)
        if len(names) > 5:
            models = f"{len(names)}, as `{next(name for name in names if not name.startswith('test_'))}`"
        sizes = [span(getattr(one, word) for _, one in members) for word in ("num_registers", "hidden_dim")]
        come = {True: "normalised", False: "un-normalised", None: "not stated"}[normalized]
        lines.append("| " + " | ".join([label, models, *sizes, tokens, f"`{where}`", come, *READ[key]]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda _: table(layouts()), PAGE.read_text()))

"""Writes docs/api.md from signatures and docstrings; `python tests/docs/api_page.py` after one changed."""

import dataclasses
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import regplug

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
HEADS = re.compile(r"(Args|Returns|Yields|Raises|Example):")
ENTRIES = "Offer something: entries"
# what an entry names, how regplug calls it, and what it gives
CALLS = [
    (
        "ReadoutEntry.build",
        "`build(**sizes, **options)`: of R and D those that its signature names",
        "an `nn.Module`, `[B, R, D] -> [B, cond_dim]`",
    ),
    ("ReadoutEntry.width", "as `build`", "`cond_dim`"),
    (
        "FiLMEntry.build",
        "`build(**{width: cond_dim}, **options)`",
        "an `nn.Module`, `[B, cond_dim] -> [(gamma, beta), ...]`",
    ),
    (
        "BackboneEntry.build",
        "`build(**options)`; `build(model, **options)` for `NAME:MODEL`; under any `torch.device`",
        "the model",
    ),
    ("BackboneEntry.layout", "`layout(model)`", "a `TokenLayout`"),
    ("BackboneEntry.film_sites", "`film_sites(model)`", "a sequence of `FiLMSite`"),
    (
        "BackboneEntry.tokens",
        "`tokens(model, normalized)`, a bool",
        "an `nn.Module` from the model's inputs to tokens `[B, T, D]`",
    ),
    ("BackboneEntry.describe", "`describe(model)`", "`(name or None, options)`, which `build` takes"),
    ("BackboneEntry.weights", "`weights(shapes)`, each tensor's shape by its name", "a sequence of `CheckpointSite`"),
    ("BackboneEntry.preprocess", "`preprocess(model)`", "an `ImagePreprocess`, or None"),
    ("ExportBackendEntry.build", "`build(**settings)`", "an `ExportBackend`"),
]
# in the order in which one meets them: a title, what to know, and names of the package or "module:name"
SECTIONS = [
    (
        "Choose a readout",
        "A strategy is chosen by name; its width follows from the sizes and options.",
        [
            "resolve",
            "create",
            "strategies",
            "describe",
            "ReadoutSpec",
            "StrategyDescription",
            "registry.description:OptionDescription",
        ],
    ),
    (
        "Where the registers are",
        "",
        [
            "TokenLayout",
            "TokenGroup",
            "SelectRegisters",
            "layout_of",
            "read_registers",
            "backbones",
            "measure_backbone",
            "nn.backbone:BackboneSizes",
        ],
    ),
    (
        "FiLM",
        "Which families of others are known, and what their pairs mean: [film.md](film.md).",
        ["pair", "nn.pairing:Convention", "Conditioner", "KernelFiLMGenerator"],
    ),
    (
        "Attach and train",
        "",
        ["attach", "join", "Join", "nn.attach:AttachedReadout", "nn.attach:AttachedConditioner", "param_groups"],
    ),
    (
        "Ship",
        "The folder on disk: [bundle.md](bundle.md). What runs where: [programs.md](programs.md).",
        [
            "export",
            "bundle.export:Exported",
            "load",
            "bundle.program:LoadedProgram",
            "verify",
            "bundle.verify:Verification",
            "bundle.verify:VerifiedCase",
            "sign",
        ],
    ),
    (
        ENTRIES,
        'A hook returns entries; an entry names what is imported when it is used. `Reference` is `"module:attr"`, or '
        "the object itself in a running program. The tutorial is [plugins.md](plugins.md). How each is called:",
        [
            "hookimpl",
            "registry.entries:Entry",
            "ReadoutEntry",
            "FiLMEntry",
            "FiLMSite",
            "BackboneEntry",
            "CheckpointSite",
            "ImagePreprocess",
            "ExportBackendEntry",
            "registry.entries:Provenance",
        ],
    ),
    (
        "Offer something: readouts",
        "What the built-in readouts use for checks, messages and printing. Importing `regplug.nn` imports no torch.",
        [
            "nn:check_sizes",
            "nn:check_count",
            "nn:check_positive",
            "nn:check_multiple",
            "nn:fixed_count",
            "nn:check_registers",
            "nn:check_mask",
            "nn:zero_padding",
            "nn:masked_mean",
            "nn:masked_max",
            "nn:masked_softmax",
            "nn:attention_mask",
            "nn:zero_empty_rows",
            "nn:in_dtype_of",
            "nn:show_settings",
            "nn:closest",
            "nn:one_line",
        ],
    ),
    (
        "Offer something: export backends",
        "`regplug.backends` has all that a backend imports. `Run` is `Callable[[Tensor], Sequence[Tensor]]`: the flat "
        "outputs for one input, `[c]` or `[gamma_0, beta_0, gamma_1, ...]`. `WEIGHTS` is the name of the weights file.",
        [
            "backends:ExportBackend",
            "backends:Source",
            "backends:Program",
            "backends:InputSpec",
            "backends:MoreInput",
            "backends:TensorSpec",
            "backends:StoredTensor",
            "backends:flatten",
            "backends:arguments_of",
            "backends:call_flat",
            "backends:export_graph",
            "backends:WeightsAsInputs",
            "backends:call_site",
            "backends:reused",
            "backends:weights_property",
            "backends:check_weights",
            "backends:one_line",
        ],
    ),
    (
        "The registry",
        "The functions above use `default_registry()`; most take another one as `registry=`.",
        ["default_registry", "Registry", "registry.staging:PluginRecord"],
    ),
    (
        "Checks",
        "What each check looks at: [plugins.md](plugins.md).",
        [
            "conformance.run:check_readout",
            "conformance.parametrize:parametrize_with_checks",
            "conformance.run:subject_of",
            "conformance.check:CheckResult",
        ],
    ),
    (
        "Evidence",
        "How to read the numbers: [evidence.md](evidence.md), and [effect.md](effect.md) with every kind of finding.",
        [
            "rank",
            "read_samples",
            "Samples",
            "commands.rank.ranking:Ranking",
            "commands.rank.ranking:RankedRow",
            "commands.rank.costs:Cost",
            "compare_scores",
            "Comparison",
            "Difference",
            "effect",
            "EffectReport",
            "commands.effect.measure:SiteEffect",
            "commands.effect.measure:ReadoutEffect",
            "commands.effect.measure:Statistics",
            "commands.effect.findings:Finding",
        ],
    ),
    (
        "Many samples",
        "Files, faults and other pipelines: [run.md](run.md).",
        ["BundleMapper", "read_bundle", "format.read_bundle:BundleFiles"],
    ),
    (
        "Exceptions",
        "Every message reads `<object>: expected <what>, got <value>`, then what is known or what to do.",
        [
            "RegplugError",
            "SpecError",
            "ShapeError",
            "NameLookupError",
            "PluginError",
            "ExportError",
            "BundleError",
            "errors:MissingFileError",
            "ConformanceError",
        ],
    ),
]


def page():
    """The whole page."""
    lines = [
        "# The Python API",
        "",
        "Generated from signatures and docstrings by `python tests/docs/api_page.py`. B samples have T tokens of width",
        "D, R of them registers. `import regplug` alone imports no torch: each name is loaded when it is first used.",
        "",
    ]
    sections = [*SECTIONS, *_more()]
    lines += [f"- [{title}](#{_anchor(title)}): {', '.join(map(_link, names))}" for title, _, names in sections]
    for title, intro, names in sections:
        lines += ["", f"## {title}", ""]
        if intro:
            lines += [intro, ""]
        if title == ENTRIES:
            lines += ["| field | is called as | gives |", "|---|---|---|"]
            lines += [f"| `{field}` | {call} | {gives} |" for field, call, gives in CALLS]
            lines.append("")
        for name in names:
            lines += _entry(name)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _more():
    """What the package offers and no section names yet."""
    listed = {name for _, _, names in SECTIONS for name in names}
    more = [name for name in regplug.__all__ if name not in listed]
    return [("More", "", more)] if more else []


def found(name):
    """The object, and how it is called in code."""
    module, _, attribute = name.rpartition(":")
    if not module:
        return getattr(regplug, name), f"regplug.{name}"
    return getattr(importlib.import_module(f"regplug.{module}"), attribute), f"regplug.{module}.{attribute}"


def _entry(name):
    what, full = found(name)
    lines = [f"### {full}", ""]
    if inspect.isclass(what):
        bases = [base.__name__ for base in what.__bases__ if base is not object]
        if issubclass(what, BaseException):
            return [f"### {full}", "", f"`{what.__name__}({', '.join(bases)})`: {_prose(_doc(what))}", ""]
        below = f"  # base: {', '.join(bases)}" if bases and bases != ["ABC"] else ""
        lines += ["```python", f"class {signature(what.__name__, what)}{below}", "```", "", *rendered(_doc(what))]
        for member, value in _members(what):
            lines += _member(what, member, value)
    elif callable(what) and not isinstance(what, type) and inspect.isroutine(what):
        lines += ["```python", signature(what.__name__, what), "```", "", *rendered(_doc(what))]
    else:  # an object, as pluggy's marker is
        lines += [f"A `{type(what).__name__}`: {_prose(' '.join(_doc(type(what)).split(chr(10) * 2)[0].split()))}", ""]
    return lines


def _members(what):
    """Public methods and properties of regplug's own, in the order of the source."""
    members = {}
    listed = {found(name)[0] for _, _, names in SECTIONS for name in names if name != "hookimpl"}
    for base in reversed(what.__mro__):
        if base.__module__.startswith("regplug") and (base is what or base not in listed):
            members |= vars(base)
    for name, value in members.items():
        value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        is_described = inspect.isfunction(value) or isinstance(value, property) or hasattr(value, "func")
        is_called = name == "__call__"
        if (is_called or not name.startswith("_")) and is_described and _doc(value) and name != "extra_repr":
            yield name, value


def _member(what, name, value):
    full = f"{what.__name__}.{name}"
    head = signature(full, value) if inspect.isfunction(value) else full
    return [f"**`{head}`**", "", *rendered(_doc(value))]


def signature(name, what):
    """How it is called, on one line where that is short, else one argument a line."""
    try:
        sign = inspect.signature(what)
    except (TypeError, ValueError):
        return name
    parameters = [one for one in sign.parameters.values() if one.name not in ("self", "cls")]
    words = []
    for number, one in enumerate(parameters):
        before = parameters[number - 1].kind if number else None
        if one.kind is one.KEYWORD_ONLY and before not in (one.KEYWORD_ONLY, one.VAR_POSITIONAL):
            words.append("*")
        text = str({one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")) + one.name
        if one.annotation is not one.empty:
            text += f": {_hint(one.annotation)}"
        if one.default is not one.empty:
            text += f" = {_default(one.default)}"
        words.append(text)
        if one.kind is one.POSITIONAL_ONLY and (
            number + 1 == len(parameters) or parameters[number + 1].kind != one.kind
        ):
            words.append("/")
    gives = (
        "" if inspect.isclass(what) or sign.return_annotation is sign.empty else f" -> {_hint(sign.return_annotation)}"
    )
    line = f"{name}({', '.join(words)}){gives}"
    if len(line) <= 100 or name.count(".") == 1:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){gives}"])


def _hint(hint):
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    text = text.replace("torch.nn.modules.module.", "nn.").replace("'", "")
    return re.sub(r"\b(?!nn\.)(?:[a-z_]+\.)+(?=\w)", "", text)


def _default(value):
    if value is inspect.Parameter.empty or "factory" in repr(value) or inspect.isfunction(value):
        return "..."
    return repr(value)


def rendered(doc):
    """A docstring as Markdown: paragraphs, lists of arguments and errors, the example as a block."""
    lines, head = [], ""
    for block in re.split(r"\n\s*\n", doc):
        first, _, rest = block.partition("\n")
        if match := HEADS.fullmatch(first.strip()):
            head = match[1]
            body = textwrap.dedent(rest)
            if head == "Example":
                lines += ["```python", *body.split("\n"), "```", ""]
            elif head in ("Returns", "Yields"):
                lines += [f"{head}: {_prose(body)}", ""]
            else:
                lines += [f"{head}:" if head == "Raises" else "", "", *_items(body), ""]
        elif head == "Example":
            lines[-2:] = ["", *textwrap.dedent(block).split("\n"), "```", ""]
        else:
            lines += [_prose(block), ""]
    return lines


def _items(body):
    items = re.split(r"\n(?=\S)", body)
    for item in items:
        name, colon, text = item.partition(":")
        yield f"- `{name.strip()}`: {_prose(' '.join(text.split()))}" if colon else f"- {_prose(item)}"


def _prose(text):
    return text.replace("``", "`").strip()


def _doc(what):
    if dataclasses.is_dataclass(what) and (what.__doc__ or "").startswith(f"{what.__name__}("):
        return ""  # made by dataclass
    doc = what.__doc__ if not hasattr(what, "func") else what.func.__doc__
    return inspect.cleandoc(doc) if doc else ""


def _link(name):
    full = found(name)[1]
    return f"[`{name.rpartition(':')[2]}`](#{_anchor(full)})"


def _anchor(title):
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page())

"""Options that several commands share, and what they choose together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from regplug.errors import SpecError, clip
from regplug.registry.streams import briefly_apart

if TYPE_CHECKING:
    from regplug.nn.backbone import BackboneSizes
    from regplug.registry.entries import BackboneEntry
    from regplug.registry.spec import ReadoutSpec


ANY = "any"  # what --num-registers says for None: None means that it is not given
FIELD_ENDS = re.compile(r",\s*(?=\w+=)")


class KeyValue(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """``key=value``; the value is a number or JSON if it parses as such, else text."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Split at the first ``=``."""
        if isinstance(value, tuple):
            return value
        from regplug.registry.option_text import parse_option

        try:
            return parse_option(str(value))
        except SpecError as error:
            self.fail(str(error), param, ctx)


class Count(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A number of registers, or ``any``."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """An integer, or ``ANY``."""
        try:
            return ANY if value == ANY else int(value)
        except ValueError:
            self.fail(f"expected an integer or {ANY}, got {clip(str(value), 60)!r}.", param, ctx)


class LayoutText(KeyValue):
    """One or several fields of a layout: ``start=1``, or the line or the JSON that ``regplug info`` prints."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of fields with their values."""
        if isinstance(value, tuple):
            return value
        text = value.strip().removeprefix("layout:").strip()
        if text.startswith("{"):
            import json

            try:
                fields = tuple(json.loads(text, object_pairs_hook=list))
            except (ValueError, RecursionError) as error:
                self.fail(f"expected a JSON object, got {clip(value, 60)!r}: {error}.", param, ctx)
        else:
            fields = tuple(super(LayoutText, self).convert(one, param, ctx) for one in FIELD_ENDS.split(text))
        twice = sorted(name for name, count in Counter(name for name, _ in fields).items() if count > 1)
        if twice:
            self.fail(f"{twice[0]}: expected once, got it twice in {clip(value, 60)!r}.", param, ctx)
        return fields


def layout_option(help_text: str) -> Callable[[Any], Any]:
    """``--layout`` with its help; the command gets all given fields with their values."""
    return click.option(
        "--layout",
        type=LayoutText(),
        multiple=True,
        callback=lambda ctx, param, given: tuple(field for one in given for field in one),
        help=f"{help_text}: start=1, num_tokens=201, ..., or the line that `regplug info` prints. Repeatable.",
    )


def complete_strategy(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes strategy names in the shell."""
    from regplug.registry.default import strategies

    with briefly_apart():
        return [name for name in strategies() if name.startswith(incomplete)]


def complete_backbone(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes backbone names in the shell."""
    from regplug.registry.default import backbones

    with briefly_apart():
        return [name for name in backbones() if name.startswith(incomplete)]


def complete_checkable(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes names of strategies and backbones in the shell."""
    return [*complete_strategy(ctx, param, incomplete), *complete_backbone(ctx, param, incomplete)]


def complete_export_backend(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes names of export backends in the shell."""
    from regplug.registry.default import default_registry

    with briefly_apart():
        entries = default_registry().export_backend_entries()
    return [entry.name for entry in entries if entry.name.startswith(incomplete)]


def complete_film_generator(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes names of FiLM generators in the shell."""
    from regplug.registry.default import default_registry

    with briefly_apart():
        names = default_registry().film_generators()
    return [name for name in names if name.startswith(incomplete)]


film_generator_option = click.option(
    "--film-generator",
    metavar="NAME",
    shell_complete=complete_film_generator,
    help="Registered name of the conditioner's FiLM generator; kernel-film if only --film is given.",
)
model_option = click.option(
    "-M",
    "--model-option",
    type=KeyValue(),
    multiple=True,
    help="An option of the backbone's model, such as img_size=224: JSON, or else text. Repeatable.",
)


def size_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--num-registers``, ``--hidden-dim`` or ``--backbone`` with ``-M``, and ``-O``."""
    for decorate in (
        model_option,
        click.option(
            "-O",
            "options",
            type=KeyValue(),
            multiple=True,
            help="An option of the strategy: JSON, or else text. Repeatable.",
        ),
        click.option(
            "--backbone", metavar="NAME[:MODEL]", shell_complete=complete_backbone, help="Take R and D from a backbone."
        ),
        click.option("--hidden-dim", type=int, metavar="D", help="Width of a register token."),
        click.option("--num-registers", type=Count(), metavar="R|any", help="Registers per sample; any: not fixed."),
    ):
        command = decorate(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
follow_links_option = click.option("--follow-links", is_flag=True, help="Accept files that are symbolic links.")
digest_option = click.option("--digest", metavar="SHA256", help="Accept only the bundle with this digest.")


def chosen_backbone(name: str, model_options: Any = ()) -> tuple[BackboneEntry, BackboneSizes]:
    """The backbone that ``--backbone NAME[:MODEL]`` names, and its sizes."""
    from regplug.nn.backbone import measure_backbone, named_backbone

    entry, model = named_backbone(name)
    return entry, measure_backbone(entry, model, **dict(model_options))


def chosen_spec(
    strategy: str | None,
    num_registers: int | str | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    model_option: Any = (),
) -> tuple[ReadoutSpec, BackboneSizes | None]:
    """The spec that the shared options choose, and the backbone's sizes if one is named.

    Raises:
        click.UsageError: Sizes are missing or given twice, or a model's options are given without a backbone.
    """
    from regplug.registry.default import resolve

    chosen, given, sizes = chosen_sizes(strategy, num_registers, hidden_dim, backbone, options, model_option)
    return resolve(chosen[0], num_registers=chosen[1], hidden_dim=chosen[2], **given), sizes


def chosen_sizes(
    strategy: str | None,
    num_registers: int | str | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    model_option: Any = (),
) -> tuple[tuple[str, int | None, int], dict[str, Any], BackboneSizes | None]:
    """As ``chosen_spec``, before the lookup: the strategy's name, R and D; its options; the backbone's sizes."""
    given = dict(options)
    sizes = None
    if model_option and backbone is None:
        raise click.UsageError("--model-option: expected --backbone NAME too, got none.")
    if backbone is not None:
        if num_registers is not None or hidden_dim is not None:
            raise click.UsageError("sizes: expected --backbone or --num-registers and --hidden-dim, got both.")
        entry, sizes = chosen_backbone(backbone, model_option)
        num_registers, hidden_dim = sizes.layout.num_registers, sizes.layout.hidden_dim
        strategy = strategy or entry.default
        if strategy is not None:
            from regplug.nn.backbone import with_defaults
            from regplug.nn.readouts.join_parts import JOIN
            from regplug.registry.default import default_registry

            readout = default_registry().readout_entry(strategy)
            if readout.full_name == JOIN:
                raise click.UsageError(
                    "join: expected --num-registers T and --hidden-dim D, as it reads all T tokens, got --backbone."
                )
            given = with_defaults(entry, readout, given)
    if strategy is None:
        raise click.UsageError("strategy: expected a name, got none.")
    if num_registers is None or hidden_dim is None:
        raise click.UsageError("sizes: expected --num-registers R and --hidden-dim D, or --backbone NAME, got less.")
    clashes = sorted({"strategy", "num_registers", "hidden_dim"} & set(given))
    if clashes:
        raise SpecError(f"option {clashes[0]!r}: expected an option of the strategy, got one of the sizes.")
    count = None if isinstance(num_registers, str) else num_registers  # ANY
    return (strategy, count, hidden_dim), given, sizes

"""``--part``: a part of a join on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from regplug.errors import SpecError
from regplug.registry.option_text import NUMBER, parse_option, read_value

if TYPE_CHECKING:
    from regplug.nn.join import Join


class PartText(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """``NAME=STRATEGY``, ``NAME=WIDTH`` or ``NAME=WIDTH,STRATEGY``, with the strategy's options after commas."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name, and what ``join`` takes for it."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        words = [word.strip() for word in text.split(",")]
        head = [word for word in words if "=" not in word]
        if not (name and equals and all(head)) or words[: len(head)] != head:
            self.fail(f"expected NAME=STRATEGY, NAME=WIDTH or NAME=WIDTH,STRATEGY, got {value!r}.", param, ctx)
        try:
            options = dict(parse_option(word) for word in words[len(head) :])
        except SpecError as error:
            self.fail(f"{name}: {error}", param, ctx)
        chosen = [read_value(word) if NUMBER.fullmatch(word) else word for word in head]
        return name, (*chosen, options) if options else tuple(chosen) if len(chosen) > 1 else chosen[0]


part_option = click.option(
    "--part",
    "parts",
    type=PartText(),
    multiple=True,
    metavar="NAME=...",
    help="A part of a join, in place of STRATEGY: a group with its strategy and options, "
    "registers=compress-concat,compressed_dim=96, or a vector with its width, state=7. Needs --backbone, and in a "
    "bundle --with-backbone. Repeatable.",
)


def chosen_join(parts: Any, strategy: str | None, backbone: str | None, options: Any) -> Join:
    """The join of the parts that the user gave.

    Raises:
        click.UsageError: There is no backbone, or a strategy or an option beside the parts, or a part twice.
        SpecError: A part is wrong.
    """
    from regplug.nn.join import join

    if backbone is None:
        raise click.UsageError("--part: expected --backbone NAME, whose groups the parts name, got none.")
    if strategy is not None or options:
        raise click.UsageError("--part: expected neither STRATEGY nor -O, as each part has its own, got both.")
    names = [name for name, _ in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.UsageError(f"--part: {twice[0]}: expected once, got it twice.")
    return join(**dict(parts))

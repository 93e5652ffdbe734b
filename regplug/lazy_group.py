"""A click group that imports a command's module only when that command is used, or help is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import click

from regplug.errors import RegplugError, told
from regplug.streams import apart


class LazyGroup(click.Group):
    """A group with commands that stand in other modules; ``list`` must not pay for what ``bench`` imports.

    Args:
        elsewhere: Each such command's name, and where it stands, as ``"module:attr"``.
    """

    def __init__(self, *args: Any, elsewhere: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._elsewhere = elsewhere

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name, sorted."""
        return sorted({*super().list_commands(ctx), *self._elsewhere})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now."""
        if cmd_name not in self.commands and cmd_name in self._elsewhere:
            module, _, attribute = self._elsewhere[cmd_name].partition(":")
            self.add_command(getattr(importlib.import_module(module), attribute), cmd_name)
        return super().get_command(ctx, cmd_name)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command; while it runs, stdout is for its own data alone."""
        if cmd.callback is not None:
            cmd.callback = _guarded(f"command {name or cmd.name!r}", cmd.callback)
        super().add_command(cmd, name)


def _guarded(owner: str, callback: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(callback)
    def run(*arguments: Any, **options: Any) -> Any:
        with apart():
            try:
                return callback(*arguments, **options)
            except SystemExit as error:  # ours end by click's own exit, so code of others ended it, maybe with success
                raise RegplugError(f"{owner}: expected to come to its end, got SystemExit: {told(error)}.") from error

    return run

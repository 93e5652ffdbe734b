"""A click group that imports a command's module only when the command is used or help is shown."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import click

from regplug.errors import RegplugError, one_line
from regplug.registry.streams import apart
from regplug.registry.tracebacks import VARIABLE, show_traceback


def _turn_on_tracebacks(context: click.Context, parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = "1"
        context.find_root().call_on_close(lambda: _restore(before))


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = before


TRACEBACK = click.Option(
    ["--traceback"],
    is_flag=True,
    expose_value=False,
    callback=_turn_on_tracebacks,
    help="Print the traceback of an error too.",
)


class LazyGroup(click.Group):
    """A group whose commands are in other modules: ``list`` must not pay for the imports of ``bench``.

    Args:
        commands_in: Each command's name, and its place as ``"module:attr"``.
    """

    def __init__(self, *args: Any, commands_in: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._commands_in = commands_in
        self.params.append(TRACEBACK)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with ``--traceback``, print the traceback of what it raises."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except Exception as error:
            show_traceback(error)
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *self._commands_in})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now."""
        if cmd_name not in self.commands and cmd_name in self._commands_in:
            module, _, attribute = self._commands_in[cmd_name].partition(":")
            self.add_command(getattr(importlib.import_module(module), attribute), cmd_name)
        return super().get_command(ctx, cmd_name)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command with the option ``--traceback``; while it runs, only its own data goes to stdout."""
        for one in (cmd, *(cmd.commands.values() if isinstance(cmd, click.Group) else ())):
            one.params.append(TRACEBACK)
        if cmd.callback is not None:
            cmd.callback = _guarded(f"command {name or cmd.name!r}", cmd.callback)
        super().add_command(cmd, name)


def _guarded(owner: str, callback: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(callback)
    def run(*arguments: Any, **options: Any) -> Any:
        with apart():
            try:
                return callback(*arguments, **options)
            except SystemExit as error:  # regplug exits through click, so a plugin called this, maybe with success
                raise RegplugError(f"{owner}: expected to finish, got SystemExit: {one_line(error)}.") from error

    return run

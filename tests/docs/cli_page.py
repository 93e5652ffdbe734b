"""Writes the commands of docs/cli.md from the commands themselves.

Run `python tests/docs/cli_page.py` after one changed.
"""

import inspect
import re
from pathlib import Path

import click

from regplug.commands.main import group

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
COMMANDS = re.compile(r"(?<=<!-- commands -->\n).*?(?=<!-- end -->)", re.DOTALL)


def commands(command=group, name="regplug"):
    """Every command under ``command``, sorted, each with its options."""
    sections = []
    context = click.Context(command, info_name=name)
    for child in command.list_commands(context):
        sections += _section(command.get_command(context, child), f"{name} {child}")
    return "\n".join(sections)


def _section(command, name):
    context = click.Context(command, info_name=name)
    lines = [
        f"## {name}",
        "",
        f"`{' '.join((name, *_usage(command)))}`",
        "",
        *inspect.cleandoc(command.help).split("\n"),
        "",
    ]
    options = [
        param
        for param in command.params
        if isinstance(param, click.Option) and not (param.hidden or param.name == "traceback")
    ]
    if options:
        lines += ["| option | |", "|---|---|", *map(_row, options), ""]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            lines += _section(command.get_command(context, child), f"{name} {child}")
    return lines


def _usage(command):
    """The rest of the usage line; written here, because click's own differs between versions."""
    yield "[OPTIONS]"
    for argument in (param for param in command.params if isinstance(param, click.Argument)):
        word = argument.metavar or argument.name.upper()
        yield word if argument.required else f"[{word}]"
    if isinstance(command, click.Group):
        yield "[COMMAND]" if command.invoke_without_command else "COMMAND"


def _row(option):
    name = ", ".join([*option.opts, *option.secondary_opts])
    if not option.is_flag:
        name += f" {_value(option)}"
    text = " ".join((option.help or "").split())
    if option.show_default and option.default not in (None, ()):
        default = option.default if isinstance(option.default, (list, tuple)) else [option.default]
        text = f"{text} Default: {', '.join(map(str, default))}.".lstrip()
    cells = [cell.replace("|", r"\|") for cell in (f"`{name}`", text)]  # a bar would end the cell
    return f"| {' | '.join(cells)} |"


def _value(option):
    if isinstance(option.type, click.Choice):
        return "|".join(option.type.choices)
    return option.metavar or option.type.name.upper().split()[0]


if __name__ == "__main__":
    PAGE.write_text(COMMANDS.sub(lambda _: commands(), PAGE.read_text()))

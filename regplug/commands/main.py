"""The ``regplug`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

from regplug.commands.lazy_group import LazyGroup
from regplug.commands.printing import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PLUGIN,
    EXIT_USAGE,
    complain,
    say,
)
from regplug.commands.torch_guard import guard_torch
from regplug.errors import (
    NameLookupError,
    PluginError,
    RegplugError,
    SpecError,
    is_out_of_memory,
    message_of,
    one_line,
)
from regplug.format.working_directory import GONE, is_gone
from regplug.registry.streams import claim, end, own_stderr
from regplug.registry.version import own_version

HERE = Path(__file__).resolve().parents[1]
COMMANDS_IN = {
    "audit": "regplug.commands.audit.command:audit_command",
    "bench": "regplug.commands.bench.command:bench_command",
    "cache": "regplug.commands.cache:cache_command",
    "check": "regplug.commands.check:check_command",
    "cond-dim": "regplug.commands.cond_dim:cond_dim_command",
    "doctor": "regplug.commands.doctor.command:doctor_command",
    "export": "regplug.commands.export:export_command",
    "info": "regplug.commands.info.command:info_command",
    "import": "regplug.commands.import_checkpoint.command:import_command",
    "list": "regplug.commands.list:list_command",
    "new": "regplug.commands.new.command:new_command",
    "rank": "regplug.commands.rank.command:rank_command",
    "run": "regplug.commands.run.command:run_command",
    "sign": "regplug.commands.sign:sign_command",
    "verify": "regplug.commands.verify:verify_command",
}


def _show_version(ctx: click.Context, param: click.Parameter, is_given: bool) -> None:
    if is_given:
        say(f"regplug, version {own_version()}")
        ctx.exit()


@click.group(cls=LazyGroup, commands_in=COMMANDS_IN, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def group() -> None:
    """Pool register tokens by name: pick a readout, get the matching FiLM width, ship both to Python and C++."""


def main() -> NoReturn:
    """The entry point: runs the command and ends the process, even if plugins left threads running."""
    try:
        claim()
        guard_torch()
        code = answer()
    except OSError as error:
        complain(f"error: stdout: {error.strerror}")
        code = EXIT_FAILED
    except BaseException:  # a bug in regplug; a plugin may have replaced sys.excepthook
        complain(traceback.format_exc())
        code = EXIT_FAILED
    end(code)


def answer() -> int:
    """Run the command in ``sys.argv``: each error that regplug raises is one message on stderr and an exit code."""
    warnings.showwarning = _show_warning
    if is_gone():
        complain(f"error: {GONE}")
        return EXIT_FAILED
    try:
        code = group(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as error:  # click exits after a completion
        return error.code if isinstance(error.code, int) else 0
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # new in click 8.2
            print(error.format_message(), file=own_stderr() or sys.stderr)
        else:
            _shown(error).show(file=own_stderr())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return EXIT_INTERRUPTED
    except (RegplugError, ImportError, OSError, MemoryError, RuntimeError) as error:
        return _failed(error)
    except FutureWarning as error:  # the user made warnings errors
        complain(f"error: {message_of(error)}")
        return EXIT_USAGE


def _failed(error: Exception) -> int:
    """Report an error in one line; gives the exit code.

    Raises:
        RuntimeError: It is a bug in regplug.
    """
    if is_out_of_memory(error):  # in a plugin's import, a constructor, a program
        complain("error: memory: expected more of it, got none; see `ulimit -v`, or use a larger machine.")
        return EXIT_FAILED
    if isinstance(error, RegplugError):
        complain(f"error: {message_of(error)}")  # a plugin may raise its own subclass
        return exit_code(error)
    if isinstance(error, ImportError):
        complain(
            f"error: {one_line(error)}; an installation is damaged, or a plugin changed sys.path: see regplug doctor."
        )
        return EXIT_FAILED
    if isinstance(error, OSError):  # a full disk, a folder without permission
        complain(f"error: {error if error.errno is not None else f'{error.filename}: {error.strerror}'}")
        return EXIT_FAILED
    raise error


def _shown(error: click.ClickException) -> click.ClickException:
    """The same error with a short, escaped message: it may quote an untrusted file name."""
    message = str(RegplugError(error.format_message()))
    return (
        click.UsageError(message, error.ctx) if isinstance(error, click.UsageError) else click.ClickException(message)
    )


_show_other_warning = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Print one line for a deprecated name, without the place in click's code."""
    if issubclass(category, FutureWarning):
        complain(f"warning: {message_of(message) if isinstance(message, Warning) else message}")
    else:
        _show_other_warning(message, category, *place, **more)


def exit_code(error: RegplugError) -> int:
    """1: a check failed or a file is bad; 2: a name or an option is wrong; 3: the named plugin failed to load."""
    if isinstance(error, PluginError):
        return EXIT_PLUGIN
    return EXIT_USAGE if isinstance(error, (NameLookupError, SpecError)) else EXIT_FAILED


@group.command("cmake-dir")
def cmake_dir_command() -> None:
    """Print the folder for CMAKE_PREFIX_PATH.

    There find_package(regplug) finds regplug.
    """
    say(_folder(HERE))


@group.command("include-dir")
def include_dir_command() -> None:
    """Print the folder of the C++ headers."""
    say(_folder(HERE / "include"))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise RegplugError(f"{path}: expected a folder, got a path in an archive; unpack regplug, or install it.")
    return path

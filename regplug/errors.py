"""Every exception that regplug raises on purpose.

A message reads ``<object>: expected <what>, got <value>``, then what is known or what to do.
"""

from __future__ import annotations


class RegplugError(Exception):
    """The root: ``except RegplugError`` catches all that regplug raises on purpose."""


class SpecError(RegplugError, ValueError):
    """A strategy cannot be built as asked: an option, a size, or a width that does not fit."""


class ShapeError(RegplugError, ValueError):
    """A tensor has another rank, size, dtype or device than the module or program takes."""


class NameLookupError(RegplugError, LookupError):
    """A name is unknown, or owned by several distributions."""


class PluginError(RegplugError):
    """An installed plugin is broken; the cause is chained."""


class ExportError(RegplugError):
    """A module cannot become a bundle, a program left the tolerance, or the disk refused; says what stands now."""


class BundleError(RegplugError):
    """A bundle, a weights file, a signature or its key is damaged, incomplete, foreign, or does not fit."""


class MissingFileError(BundleError):
    """A bundle's file is gone: damage, or the folder was replaced while it was read."""


class ConformanceError(RegplugError):
    """A readout does not do what every readout must."""


def told(error: BaseException) -> str:
    """What an exception says, on one line: torch and plugins write stack traces into their messages."""
    lines = [line.strip() for line in message_of(error).splitlines() if line.strip()] or [type(error).__name__]
    # what the TorchScript interpreter reports begins with a traceback and ends with the error
    return lines[-1 if lines[0].startswith("The following operation failed in the TorchScript interpreter") else 0]


def message_of(error: BaseException) -> str:
    """All that an exception says; a plugin's own class may fail at that, too."""
    try:
        return str(error)
    except Exception:  # what it raises is no news beside the exception itself
        return "<no message>"


def clip(text: str, longest: int) -> str:
    """One printable line, no longer than so many characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 8 * longest]).split())
    return line if len(line) <= longest else f"{line[:longest]}..."

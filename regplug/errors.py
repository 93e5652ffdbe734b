"""Every exception that regplug raises on purpose.

A message reads ``<object>: expected <what>, got <value>``, then what is known or what to do.
"""

from __future__ import annotations

import re

MAX_MESSAGE = 400  # characters
HEAD, TAIL = 300, 97  # what is kept of a longer one: the object, and what to do
# what a terminal obeys, what turns the direction of what follows, what nobody sees, and bytes that are no text
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


class RegplugError(Exception):
    """The root: ``except RegplugError`` catches all that regplug raises on purpose.

    Its message is one line of at most 400 characters, whatever it quotes, and holds nothing that a terminal obeys.
    """

    def __str__(self) -> str:
        """The message; not made as the error is, which ``torch.compile`` would have to trace."""
        return truncate(escape(super().__str__()))


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


def escape(text: str) -> str:
    """The text with what a terminal obeys, or what nobody sees, as ``\\n``, ``\\x1b`` or ``\\u202e``."""
    return UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a path that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    short = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
    return short.get(found[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def truncate(text: str) -> str:
    """At most 400 characters: of a longer text the beginning and the end."""
    return text if len(text) <= MAX_MESSAGE else f"{text[:HEAD]}...{text[-TAIL:]}"


def told(error: BaseException) -> str:
    """What an exception says, on one line: torch and plugins write stack traces into their messages."""
    lines = [line.strip() for line in message_of(error).splitlines() if line.strip()] or [class_name(error)]
    # what the TorchScript interpreter reports begins with a traceback and ends with the error
    return lines[-1 if lines[0].startswith("The following operation failed in the TorchScript interpreter") else 0]


def message_of(error: BaseException) -> str:
    """All that an exception says; a plugin's own class may fail at that, too."""
    try:
        return str.__str__(str(error))  # a subclass of str may raise wherever it is used
    except KeyboardInterrupt:
        raise
    except BaseException:  # even SystemExit, which would end the host silently and with success
        return "<no message>"


def class_name(value: object) -> str:
    """The name of an object's class, whatever a plugin's metaclass makes of ``__name__``."""
    return str.__str__(vars(type)["__name__"].__get__(type(value)))


def clip(text: str, longest: int) -> str:
    """One printable line, no longer than so many characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 8 * longest]).split())
    return line if len(line) <= longest else f"{line[:longest]}..."

"""Every exception that regplug raises on purpose.

A message reads ``<object>: expected <what>, got <value>``, then what is known or what to do.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

MAX_MESSAGE = 400  # characters
MAX_HEAD, MAX_TAIL = 300, 97  # of a longer one: the object, and what to do
MAX_REASON_HEAD, MAX_REASON_TAIL = 190, 77  # of a longer reason: the object before it and the place after it fit too
MAX_READ = 20_000  # characters of other people's messages
MAX_LISTED = 60  # known words in a message about an unknown one
MAX_PATH = 60  # characters of a path, whose end says the most
# what compilers write after the reason: code, stack traces, hints, links
REASON_ENDS = re.compile(
    r'File "|from user code|Caused by:|For more information|For extended logs|Exception raised from|C\+\+ CapturedTrace'
    r"|The following call raised|The error above occurred|Set TORCH|consider using data-dependent|The original call is"
    r"|Suggested fixes:|frame #0|Stack trace"
)
# and between its lines: headings, signatures that were tried, links
SAYS_NOTHING = re.compile(
    r"The following variants are available:|For further information visit |\w[\w:.]*\(.*\) -> .*:$|[:;.]$"
)
ASIDE = re.compile(r" For more information, run with TORCH_LOGS=\S+")
TRACEBACKS = ("Traceback (most recent", "The following operation failed in the TorchScript interpreter")
INNER_ERROR = re.compile(r"(?:: got|raised exception) (\w+\(.*\))$")  # as Dynamo quotes it
OUT_OF_MEMORY = re.compile(
    r"std::bad_alloc|Cannot allocate memory|failed to map segment"
)  # C++, the system, the linker
PLACE = re.compile(r'File "(/[^"\n]+)", line (\d+)')
# whose lines say nothing about what to change
MACHINERY = {
    "regplug", "regplug_onnx", "torch", "functorch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "numpy",
    "safetensors", "click", "pluggy",
}  # fmt: skip
INSTALLED = re.compile(r"/(?:site|dist)-packages/(\w+)")
# what a terminal obeys, what turns the direction of what follows, what nobody sees, and bytes that are no text
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")

STDLIB = sysconfig.get_path("stdlib") + "/"


class RegplugError(Exception):
    """The root: ``except RegplugError`` catches all that regplug raises on purpose.

    Its message is one line of at most 400 characters, whatever it quotes, and holds nothing that a terminal obeys.
    """

    def __str__(self) -> str:
        """The message; not made as the error is, which ``torch.compile`` would have to trace."""
        return _cut_middle(escape(super().__str__()), MAX_HEAD, MAX_TAIL)


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


@dataclass(frozen=True)
class Owner:
    """What a message is about; ``str`` gives the label that the message begins with.

    Args:
        kind: What it is: ``"bundle"``, ``"weights"``, ``"checkpoint"``, ``"signature"`` or ``"key"``.
        path: Where it is, as the user wrote it.
        file: The file inside it that is meant; None for all of it.

    Example:
        >>> str(Owner("bundle", "m/r", "weights.safetensors"))
        'bundle m/r: weights.safetensors'
    """

    kind: str
    path: str | os.PathLike[str]
    file: str | None = None

    def __str__(self) -> str:
        """The label."""
        label = f"{self.kind} {os.fspath(self.path)}"
        return label if self.file is None else f"{label}: {self.file}"


def escape(text: str) -> str:
    """The text with what a terminal obeys, or what nobody sees, as ``\\n``, ``\\x1b`` or ``\\u202e``."""
    return UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a path that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    short = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
    return short.get(found[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def truncate(text: str, longest: int) -> str:
    """At most so many characters of a text, and ``...`` where more follow."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def clip(text: str, longest: int) -> str:
    """A text as one printable line, truncated."""
    return truncate(
        " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 8 * longest]).split()), longest
    )


def one_line(error: BaseException) -> str:
    """The reason of an exception on one line, and the place in the user's file if one is known.

    Compilers write code, stack traces, hints and links around the reason, and the place somewhere in between; other
    exceptions have the place in their traceback. Of what regplug itself raised: its message.

    Example:
        >>> one_line(ValueError("Error in call to target 'acme.Pool':\\nValueError('width must be even')"))
        "Error in call to target 'acme.Pool': ValueError('width must be even')"
    """
    message = message_of(error)[:MAX_READ]
    reason = _reason_in(message) or class_name(error)
    reason = _cut_middle(reason, MAX_REASON_HEAD, MAX_REASON_TAIL)
    place = None if isinstance(error, RegplugError) else _place_of(error, message)
    return f"{reason} ({place})" if place else reason


def _cut_middle(text: str, head: int, tail: int) -> str:
    return text if len(text) <= head + len("...") + tail else f"{text[:head]}...{text[-tail:]}"


def _reason_in(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    if lines[0].startswith(TRACEBACKS):
        return lines[-1].removeprefix("builtins.")
    if any(line.startswith("Explanation:") for line in lines):
        return _reason_of_dynamo(lines)
    kept = []
    for line in lines:
        if REASON_ENDS.match(line):
            break
        if not SAYS_NOTHING.match(line):
            kept.append(line)
    return ASIDE.sub("", " ".join(" ".join(kept or lines[:1]).split())).rstrip(" :")


def _reason_of_dynamo(lines: list[str]) -> str:
    """Of ``torch.compile``'s message: its title, and the error inside or the explanation."""
    said = {word: rest.strip() for word, _, rest in (line.partition(":") for line in lines) if rest}
    explanation, context = said.get("Explanation", ""), said.get("Developer debug context", "")
    for text in (explanation, context):
        if found := INNER_ERROR.search(text):
            return f"{lines[0]}: {found[1]}"
    return f"{lines[0]}: {explanation or context}"


def place_in(text: str, innermost_last: bool) -> str | None:
    """``file.py:12``: the innermost line of a user's file that a compiler's message or a trace names; None for none."""
    places = [(found[1], found[2]) for found in PLACE.finditer(text) if not _is_machinery(found[1])]
    return _format_place(*places[-1 if innermost_last else 0]) if places else None


def _place_of(error: BaseException, message: str) -> str | None:
    """Where an exception comes from: as its message says, else by its traceback."""
    # TorchScript's compiler begins with the innermost line, a traceback ends with it
    is_traceback = message.lstrip().startswith(TRACEBACKS) or "from user code" in message
    if place := place_in(message, is_traceback):
        return place
    frames = list(_frames(error.__traceback__))
    # of the user's own files, else of the package that was called first
    frames = [frame for frame in frames if not INSTALLED.search(frame[1])] or frames
    places = [(path, line) for package, path, line in frames if package == frames[0][0]]
    return _format_place(*places[-1]) if places else None


def _format_place(path: str, line: str) -> str:
    short = path if len(path) <= MAX_PATH else f"...{path[-MAX_PATH:]}"
    return f"{short}:{line}"


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, str, str]]:
    """Package, file and line of each frame that is no machinery's, the outermost first."""
    while trace is not None:
        code = trace.tb_frame.f_code
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if code.co_filename.startswith("/") and not _is_machinery(code.co_filename, package):
            yield package, code.co_filename, str(trace.tb_lineno)
        trace = trace.tb_next


def _is_machinery(path: str, package: str | None = None) -> bool:
    """Whether a file is regplug's, torch's, the standard library's or the like."""
    if installed := INSTALLED.search(path):
        package = installed[1]
    if package is None:
        return path.startswith(STDLIB)
    return package in MACHINERY or package in sys.stdlib_module_names - {"__main__"}


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, is a lack of memory or of address space.

    Not that of a single tensor that no machine could hold, of which torch says the size.
    """
    while error is not None:
        bare = isinstance(error, MemoryError) and not error.args
        if bare or getattr(error, "errno", None) == errno.ENOMEM or OUT_OF_MEMORY.search(message_of(error)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def closest(word: str, known: Sequence[str]) -> str:
    """``; known: a, b (closest: a)``, the end of a message about an unknown word; of many known ones only the closest.

    Example:
        >>> closest("meen", ["pool", "mean"])
        '; known: mean, pool (closest: mean)'
    """
    from difflib import get_close_matches

    if not known:
        return "; known: none"
    if len(known) > MAX_LISTED:
        near = get_close_matches(word, known, n=5) or sorted(name for name in known if word in name)[:5]
        return f"; closest of {len(known)}: {', '.join(near) or 'none'}"
    near = get_close_matches(word, known, n=1)
    return f"; known: {', '.join(sorted(known))}" + (f" (closest: {near[0]})" if near else "")


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

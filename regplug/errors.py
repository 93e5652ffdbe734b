"""Every exception that regplug raises on purpose.

A message reads ``<object>: expected <what>, got <value>``, then what is known or what to do.
"""

from __future__ import annotations

import errno
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from types import TracebackType

MAX_MESSAGE = 400  # characters
MAX_HEAD, MAX_TAIL = 300, 97  # what is kept of a longer one: the object, and what to do
MAX_REASON_HEAD, MAX_REASON_TAIL = 190, 77  # the same of a reason: the object and the place must fit too
MAX_READ = 20_000  # characters of a message of another library
MAX_LISTED = 60  # known words in a message about an unknown one
MAX_PATH = 60  # characters of a path, from its end
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
# packages whose lines in a traceback do not help a user
MACHINERY = {
    "regplug", "regplug_onnx", "torch", "functorch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "numpy",
    "safetensors", "click", "pluggy",
}  # fmt: skip
INSTALLED = re.compile(r"/(?:site|dist)-packages/(\w+)")
# control characters, changes of direction, invisible characters, and bytes that are not text
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")

STDLIB = sysconfig.get_path("stdlib") + "/"


class RegplugError(Exception):
    """The base class: ``except RegplugError`` catches all that regplug raises on purpose.

    Its message is always one line of at most 400 characters, without control characters.
    """

    def __str__(self) -> str:
        """The message; it is cleaned here and not in ``__init__``, which ``torch.compile`` would have to trace."""
        return _cut_middle(escape(super().__str__()), MAX_HEAD, MAX_TAIL)


class SpecError(RegplugError, ValueError):
    """A strategy cannot be built: an option, a size or a width does not fit."""


class ShapeError(RegplugError, ValueError):
    """A tensor does not have the rank, size, dtype or device that the module or program takes."""


class NameLookupError(RegplugError, LookupError):
    """A name is unknown, or several distributions offer it."""


class PluginError(RegplugError):
    """An installed plugin is broken; the cause is chained."""


class ExportError(RegplugError):
    """A module cannot become a bundle, a program is outside the tolerance, or a file cannot be written."""


class BundleError(RegplugError):
    """A bundle, a weights file, a signature or its key is damaged, incomplete, not one of these, or does not fit."""


class MissingFileError(BundleError):
    """A bundle's file is missing: damage, or the folder was replaced while it was read."""


class ConformanceError(RegplugError):
    """A readout does not do what every readout must do."""


def escape(text: str) -> str:
    """The text with control and invisible characters as ``\\n``, ``\\x1b`` or ``\\u202e``."""
    return UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a path that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    short = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
    return short.get(found[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def truncate(text: str, longest: int) -> str:
    """At most so many characters of a text, and ``...`` where more follow."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def clip(text: str, longest: int) -> str:
    """A text as one printable line, truncated."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[: 8 * longest])
    return truncate(" ".join(printable.split()), longest)


def one_line(error: BaseException) -> str:
    """The reason of an exception on one line, with the place in the user's file if it is known.

    Compilers write code, stack traces, hints and links around the reason, and the place in between; other exceptions
    have the place in their traceback. For an error of regplug it is the message.

    Example:
        >>> one_line(ValueError("Error in call to target 'acme.Pool':\\nValueError('width must be even')"))
        "Error in call to target 'acme.Pool': ValueError('width must be even')"
    """
    message = message_of(error)[:MAX_READ]
    reason = _reason_in(message) or class_name(error)
    reason = _cut_middle(reason, MAX_REASON_HEAD, MAX_REASON_TAIL)
    place = None if isinstance(error, RegplugError) else _place_of(error, message)
    return f"{reason} ({place})" if place else reason


def with_class(error: BaseException) -> str:
    """The reason of an exception after its class, as a reason alone may be a bare key; an error of regplug's as it is.

    Example:
        >>> with_class(KeyError("pool"))
        "KeyError: 'pool'"
    """
    if isinstance(error, RegplugError) or not message_of(error).strip():  # without a message the reason is the class
        return one_line(error)
    return f"{class_name(error)}: {one_line(error)}"


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
    """The title of ``torch.compile``'s message, and the error inside it or the explanation."""
    said = {word: rest.strip() for word, _, rest in (line.partition(":") for line in lines) if rest}
    explanation, context = said.get("Explanation", ""), said.get("Developer debug context", "")
    for text in (explanation, context):
        if found := INNER_ERROR.search(text):
            return f"{lines[0]}: {found[1]}"
    return f"{lines[0]}: {explanation or context}"


def place_in(text: str, innermost_last: bool) -> str | None:
    """``file.py:12``: the innermost line of a user's file in a compiler's message or a trace; None if there is none."""
    places = [(found[1], found[2]) for found in PLACE.finditer(text) if not _is_machinery(found[1])]
    return _format_place(*places[-1 if innermost_last else 0]) if places else None


def _place_of(error: BaseException, message: str) -> str | None:
    """Where an exception comes from: by its message, else by its traceback."""
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
    """Package, file and line of each frame in a user's code, the outermost first."""
    while trace is not None:
        code = trace.tb_frame.f_code
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if code.co_filename.startswith("/") and not _is_machinery(code.co_filename, package):
            yield package, code.co_filename, str(trace.tb_lineno)
        trace = trace.tb_next


def _is_machinery(path: str, package: str | None = None) -> bool:
    """Whether a file belongs to regplug, torch, the standard library or the like."""
    if installed := INSTALLED.search(path):
        package = installed[1]
    if package is None:
        return path.startswith(STDLIB)
    return package in MACHINERY or package in sys.stdlib_module_names - {"__main__"}


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or its cause, is a lack of memory or of address space.

    Not a single tensor that no machine could hold: torch says its size.
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


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are.

    Example:
        >>> shorten(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def message_of(error: BaseException) -> str:
    """The message of an exception; that of a plugin may raise when it is formatted."""
    try:
        return str.__str__(str(error))  # a subclass of str may raise in any method
    except KeyboardInterrupt:
        raise
    except BaseException:  # even SystemExit, which would end the host silently, with success
        return "<no message>"


def class_name(value: object) -> str:
    """The name of an object's class, also if a plugin's metaclass redefines ``__name__``."""
    return str.__str__(vars(type)["__name__"].__get__(type(value)))

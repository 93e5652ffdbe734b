"""The environment of a user, without what this run of the tests has set for itself."""

import os
import signal


def clean_environment() -> dict[str, str]:
    """The variables of this process without those of Python, regplug and coverage."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "REGPLUG_", "COV_"))}


def take_interrupts() -> None:
    """A ``preexec_fn``: a job in the background of a shell ignores SIGINT, and so would all its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

"""The environment of a user, without what this run of the tests has set for itself."""

import os


def clean_environment() -> dict[str, str]:
    """The variables of this process without those of Python, regplug and coverage."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "REGPLUG_", "COV_"))}

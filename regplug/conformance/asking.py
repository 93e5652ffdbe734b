"""What pytest's ``--readout`` options ask for."""

from __future__ import annotations

from typing import Any

import click
import pytest

from regplug.choices import KeyValue
from regplug.conformance.named import HIDDEN_DIM, NUM_REGISTERS, readout_named
from regplug.conformance.run import subject_of
from regplug.conformance.subject import Subject
from regplug.errors import RegplugError
from regplug.spec import specify


def subjects_asked_for(config: pytest.Config) -> list[Subject]:
    """A subject for each ``--readout``.

    Raises:
        pytest.UsageError: A name is unknown, an option does not fit, or a readout cannot be built.
    """
    try:
        options = dict(KeyValue().convert(text, None, None) for text in config.getoption("readout_option"))
        subjects = [_subject(config, name, options) for name in dict.fromkeys(config.getoption("readout"))]
        return list({subject.name: subject for subject in subjects}.values())  # one readout under two spellings
    except click.UsageError as error:
        raise pytest.UsageError(f"--readout-option: {error.message}") from error
    except RegplugError as error:
        raise pytest.UsageError(str(error)) from error


def _subject(config: pytest.Config, name: str, options: dict[str, Any]) -> Subject:
    registry, strategy = readout_named(name)
    num_registers, hidden_dim = (config.getoption(f"readout_{word}") for word in ("num_registers", "hidden_dim"))
    spec = specify(
        registry.readout_entry(strategy),
        NUM_REGISTERS if num_registers is None else num_registers,
        HIDDEN_DIM if hidden_dim is None else hidden_dim,
        options,
    )
    backends, compiler = config.getoption("readout_backend"), config.getoption("readout_compiler")
    return subject_of(spec, backends=backends, compiler=compiler, registry=registry)

"""The readouts and backbones that pytest's ``--readout`` and ``--readout-backbone`` name."""

from __future__ import annotations

from typing import Any

import pytest

from regplug.conformance.backbone_subject import BackboneSubject, backbone_subject_of
from regplug.conformance.lookup import HIDDEN_DIM, NUM_REGISTERS, readout_named
from regplug.conformance.run import subject_of
from regplug.conformance.subject import Subject
from regplug.errors import RegplugError, SpecError
from regplug.registry.option_text import parse_option, parse_sizes
from regplug.registry.spec import specify


def named_subjects(config: pytest.Config) -> list[Subject | BackboneSubject]:
    """A subject for each ``--readout``, and for each ``--readout-backbone``.

    Raises:
        pytest.UsageError: A name is unknown, an option does not fit, or a readout or model cannot be built.
    """
    options, model_options = (_options(config, word) for word in ("readout_option", "readout_model_option"))
    text = config.getoption("readout_input")
    try:
        shape = None if text is None else parse_sizes(text)
    except SpecError as error:
        raise pytest.UsageError(f"--readout-input: {error}") from error
    try:
        names, backbones = (dict.fromkeys(config.getoption(word) or ()) for word in ("readout", "readout_backbone"))
        subjects: list[Subject | BackboneSubject] = [_subject(config, name, options) for name in names]
        subjects += [backbone_subject_of(name, options=model_options, input_shape=shape) for name in backbones]
        return list({subject.name: subject for subject in subjects}.values())  # one may be named in two ways
    except RegplugError as error:
        raise pytest.UsageError(str(error)) from error


def _options(config: pytest.Config, word: str) -> dict[str, Any]:
    try:
        return dict(parse_option(text) for text in config.getoption(word))
    except SpecError as error:
        raise pytest.UsageError(f"--{word.replace('_', '-')}: {error}") from error


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

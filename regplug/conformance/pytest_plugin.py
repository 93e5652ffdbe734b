"""Pytest's options for ``pytest --pyargs regplug.conformance --readout NAME``.

Every run of pytest imports this module if regplug is installed, so it imports only pytest at first, and the rest when a
readout is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from regplug.conformance.backbone_subject import BackboneSubject
    from regplug.conformance.subject import Subject

SUBJECTS: pytest.StashKey[list[Subject | BackboneSubject]] = pytest.StashKey()
MODULE = "regplug.conformance.test_conformance"
TEST = "::test_asked_readout["  # an item that --pyargs found has no file in its id


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("regplug", "regplug: the checks of register readouts (--pyargs regplug.conformance)")
    add = group.addoption
    add("--readout", action="append", metavar="NAME", help="A strategy or module:Class to check. Repeatable.")
    add(
        "--readout-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="An option of each --readout; JSON, else text. Repeatable.",
    )
    add("--readout-num-registers", type=int, metavar="R", help="Registers per sample.")
    add("--readout-hidden-dim", type=int, metavar="D", help="Width of a register token.")
    add(
        "--readout-backend",
        action="append",
        metavar="NAME",
        help="An export backend to try; by default regplug's own and those of the readout's distribution. Repeatable.",
    )
    add("--readout-compiler", default="inductor", metavar="NAME", help="Of torch.compile: inductor, or eager.")
    add("--readout-backbone", action="append", metavar="NAME[:MODEL]", help="A backbone to check. Repeatable.")
    add(
        "--readout-model-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="An option of each --readout-backbone's model; JSON, else text. Repeatable.",
    )
    add("--readout-input", metavar="C,H,W", help="The backbones' input without the batch; what each states by default.")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Looks up the readouts and backbones: a wrong name is a usage error, not a failing test."""
    if _names_subjects(session.config):
        from regplug.conformance.pytest_readouts import named_subjects

        session.config.stash[SUBJECTS] = named_subjects(session.config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Looks at the collected tests, before any is deselected."""
    if not hasattr(config, "workerinput"):  # a usage error would crash a worker of pytest-xdist; see below
        _refuse_to_check_nothing(config, any(_module_of(item) == MODULE for item in items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Looks at the tests that a worker of pytest-xdist collected."""
    _refuse_to_check_nothing(node.config, any(TEST in one for one in ids))


def _names_subjects(config: pytest.Config) -> bool:
    return bool(config.getoption("readout") or config.getoption("readout_backbone"))


def _module_of(item: pytest.Item) -> str | None:
    return getattr(getattr(item, "module", None), "__name__", None)


def _refuse_to_check_nothing(config: pytest.Config, collected: bool) -> None:
    """Refuse the tests without a readout, and a readout without the tests: both would silently check nothing."""
    if collected and not _names_subjects(config):
        raise pytest.UsageError(
            "regplug.conformance: expected --readout NAME, --readout module:Class or --readout-backbone NAME, got none."
        )
    if _names_subjects(config) and not collected:
        word = "--readout" if config.getoption("readout") else "--readout-backbone"
        raise pytest.UsageError(
            f"{word}: expected `--pyargs regplug.conformance` with it, got other tests only; where a configuration "
            "file sets python_files or python_functions, add `-o python_files=test_*.py -o python_functions=test_*`."
        )

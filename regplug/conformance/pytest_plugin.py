"""Pytest's options for ``pytest --pyargs regplug.conformance --readout NAME``.

Every run of pytest imports this module, in every environment that has regplug: it imports nothing but pytest, and all
else only when a readout is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from regplug.conformance.backbone_subject import BackboneSubject
    from regplug.conformance.subject import Subject

ASKED: pytest.StashKey[list[Subject | BackboneSubject]] = pytest.StashKey()
MODULE = "regplug.conformance.test_conformance"
TEST = "::test_asked_readout["  # an item found by its module's name has no file in its id


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
    """Finds what is asked for: a wrong name is a wrong use of pytest, not a failing test."""
    if _asks(session.config):
        from regplug.conformance.pytest_readouts import subjects_asked_for

        session.config.stash[ASKED] = subjects_asked_for(session.config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Looks at what was collected, before anything is deselected."""
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist can but crash; its ids are looked at below
        _refuse_to_check_nothing(config, any(_module_of(item) == MODULE for item in items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Looks at what a worker of pytest-xdist collected."""
    _refuse_to_check_nothing(node.config, any(TEST in one for one in ids))


def _asks(config: pytest.Config) -> bool:
    return bool(config.getoption("readout") or config.getoption("readout_backbone"))


def _module_of(item: pytest.Item) -> str | None:
    return getattr(getattr(item, "module", None), "__name__", None)


def _refuse_to_check_nothing(config: pytest.Config, collected: bool) -> None:
    """Refuse the tests without a readout, and readouts without the tests: both would pass without a word."""
    if collected and not _asks(config):
        raise pytest.UsageError(
            "regplug.conformance: expected --readout NAME, --readout module:Class or --readout-backbone NAME, got none."
        )
    if _asks(config) and not collected:
        word = "--readout" if config.getoption("readout") else "--readout-backbone"
        raise pytest.UsageError(
            f"{word}: expected `--pyargs regplug.conformance` with it, got other tests only; where a configuration "
            "file sets python_files or python_functions, add `-o python_files=test_*.py -o python_functions=test_*`."
        )

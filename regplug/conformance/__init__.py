"""The checks that every readout and every backbone must pass: in Python, under pytest, and as ``regplug check``.

Importing this package imports no torch: each name below is loaded at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regplug.conformance.backbone_run import all_backbone_checks as all_backbone_checks
    from regplug.conformance.backbone_run import check_backbone as check_backbone
    from regplug.conformance.backbone_subject import BackboneSubject as BackboneSubject
    from regplug.conformance.backbone_subject import backbone_subject_of as backbone_subject_of
    from regplug.conformance.check import Check as Check
    from regplug.conformance.check import CheckResult as CheckResult
    from regplug.conformance.parametrize import parametrize_with_backbone_checks as parametrize_with_backbone_checks
    from regplug.conformance.parametrize import parametrize_with_checks as parametrize_with_checks
    from regplug.conformance.run import all_checks as all_checks
    from regplug.conformance.run import check_readout as check_readout
    from regplug.conformance.run import subject_of as subject_of
    from regplug.conformance.subject import Subject as Subject

_MODULES = {
    "BackboneSubject": "backbone_subject",
    "Check": "check",
    "CheckResult": "check",
    "Subject": "subject",
    "all_backbone_checks": "backbone_run",
    "all_checks": "run",
    "backbone_subject_of": "backbone_subject",
    "check_backbone": "backbone_run",
    "check_readout": "run",
    "parametrize_with_backbone_checks": "parametrize",
    "parametrize_with_checks": "parametrize",
    "subject_of": "run",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'regplug.conformance' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"regplug.conformance.{_MODULES[name]}"), name)
    globals()[name] = value
    return value

"""The list of the public names of ``regplug.conformance``; type checkers read it, and so does the package."""

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

__all__: list[str]

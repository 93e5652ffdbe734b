"""What follows from the files of a bundle that was read: weights, golden cases, and how far a run may be from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from torch import Tensor

from regplug.bundle.golden import CaseError, GoldenSet, Run, compare, golden_set
from regplug.format.manifest import GOLDEN, WEIGHTS, Manifest
from regplug.format.read_bundle import BundleFiles
from regplug.format.weights import load_tensors
from regplug.torch_private import cpu_capability


class BundleContents:
    """The files of a bundle, and what is computed from them, each once and only when it is asked for.

    Args:
        files: What ``read_bundle`` returned.
    """

    def __init__(self, files: BundleFiles) -> None:
        self.files = files

    @property
    def path(self) -> str:
        """The bundle's folder, as the caller gave it."""
        return self.files.path

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.files.manifest

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The module's state dict.

        Raises:
            BundleError: The file breaks a rule of ``docs/bundle.md``.
        """
        return self._tensors(WEIGHTS)

    @cached_property
    def golden(self) -> GoldenSet:
        """The golden cases, checked against the manifest.

        Raises:
            BundleError: The file breaks a rule of ``docs/bundle.md``, or contradicts the manifest.
        """
        return golden_set(self.path, self.manifest, self._tensors(GOLDEN))

    @cached_property
    def factor(self) -> float:
        """What tolerances are multiplied with: 2 if ATen uses other instructions than where it was exported, else 1."""
        return 1.0 if cpu_capability() == self.manifest.provenance.cpu else 2.0

    def run_cases(self, run: Run) -> Iterator[CaseError]:
        """Run every golden case, in the manifest's order."""
        return (
            compare(run, self.golden, case, self.manifest.outputs, self.factor) for case in self.golden.golden.cases
        )

    def run_case(self, run: Run, name: str) -> CaseError:
        """Run one golden case."""
        case = next(case for case in self.golden.golden.cases if case.case == name)
        return compare(run, self.golden, case, self.manifest.outputs, self.factor)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return load_tensors(f"bundle {self.path}: {name}", self.files.tensors[name])

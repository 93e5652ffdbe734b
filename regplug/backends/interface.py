"""What an export backend implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from regplug.errors import ShapeError
from regplug.format.manifest import InputSpec, TensorSpec
from regplug.format.safetensors_header import StoredTensor
from regplug.registry.fork_locks import lock_over_forks

# torch's loaders and the dynamic linker share state without locks: a backend holds this while it opens a program
LOADING = lock_over_forks()
# the flat outputs for one input: [c], or [gamma_0, beta_0, gamma_1, ...]
Run = Callable[[Tensor], Sequence[Tensor]]


def flatten(output: object) -> list[Tensor]:
    """The tensors of a readout's or a conditioner's output: ``[c]``, or ``[gamma_0, beta_0, gamma_1, ...]``."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in flatten(item)]
    raise ShapeError(f"output: expected a tensor or pairs of tensors, got {type(output).__name__}.")


@dataclass(frozen=True)
class Source:
    """What a program is made of.

    Args:
        module: In eval mode, on the CPU; a copy that may be changed.
        example: A contiguous input of two samples.
        input: What the module takes: what varies ("B", "T") and what does not.
        outputs: What it gives.
        weights: Where each tensor of the module's state dict stands in the bundle's ``weights.safetensors``.
        description: What the module is, as the weights file says it: strategy, sizes, options, layout, FiLM.
        progress: Called with a word on each step that takes a while.
    """

    module: nn.Module
    example: Tensor
    input: InputSpec
    outputs: Sequence[TensorSpec]
    weights: Mapping[str, StoredTensor]
    description: Mapping[str, Any]
    progress: Callable[[str], None] = lambda step: None


@dataclass(frozen=True)
class Program:
    """One exported artifact.

    Args:
        file: Its name in the bundle, ``program.BACKEND...``.
        data: Its bytes.
        properties: What the backend wants to find again when it opens the program. ``cpu_flags``, if there, lists
            what the CPU must have, in the words of ``/proc/cpuinfo``; loaders check it for every backend.
    """

    file: str
    data: bytes
    properties: Mapping[str, str] = field(default_factory=dict)


class ExportBackend(ABC):
    """Makes programs out of modules, and opens them.

    The constructor's keywords are the backend's settings: ``export(..., settings={NAME: {...}})``. regplug holds every
    program to the parity gate, writes it, checks its digest before it is opened, and checks every input before it is
    run; a backend does none of that.
    """

    @abstractmethod
    def export(self, source: Source) -> list[Program]:
        """Make the programs.

        Raises:
            ExportError: The module cannot be made a program; says why.
        """

    @abstractmethod
    def open(self, owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run:
        """Make a program runnable with these weights. The bytes are checked; their maker is not.

        What it gives may share memory with its input, never with the weights. Whatever it raises, and its run too,
        reaches the user as a BundleError.

        Args:
            owner: The program's weights file, for messages.
            program: What ``export`` gave, read back.
            weights: The module's state dict.

        Raises:
            BundleError: The program does not open, or wants other weights.
        """

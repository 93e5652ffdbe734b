"""What an export backend implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from regplug.errors import ShapeError
from regplug.format.manifest import InputSpec, MoreInput, TensorSpec
from regplug.format.safetensors_header import StoredTensor
from regplug.registry.fork_locks import lock_over_forks
from regplug.registry.readout_inputs import MASK

T = TypeVar("T")
# held while a program is opened by torch's loaders or the dynamic linker: both share state without locks
LOADING = lock_over_forks()
# the flat outputs, [c] or [gamma_0, beta_0, gamma_1, ...], for the inputs in the manifest's order
Run = Callable[..., Sequence[Tensor]]


def flatten(output: object) -> list[Tensor]:
    """The tensors of a readout's or a conditioner's output: ``[c]``, or ``[gamma_0, beta_0, gamma_1, ...]``.

    Raises:
        ShapeError: The output is neither a tensor nor nested lists or tuples of tensors.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in flatten(item)]
    raise ShapeError(f"output: expected a tensor or pairs of tensors, got {type(output).__name__}.")


def arguments_of(names: Sequence[str], inputs: Sequence[T]) -> tuple[tuple[T], dict[str, Any]]:
    """How a module is called with its inputs: the first by position, ``mask=``, the others in ``vectors={name: ...}``.

    Args:
        names: The names of the inputs, in the manifest's order.
        inputs: The inputs, in the same order.
    """
    more = dict(zip(names[1:], inputs[1:], strict=True))
    keywords: dict[str, Any] = {MASK: more.pop(MASK)} if MASK in more else {}
    return (inputs[0],), keywords | ({"vectors": more} if more else {})


def call_flat(module: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The flat outputs of a module for its inputs; both arguments as for ``arguments_of``."""
    arguments, keywords = arguments_of(names, inputs)
    return flatten(module(*arguments, **keywords))


@dataclass(frozen=True)
class Source:
    """What a program is made from.

    Args:
        module: In eval mode, on the CPU; a copy that the backend may change.
        example: A contiguous input of two samples.
        input: What the module takes, with the sizes that vary as "B" and "T".
        outputs: What the module gives.
        weights: Where each tensor of the module's state dict is in the bundle's ``weights.safetensors``.
        description: What the module is, as the weights file records it: strategy, sizes, options, layout, FiLM.
        progress: Called with the name of each step that takes a while.
        more_inputs: What the module takes besides: a mask, and vectors.
        more_examples: An example of each of them.
    """

    module: nn.Module
    example: Tensor
    input: InputSpec
    outputs: Sequence[TensorSpec]
    weights: Mapping[str, StoredTensor]
    description: Mapping[str, Any]
    progress: Callable[[str], None] = lambda step: None
    more_inputs: Sequence[MoreInput] = ()
    more_examples: Sequence[Tensor] = ()

    @property
    def input_names(self) -> list[str]:
        """The names of all inputs, in their order."""
        return [self.input.name, *(one.name for one in self.more_inputs)]


@dataclass(frozen=True)
class Program:
    """One exported file.

    Args:
        file: Its name in the bundle, ``program.BACKEND...``.
        data: Its bytes.
        properties: What the backend needs again when it opens the program. ``cpu_flags``, if present, lists what the
            CPU must have, in the words of ``/proc/cpuinfo``; loaders check it for every backend.
        bundle: The bundle that it was read from, for messages: ``bundle m/r``. Empty in what ``export`` gives.
        inputs: The names of its inputs, in the order of ``Run``'s arguments. Empty in what ``export`` gives.
    """

    file: str
    data: bytes
    properties: Mapping[str, str] = field(default_factory=dict)
    bundle: str = ""
    inputs: Sequence[str] = ()

    @property
    def label(self) -> str:
        """What messages about the program begin with: ``bundle m/r: program.onnx``."""
        return f"{self.bundle}: {self.file}" if self.bundle else self.file


class ExportBackend(ABC):
    """Makes programs from modules, and opens them.

    The constructor's keywords are the backend's settings: ``export(..., settings={NAME: {...}})``. regplug runs the
    parity gate on every program, writes it, checks its digest before it is opened and each input before it is run; a
    backend does none of that.
    """

    @abstractmethod
    def export(self, source: Source) -> list[Program]:
        """Make the programs.

        Raises:
            ExportError: No program can be made from the module; says why.
        """

    @abstractmethod
    def open(self, owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run:
        """Make a program runnable with these weights. Its digest is checked; who made it is not.

        What ``Run`` gives may share memory with its input, never with the weights. All exceptions of ``open`` and of
        ``Run`` reach the user as a BundleError.

        Args:
            owner: The program's weights file, for messages.
            program: What ``export`` gave, read back; ``program.label`` is for messages about it.
            weights: The module's state dict.

        Raises:
            BundleError: The program does not open, or needs other weights.
        """

    def emulate(self, owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run | None:
        """As ``open``, for a program of another machine, in the parity gate and ``verify``; None if it is opened here.

        Args:
            owner: As for ``open``.
            program: As for ``open``.
            weights: As for ``open``.

        Raises:
            BundleError: The program needs other weights.
            ExportError: There is nothing to run it with.
        """
        return None

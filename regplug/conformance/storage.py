"""Checks that a readout's state dict, safetensors file and copies are complete and independent."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from regplug.conformance.check import Check
from regplug.conformance.subject import Subject, close
from regplug.errors import ConformanceError
from regplug.format.weights import check_state, load_state, load_tensors, save_tensors, state_of, types_of

OTHER_SEED = 1


def state_dict(subject: Subject) -> None:
    """The state dict, loaded into a new readout of another seed, gives the same output to the bit.

    A value that changes the output but is not in the state dict, such as a random number or a statistic kept
    elsewhere, is silently lost with every checkpoint.
    """
    readout = _used(subject)
    other = subject.fresh(OTHER_SEED).eval()
    other.load_state_dict(readout.state_dict(), strict=True)
    close("a fresh build with its state dict", _run(other, subject), _run(readout, subject), tolerance=0)


def safetensors(subject: Subject) -> None:
    """The weights read from a safetensors file have the same names, shapes, dtypes and bits, and fit a new readout.

    A bundle stores them like this. Such a file cannot hold tied weights, buffers outside the state dict or tensor
    subclasses; torch and safetensors silently drop or flatten some of them.
    """
    owner = f"strategy {subject.name!r}"
    readout = _used(subject)
    state = state_of(owner, readout)
    back = load_tensors(owner, save_tensors(state))
    check_state(owner, types_of(state), back)
    for name, tensor in state.items():
        if not torch.equal(_bits(back[name]), _bits(tensor)):
            raise ConformanceError(f"{owner}: tensor {name!r}: expected the bits that were saved, got others.")
    load_state(owner, subject.fresh(OTHER_SEED), back)


def deepcopy(subject: Subject) -> None:
    """A deep copy gives the same bits, uses its own weights, and does not change the original.

    Averaged weights, exports and ensembles use copies. A copy that shares a tensor, or uses the original's through a
    closure, is trained together with it, or not at all.
    """
    readout = subject.trained()
    before = _run(readout, subject)
    copied = copy.deepcopy(readout)
    close("a copy", _run(copied, subject), before, tolerance=0)
    weights = subject.trained(OTHER_SEED).state_dict()
    copied.load_state_dict(weights)
    changed = _run(copied, subject)
    close("the original, after others were given other weights", _run(readout, subject), before, tolerance=0)
    readout.load_state_dict(weights)
    close("a copy that is given other weights", changed, _run(readout, subject), tolerance=0)


def _used(subject: Subject) -> nn.Module:
    """A trained readout after a batch in train mode, so that its statistics have changed too."""
    readout = subject.trained().train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        readout(subject.registers(7))
    return readout.eval()


def _run(readout: nn.Module, subject: Subject) -> Tensor:
    with torch.no_grad():
        output: Tensor = readout(subject.registers(3))
    return output


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


CHECKS = (Check("state-dict", state_dict), Check("safetensors", safetensors), Check("deepcopy", deepcopy))

"""Whether weights are still at their start: from how layers are initialised, and from a few training steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regplug.commands.audit.tensor_trees import map_tensors, tensors_in
from regplug.commands.effect.subject import Subject

MIN_NUMBERS = 256  # fewer numbers of a uniform distribution do not tell whether it is one
CLEARLY = 0.1  # a layer that training has left alone for most of its steps moves less
STEPS = 6  # a path behind two layers that start at zero gets its first gradient in the third step
STEP_SIZE = 1e-3
CRITICAL_KS = 1.63  # the Kolmogorov-Smirnov test's at 1 %, for large samples
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM_LAYERS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


def is_default_uniform(weight: Tensor, slack: float = 1e-6) -> bool:
    """Whether a weight still has the values that torch draws for linear layers and convolutions.

    They are uniform in ``+-1/sqrt(fan_in)``; training moves some beyond, or changes the distribution.

    Args:
        weight: The weight.
        slack: How far beyond they may be, relative to the bound.
    """
    if weight.dim() < 2 or weight.numel() < MIN_NUMBERS:
        return False
    bound = 1 / math.sqrt(weight[0].numel())
    numbers = weight.detach().double().flatten().sort().values / bound
    if float(numbers.abs().max()) > 1 + slack or float(numbers.abs().max()) < 0.95:
        return False
    count = numbers.numel()
    steps = torch.arange(1, count + 1, dtype=torch.float64, device=numbers.device) / count
    far = (steps - (numbers + 1) / 2).abs().max()
    return float(far) < CRITICAL_KS / math.sqrt(count)


def looks_trained(network: nn.Module, without: Sequence[str] = ()) -> bool | None:
    """Whether most layers have clearly left their start, as after hundreds of steps; None if no layer tells.

    Args:
        network: The network.
        without: Paths whose layers do not count.
    """
    moved = still = 0
    for path, part in network.named_modules():
        if any(path == one or path.startswith(f"{one}.") for one in without):
            continue
        verdict = _has_moved(part)
        moved += verdict is True
        still += verdict is False
    return None if moved + still == 0 else moved > still


def _has_moved(part: nn.Module) -> bool | None:
    """Whether a layer has left its start; None for layers that do not tell."""
    weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
    if not isinstance(weight, nn.Parameter):
        return None
    if isinstance(part, NORM_LAYERS) or weight.dim() == 1:
        return bool((weight - weight.flatten()[0].round()).abs().max() > CLEARLY)
    if not isinstance(part, (nn.Linear, *CONVOLUTIONS)) or is_constant(weight):
        return None
    of_fan_in = weight.transpose(0, 1) if "Transpose" in type(part).__name__ else weight
    if is_default_uniform(of_fan_in, CLEARLY):
        return False
    if isinstance(bias, nn.Parameter) and bias.numel() > 1 and weight.numel() >= MIN_NUMBERS:
        return bool(bias.abs().max() > CLEARLY / 2)  # a bias that starts at 0, next to a weight drawn in another way
    return None


def is_constant(tensor: Tensor) -> bool:
    """Whether all numbers are the same."""
    return bool((tensor == tensor.flatten()[:1]).all()) if tensor.numel() > 1 else tensor.numel() == 0


def layers_at_start(part: nn.Module) -> list[tuple[str, int]]:
    """The layers in a module that still have the values that torch drew, each with how many numbers it has."""
    found = []
    for path, layer in part.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and isinstance(weight, nn.Parameter) and weight.requires_grad:
            of_fan_in = weight.transpose(0, 1) if "Transpose" in type(layer).__name__ else weight
            if is_default_uniform(of_fan_in):
                found.append((path, weight.numel()))
    return found


def zero_layers(part: nn.Module) -> list[str]:
    """The linear layers in a module whose weight is zero, or so small that only weight decay explains it."""
    found = []
    for path, layer in part.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and isinstance(weight, nn.Parameter) and weight.numel():
            scale = 1 / math.sqrt(weight[0].numel())
            if float(weight.detach().abs().max()) < 1e-6 * scale:
                found.append(path)
    return found


def same_as_fresh(network: nn.Module, fresh: nn.Module, paths: Sequence[str]) -> dict[str, int]:
    """The trainable tensors under these paths that have exactly the start values of a network built again.

    Only tensors whose start is constant are compared: others are drawn.
    """
    start = dict(fresh.named_parameters())
    return {
        name: tensor.numel()
        for name, tensor in network.named_parameters()
        if any(name.startswith(f"{path}.") for path in paths)
        and name in start
        and tensor.requires_grad
        and start[name].shape == tensor.shape
        and is_constant(start[name])
        and tensor.numel() > 1
        and torch.equal(start[name].to(tensor), tensor)
    }


def after_steps(subject: Subject, steps: int = STEPS) -> Subject | None:
    """The same network after a few training steps towards random outputs; None if it has no gradients.

    Each step moves every weight by the sign of its gradient, so a weight whose gradient is exactly zero stays.
    """
    module = copy.deepcopy(subject.module)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    moved = Subject(module, subject.args, subject.kwargs, subject.batch, subject.seed)
    generator = torch.Generator().manual_seed(subject.seed + 1)
    targets: list[Tensor] | None = None
    for _ in range(steps):
        module.zero_grad(set_to_none=True)
        outputs = [one for one in moved.run(grad=True)[""] if one.requires_grad]
        if not outputs:
            return None
        if targets is None:
            targets = [torch.randn(one.shape, generator=generator).to(one) for one in outputs]
        loss = sum(((one - target) ** 2).mean() for one, target in zip(outputs, targets, strict=True))
        if not isinstance(loss, Tensor) or not bool(torch.isfinite(loss)):
            return None
        loss.backward()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-STEP_SIZE)
    return moved


def _note(ran: set[str], path: str, *_: object) -> None:
    ran.add(path)


def gradients(
    subject: Subject, films: Mapping[str, Sequence[int]]
) -> tuple[dict[str, float | None], dict[str, bool], list[str]]:
    """One backward pass from a random direction of the output.

    Args:
        subject: The network and its inputs.
        films: FiLM sites, each with which of its arguments are the conditioning.

    Returns:
        The norm of the gradient at each site's conditioning, per standard deviation of it; None if it is not
        differentiable there. Whether a gradient path leads from each site's conditioning back to weights or inputs.
        The names of the trainable tensors outside the sites that get no gradient, though their modules ran.
    """
    module = subject.module
    module.zero_grad(set_to_none=True)
    seen: dict[str, list[Tensor]] = {path: [] for path in films}
    linked: dict[str, bool] = {}
    ran: set[str] = set()

    def enter(path: str) -> Any:
        def changed(given: Any) -> Any:
            tensors = list(tensors_in(given))
            new: dict[int, Tensor] = {}
            for index in films[path]:
                if index < len(tensors) and tensors[index].is_floating_point():
                    one = tensors[index]
                    linked[path] = linked.get(path, True) and one.requires_grad
                    kept = one.clone() if one.requires_grad else one.detach().clone().requires_grad_(True)
                    kept.retain_grad()
                    seen[path].append(kept)
                    new[id(one)] = kept
            return map_tensors(lambda one: new.get(id(one), one), given)

        return changed

    handles = [
        part.register_forward_hook(partial(_note, ran, path))
        for path, part in subject.paths.items()
        if not isinstance(part, torch.jit.ScriptModule)
    ]
    inputs = map_tensors(
        lambda one: one.clone().requires_grad_(True) if one.is_floating_point() else one.clone(),
        (subject.args, subject.kwargs),
    )
    try:
        made = subject.run(grad=True, inputs=inputs, before={path: enter(path) for path in films})
        outputs = [one for one in made[""] if one.requires_grad]
        if not outputs:
            return dict.fromkeys(films), linked, []
        generator = torch.Generator().manual_seed(subject.seed + 2)
        directions = [torch.randn(one.shape, generator=generator).to(one) for one in outputs]
        torch.autograd.backward(outputs, directions)
    finally:
        for handle in handles:
            handle.remove()
    norms: dict[str, float | None] = {}
    for path, tensors in seen.items():
        found = [(one, one.grad) for one in tensors if one.grad is not None]
        norms[path] = (
            sum(float((grad.double() * one.detach().double().std(0)).norm()) for one, grad in found) if found else None
        )
    inside = tuple(f"{path}." for path in films)
    orphans = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        and parameter.grad is None
        and name.rpartition(".")[0] in ran
        and not name.startswith(inside)
    ]
    module.zero_grad(set_to_none=True)
    return norms, linked, orphans

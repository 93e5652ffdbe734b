"""Findings about weights that a checkpoint did not fill, and about gradients that do not arrive."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from regplug.commands.effect.findings import INFO, MAYBE, SURE, Finding, finding
from regplug.commands.effect.measure import Measurements
from regplug.commands.effect.observe import Observation
from regplug.commands.effect.start import gradients, layers_at_start, same_as_fresh
from regplug.commands.effect.subject import Subject
from regplug.errors import with_class


def judge_loading(
    network: nn.Module, paths: Sequence[str], missing: Sequence[str], fresh: nn.Module | None, trained: bool | None
) -> list[Finding]:
    """Findings ``never-loaded`` about FiLM sites and readouts.

    Args:
        network: The network.
        paths: FiLM sites and readouts.
        missing: Names of tensors that the weights' file does not have.
        fresh: The same network, built again.
        trained: Whether the rest of the network is trained.
    """
    found = []
    sizes = {name: tensor.numel() for name, tensor in network.named_parameters()}
    for path in paths:
        lost = [name for name in missing if name.startswith(f"{path}.")]
        if lost:
            count = sum(sizes.get(name, 0) for name in lost)
            found.append(finding("never-loaded", SURE, path, count, detail=f"not in the file: {', '.join(lost[:3])}"))
            continue
        part = dict(network.named_modules()).get(path)
        if not trained or part is None:
            continue
        if layers := layers_at_start(part):
            names = ", ".join(name or type(part).__name__ for name, _ in layers)
            found.append(finding("never-loaded", MAYBE, path, sum(size for _, size in layers), detail=names))
        elif fresh is not None and (same := same_as_fresh(network, fresh, [path])):
            all_of_it = sum(one.numel() for one in part.parameters() if one.requires_grad)
            grade = MAYBE if sum(same.values()) == all_of_it else INFO
            found.append(finding("never-loaded", grade, path, sum(same.values()), detail=", ".join(same)))
    elsewhere = [name for name in missing if not any(name.startswith(f"{path}.") for path in paths)]
    if elsewhere:
        count = sum(sizes.get(name, 0) for name in elsewhere)
        detail = f"not in the file: {', '.join(elsewhere[:3])}"
        found.append(finding("never-loaded", SURE, elsewhere[0].rpartition(".")[0], count, detail=detail))
    return found


def judge_gradients(
    subject: Subject, seen: Observation, numbers: Measurements
) -> tuple[dict[str, float | None], list[Finding]]:
    """Each site's gradient, relative to the spread of outputs, and findings ``conditioning-detached``."""
    films = {path: seen.plan.conditioning.get(path, ()) for path in seen.plan.films if subject.hooked(path)}
    try:
        norms, linked, orphans = gradients(subject, films)
    except Exception as error:  # an operation without a gradient, or a network that runs under inference mode
        numbers.notes.append(f"gradient: not measured: {with_class(error)}")
        return {}, []
    found = []
    for path in films:
        swap = numbers.sites[path].swap
        if not swap or swap <= max(4 * numbers.noise, 1e-6):
            continue
        if linked.get(path) is False and orphans:
            names = ", ".join(orphans[:2])
            found.append(finding("conditioning-detached", SURE, path, len(orphans), detail=names))
        elif linked.get(path) and norms.get(path) is None:
            found.append(finding("conditioning-detached", SURE, path, 0, detail="inside the FiLM module"))
    return norms, found

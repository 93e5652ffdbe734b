"""Finds in any network its FiLM generators, its readouts, and which readout gives to which generator."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from regplug.entries import reference_of
from regplug.errors import SpecError, told
from regplug.installed import default_registry
from regplug.pairing import WIDTH_WORDS, film_family, wanted_width
from regplug.widths import PROBE_BATCH, probe


@dataclass(frozen=True)
class Network:
    """A network that was built, and its sizes.

    Args:
        module: The network.
        sizes: ``num_registers``, ``hidden_dim`` and what else varies.
        device: Where its tensors are; the meta device where it can be.
    """

    module: nn.Module
    sizes: Mapping[str, int]
    device: str

    def part(self, path: str) -> nn.Module | None:
        """The module at a path, if there is one."""
        try:
            return self.module.get_submodule(path)
        except AttributeError:
            return None

    def wanted(self, path: str) -> int | None:
        """The width that the FiLM generator at ``path`` wants, if it says so."""
        part = self.part(path)
        return None if part is None else wanted_width(part)

    def given(self, path: str) -> int | None:
        """The width that the module at ``path`` gives for registers ``[2, R, D]``; None where it reads none."""
        try:
            return self.read(path)
        except SpecError:
            return None

    def read(self, path: str) -> int:
        """As ``given``.

        Raises:
            SpecError: The module does not read registers, and why.
        """
        part = self.part(path)
        if part is None:
            raise SpecError(f"module {path}: expected one, got none.")
        try:
            return probe(f"module {path}", part, self.sizes["num_registers"], self.sizes["hidden_dim"], self.device)
        except (Exception, SystemExit) as error:  # what is no readout may refuse registers in any way
            raise SpecError(told(error)) from error

    def turns(self, path: str, width: int, into: int) -> bool:
        """Whether the module at ``path`` makes ``[2, into]`` of ``[2, width]``."""
        part = self.part(path)
        try:
            with torch.no_grad():
                output = part and part(torch.zeros(PROBE_BATCH, width, device=self.device))
        except (Exception, SystemExit):  # not made for a vector
            return False
        return isinstance(output, torch.Tensor) and output.shape == (PROBE_BATCH, into)


def find_parts(network: Network) -> tuple[dict[str, str], list[str]]:
    """The FiLM generators, path by path with class and family, and the paths of the readouts.

    A generator is of a known family, or its constructor has a word for the width. A readout is known by what it
    does, whatever its class: it makes ``[2, n]`` of registers ``[2, R, D]``, and no module around it does.
    """
    labels: dict[type, str | None] = {}
    named = {path: part for path, part in network.module.named_modules() if path}
    for part in named.values():
        if type(part) not in labels:
            labels[type(part)] = _label(type(part))
    films = {path: label for path, part in named.items() if (label := labels[type(part)])}
    readouts: list[str] = []
    for path, part in named.items():  # a module comes before those inside it
        around_film = any(inside(film, path) and film != path for film in films)
        of_readout = any(inside(path, readout) for readout in readouts)
        if not around_film and not of_readout and _may_read(part) and network.given(path) is not None:
            readouts.append(path)
    films = {path: label for path, label in films.items() if not any(inside(path, readout) for readout in readouts)}
    # a module with a generator inside hands the width on
    films = {path: label for path, label in films.items() if not any(inside(o, path) and o != path for o in films)}
    return films, [path for path in readouts if not any(inside(path, film) for film in films)]


def nearest_readout(
    networks: Sequence[Network], readouts: Sequence[str], film: str, wanted: tuple[int | None, ...]
) -> tuple[str | None, str]:
    """The readout under the nearest ancestor of a generator; or None, and why.

    Of several, those count that give what is wanted at the network's own sizes, where it runs; of these, those whose
    class is a registered strategy's. If some of them follow and others do not, it stays open.
    """
    scope = film
    while scope:
        scope = scope.rpartition(".")[0]
        near = {path: tuple(network.given(path) for network in networks) for path in readouts if inside(path, scope)}
        if not near:
            continue
        fitting = [path for path in near if near[path][0] == wanted[0]] or list(near)
        candidates = [path for path in fitting if _is_registered(networks[0].part(path))] or fitting
        given = {near[path] for path in candidates}
        one_of_them_follows = wanted in near.values() and given != {wanted}
        if one_of_them_follows or (len(given) > 1 and near[candidates[0]][0] != wanted[0]):
            return None, f"{len(near)} readouts are as near: {', '.join(list(near)[:3])}"
        return candidates[0], ""
    return None, "no module beside it reads registers [B, R, D] into [B, cond_dim]"


def find_between(
    networks: Sequence[Network], film: str, readout: str, wanted: Sequence[int], given: Sequence[int]
) -> str | None:
    """A module near both that turns the width given into the one wanted, at every size where they differ."""
    scope = _common(film, readout)
    near: list[str] = [path for path, _ in networks[0].module.named_modules() if path and inside(path, scope)]
    for path in near:
        if inside(path, film) or inside(path, readout):
            continue
        differ = [(n, have, want) for n, have, want in zip(networks, given, wanted, strict=True) if have != want]
        if all(network.turns(path, have, want) for network, have, want in differ):
            return path
    return None


def inside(path: str, scope: str) -> bool:
    """Whether ``path`` is ``scope`` or lies in it; all lie in the network itself, ``""``."""
    return not scope or path == scope or path.startswith(f"{scope}.")


def _label(cls: type) -> str | None:
    family = film_family(cls)
    if family is not None:
        return f"{cls.__name__} ({family.name})"
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):  # a scripted module, a class written in C
        return None
    return cls.__name__ if any(word in parameters for word in WIDTH_WORDS) else None


def _may_read(module: nn.Module) -> bool:
    # nn.Flatten alone takes registers too, as a piece of what is written out in a forward
    plain = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)
    return not plain and film_family(module) is None


def _is_registered(module: nn.Module | None) -> bool:
    names = {reference_of(base) for base in type(module).__mro__}
    return any(reference_of(entry.build) in names for entry in default_registry().readout_entries())


def _common(one: str, other: str) -> str:
    shared = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)

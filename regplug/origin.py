"""Finds which distributions a module is made of, so that a bundle can say with which versions it was made."""

from __future__ import annotations

from importlib.metadata import packages_distributions, version

from torch import nn

from regplug.discovery import normalise
from regplug.entries import Entry
from regplug.naming import OWN


def packages_of(module: nn.Module, *entries: Entry | None) -> dict[str, str]:
    """Distribution -> version: regplug, who offers the entries, and where the classes in the module come from.

    torch is left out, for a bundle names it by itself, and so is a class of no installed distribution.

    Args:
        module: What is exported.
        *entries: The strategy, the FiLM generator and the backbone that it was built of; None for one that is not.
    """
    owners = packages_distributions()
    tops = {type(one).__module__.partition(".")[0] for one in module.modules()}
    found = {normalise(name): version(name) for top in tops for name in owners.get(top, ())}
    found |= {one.provenance.distribution: one.provenance.version for one in entries if one and one.provenance}
    found[OWN] = version(OWN)
    found.pop("torch", None)
    return dict(sorted(found.items()))

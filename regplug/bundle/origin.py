"""Finds which distributions a module is made of, so that a bundle can say with which versions it was made."""

from __future__ import annotations

import re

from torch import nn

from regplug.registry.distributions import UNKNOWN, installed
from regplug.registry.entries import Entry
from regplug.registry.names import OWN
from regplug.registry.version import own_version

LONGEST = 128  # characters of a version in a bundle


def packages_of(module: nn.Module, *entries: Entry | None) -> dict[str, str]:
    """Distribution -> version: regplug, who offers the entries, and where the classes in the module come from.

    torch is left out, for a bundle names it by itself, and so is a class of no installed distribution.

    Args:
        module: What is exported.
        *entries: The strategy, the FiLM generator and the backbone that it was built of; None for one that is not.
    """
    tops = {type(one).__module__.partition(".")[0] for one in module.modules()} - {OWN, "torch"}
    found = {one.name: one.version for one in installed() if one.name and any(map(one.owns, tops))} if tops else {}
    found |= {one.provenance.distribution: one.provenance.version for one in entries if one and one.provenance}
    found[OWN] = own_version()
    found.pop("torch", None)
    return {name: storable(version) for name, version in sorted(found.items())}


def storable(version: str) -> str:
    """A version as a bundle may hold it: another character than a version's is an underscore there."""
    return re.sub(r"[^A-Za-z0-9._+!-]", "_", version)[:LONGEST] or UNKNOWN

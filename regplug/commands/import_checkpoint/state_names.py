"""The names of a state dict: what wrappers add to them, and how messages list them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from regplug.errors import BundleError, shorten
from regplug.torch_private import uncompiled_name

# what wrappers put before a network's own names: DistributedDataParallel, then Lightning modules
WRAPPERS = ("module.", "network.", "model.")
MAX_WRAPPERS = 4
MAX_PREFIXES = 500
MAX_LISTED, MAX_NAME = 5, 120


def wrapper_prefixes(names: Iterable[str]) -> Iterator[str]:
    """Prefixes that a network's own names may have, the empty one first.

    Example:
        >>> list(wrapper_prefixes(["network.blocks.0.mlp.weight", "network.model.norm.weight", "loss.weight"]))
        ['', 'network.', 'network.model.']
    """
    names = list(names)
    prefixes = [("", 0)]
    for prefix, depth in prefixes:  # grows as it is walked
        yield prefix
        if depth < MAX_WRAPPERS:
            longer = [prefix + wrapper for wrapper in WRAPPERS]
            prefixes += [(one, depth + 1) for one in longer if any(name.startswith(one) for name in names)]


def unwrapped(name: str) -> str:
    """A name without the prefixes that wrappers may have put before it.

    Example:
        >>> unwrapped("module.network.blocks.0.mlp.weight")
        'blocks.0.mlp.weight'
    """
    while wrapper := next((one for one in WRAPPERS if name.startswith(one)), None):
        name = name.removeprefix(wrapper)
    return name


def own_names(owner: str, names: Iterable[str]) -> dict[str, str]:
    """Each name without the parts that ``torch.compile`` adds, with the original name.

    Raises:
        BundleError: Two names become the same.
    """
    found: dict[str, str] = {}
    for name in names:
        bare = uncompiled_name(name)
        if bare in found:
            raise BundleError(f"{owner}: expected one tensor {bare!r}, got {found[bare]!r} and {name!r}.")
        found[bare] = name
    return found


def listed(names: Iterable[str]) -> str:
    """A few names on one line, escaped, and how many more there are."""
    return shorten(
        [name[:MAX_NAME] if name.isprintable() else ascii(name[:MAX_NAME]) for name in sorted(names)], MAX_LISTED
    )


def all_prefixes(names: Iterable[str]) -> list[str]:
    """All prefixes of some of the names, the shortest first.

    Example:
        >>> all_prefixes(["policy.net.weight", "policy.bias"])
        ['', 'policy.', 'policy.net.']
    """
    prefixes = {""}
    for name in names:
        parts = name.split(".")
        prefixes |= {".".join([*parts[:at], ""]) for at in range(1, len(parts))}
    return sorted(prefixes, key=lambda prefix: (prefix.count("."), len(prefix), prefix))

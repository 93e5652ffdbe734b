"""What ``effect`` refuses before it runs anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from regplug.errors import SpecError, closest
from regplug.registry.integers import is_int
from regplug.registry.layout import TokenLayout


def check_options(batch: Any, layout: Any, trained: Any, missing: Any, seed: Any) -> None:
    """Refuse arguments of other types than ``effect`` takes.

    Raises:
        SpecError: One has another type.
    """
    if not is_int(batch):
        raise SpecError(f"effect: batch: expected a number of samples, got {batch!r}.")
    if not is_int(seed):
        raise SpecError(f"effect: seed: expected an integer, got {seed!r}.")
    if layout is not None and not isinstance(layout, TokenLayout):
        raise SpecError(f"effect: layout: expected a TokenLayout or None, got {layout!r:.50}.")
    if trained is not None and not isinstance(trained, bool):
        raise SpecError(f"effect: trained: expected True, False or None, got {trained!r:.50}.")
    is_list = isinstance(missing, Sequence) and not isinstance(missing, (str, bytes))
    if not is_list or not all(isinstance(one, str) for one in missing):
        raise SpecError(
            "effect: missing: expected a list of names of tensors, as load_state_dict returns them, got "
            f"{missing!r:.50}."
        )


def check_names(missing: Sequence[str], *networks: nn.Module) -> None:
    """Refuse names of tensors that none of the networks has.

    Args:
        missing: The names.
        networks: The network, with and without its wrappers.

    Raises:
        SpecError: One is unknown.
    """
    known = list(dict.fromkeys(name for one in networks for name in one.state_dict())) if missing else []
    unknown = next((name for name in missing if name not in known), None)
    if unknown is not None:
        raise SpecError(
            f"effect: missing: expected names of the network's tensors, got {unknown!r}{closest(unknown, known)}."
        )

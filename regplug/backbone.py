"""Answers what a backbone wants, site by site, from a build on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regplug.entries import BackboneEntry, FiLMSite, Reference, load_reference
from regplug.errors import PluginError, told
from regplug.layout import TokenLayout


@dataclass(frozen=True)
class BackboneSizes:
    """A backbone's layout and FiLM sites."""

    layout: TokenLayout
    film_sites: tuple[FiLMSite, ...]


def measure_backbone(entry: BackboneEntry, model: str | None = None) -> BackboneSizes:
    """Build the backbone on the meta device and ask its plugin for layout and FiLM sites.

    Args:
        entry: The backbone.
        model: Which of its models; None for its default.

    Raises:
        PluginError: The backbone does not build, or its plugin gives something else than was asked.
    """
    import torch

    arguments = () if model is None else (model,)
    with torch.device("meta"):
        built = _call(entry, "build", entry.build, *arguments)
    layout = _call(entry, "layout", entry.layout, built)
    if not isinstance(layout, TokenLayout):
        raise PluginError(f"backbone {entry.name!r}: layout: expected a TokenLayout, got {type(layout).__name__}.")
    sites = () if entry.film_sites is None else tuple(_call(entry, "film_sites", entry.film_sites, built))
    for site in sites:
        if not isinstance(site, FiLMSite):
            raise PluginError(f"backbone {entry.name!r}: film_sites: expected FiLMSite, got {site!r}.")
    return BackboneSizes(layout, sites)


def _call(entry: BackboneEntry, word: str, reference: Reference, *arguments: Any) -> Any:
    target = load_reference(f"backbone {entry.name!r}", reference)
    try:
        return target(*arguments)
    except (Exception, SystemExit) as error:  # the plugin's code may fail in any way; say whose it was
        raise PluginError(
            f"backbone {entry.name!r}: expected {word} to answer, got {type(error).__name__}: {told(error)}"
        ) from error

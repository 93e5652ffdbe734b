"""The ``list`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from regplug.commands.printing import print_columns, print_json, say
from regplug.commands.shared_options import json_option
from regplug.errors import message_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regplug.registry.entries import Entry


@click.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List strategies, FiLM generators, backbones and backends.

    Each with the package that provides it; then the plugins, and whether they load.
    """
    from regplug.registry.default import default_registry

    registry = default_registry()
    sections: dict[str, Sequence[Entry]] = {
        "strategies": registry.readout_entries(),
        "film_generators": registry.film_entries(),
        "backbones": registry.backbone_entries(),
        "export_backends": registry.export_backend_entries(),
    }
    if as_json:
        print_json(
            "list",
            {
                section: [
                    {
                        "name": entry.name,
                        "full_name": entry.full_name,
                        "distribution": entry.provenance.distribution if entry.provenance else None,
                        "version": entry.provenance.version if entry.provenance else None,
                        "summary": entry.summary,
                    }
                    for entry in entries
                ]
                for section, entries in sections.items()
            }
            | {
                "plugins": [
                    {
                        "distribution": record.distribution,
                        "version": record.version,
                        "status": record.status,
                        "error": record.error and message_of(record.error),
                        "notes": list(record.notes),
                    }
                    for record in registry.plugins()
                ]
            },
        )
        return
    for section, entries in sections.items():
        rows = [
            (entry.name, f"{entry.provenance.distribution} {entry.provenance.version}", entry.summary)
            for entry in entries
            if entry.provenance
        ]
        if rows:
            print_columns((section.replace("_", " "), "from", ""), rows)
            say()
    found = [
        (one.distribution, one.version, one.status, "; ".join([message_of(one.error)] if one.error else one.notes))
        for one in registry.plugins()
    ]
    print_columns(("plugins", "version", "status", ""), found)

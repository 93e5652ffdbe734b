"""What is done with each unit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regplug.commands.run.mapper import BundleMapper
from regplug.errors import SpecError, closest
from regplug.registry.version import own_version

SUFFIX_OF = {"parquet": ".parquet", "arrow": ".arrow", "safetensors": ".safetensors"}
ALL = "all"


@dataclass(frozen=True)
class Job:
    """What is done with each unit; it is pickled for workers.

    Args:
        mapper: The bundle.
        output: The folder of the results, absolute.
        format: ``parquet``, ``arrow`` or ``safetensors``.
        carry: Columns that are copied to the results; ``("all",)`` for all but the inputs.
        batch: Rows that the module gets at once.
    """

    mapper: BundleMapper
    output: Path
    format: str
    carry: tuple[str, ...]
    batch: int

    def carried(self, names: Sequence[str]) -> list[str]:
        """The columns of a file that are copied to the results.

        Raises:
            SpecError: One is missing, or has the name of an output.
        """
        inputs = self.mapper.input_columns(names).values()
        outputs = [one.name for one in self.mapper.manifest.outputs]
        chosen = [name for name in names if name not in inputs] if self.carry == (ALL,) else list(self.carry)
        for name in chosen:
            if name not in names:
                raise SpecError(
                    f"column {name!r}: expected to be in the file, to be copied, got none{closest(name, names)}."
                )
            if name in outputs:
                raise SpecError(f"column {name!r}: expected a name that is not an output's, got one; do not carry it.")
        return chosen

    def file_name(self, name: str) -> str:
        """The path of a unit's results below the output folder."""
        return f"{name}{SUFFIX_OF[self.format]}"

    def recipe(self) -> dict[str, Any]:
        """All that decides the results, as JSON values. A run goes on only with the same."""
        return {
            "bundle": self.mapper.digest,
            "strategy": self.mapper.manifest.strategy,
            "program": self.mapper.program,
            **self.mapper.choices(),
            "format": self.format,
            "carry": list(self.carry),
            "batch": self.batch,
        }

    def facts(self) -> dict[str, str]:
        """What the results say of their origin, in the schema's metadata."""
        manifest = self.mapper.manifest
        facts = {
            "bundle": self.mapper.digest,
            "strategy": manifest.strategy,
            "options": dict(manifest.options),
            "cond_dim": manifest.cond_dim,
            "program": self.mapper.program,
            "made_with": manifest.made_with,
            "version": own_version(),
        }
        return {"regplug": json.dumps(facts, sort_keys=True)}

"""Installed distributions, written file by file: an installer would take a second for each."""

from collections.abc import Mapping
from pathlib import Path

from regplug.registry.distributions import normalise


def write_distribution(
    site: Path,
    name: str,
    modules: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]],
    *,
    version: str = "1.0",
    description: str = "",
) -> Path:
    """Write what an installer leaves of a distribution into ``site``; gives its folder of metadata.

    Args:
        site: The folder that is on the path.
        name: The distribution's name.
        modules: Paths below ``site``, with the text of each.
        entry_points: Groups, with the lines of each.
        version: The distribution's version.
        description: The long description, which METADATA ends with.
    """
    for path, text in modules.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    info = site / f"{normalise(name).replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    points = [
        f"[{group}]\n" + "".join(f"{point} = {value}\n" for point, value in lines.items())
        for group, lines in entry_points.items()
    ]
    files = {
        "INSTALLER": "pip\n",
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (description and f"\n{description}"),
        **({"entry_points.txt": "\n".join(points)} if points else {}),
    }
    files["RECORD"] = "".join(f"{path},,\n" for path in [*modules, *(f"{info.name}/{file}" for file in files)])
    for file, text in files.items():
        (info / file).write_text(text)
    return info

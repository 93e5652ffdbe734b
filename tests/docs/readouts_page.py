"""Writes the table of docs/readouts.md from the registry.

Run `python tests/docs/readouts_page.py` after a strategy changed.
"""

import re
from pathlib import Path

from regplug.commands.info.describe import describe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "readouts.md"
TABLE = re.compile(r"(?<=<!-- strategies -->\n).*?(?=<!-- end -->)", re.DOTALL)
R, D = 4, 384
# what each needs, or is best shown with; the others have defaults for all
OPTIONS = {
    "compress-concat": {"compressed_dim": 96},
    "select-concat": {"indices": [0, 2]},
    "per-register-compress-concat": {"compressed_dim": 96},
    "concat-linear": {"out_features": 384},
    "sinusoidal": {"dim": 128},
    "join": {"parts": [{"name": "first", "strategy": "mean", "stop": 1}, {"name": "all", "strategy": "mean"}]},
}
DISTRIBUTIONS = {"regplug": "in the core", "regplug-zoo": "in the plugin regplug-zoo"}


def table(strategies):
    """The table's lines, sorted by distribution and name."""
    lines = []
    for distribution, where in DISTRIBUTIONS.items():
        lines += [f"| {where} | c | `cond_dim` | at R=4, D=384 | parameters | FLOPs | source |", "|" + "---|" * 7]
        for strategy in sorted(name for name in strategies if name.startswith(f"{distribution}:")):
            name = strategy.partition(":")[2]
            options = OPTIONS.get(name, {})
            said = describe(strategy, num_registers=R, hidden_dim=D, backbone=None, options=options, follow_links=False)
            given = "".join(f", {word}={value}" for word, value in options.items())
            width = f"{said['formula']}" + "".join(f"; {condition}" for condition in said["conditions"])
            equation = said["equation"].replace("||", "‖").replace("|", r"\|")  # a bar would end the cell
            cells = (f"`{name}`{given}", f"`{equation}`", f"`{width}`", said["cond_dim"], said["parameters"])
            lines.append("| " + " | ".join(map(str, (*cells, said["flops_per_sample"], said["source"] or ""))) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    from regplug import default_registry

    names = [entry.full_name for entry in default_registry().readout_entries()]
    PAGE.write_text(TABLE.sub(lambda _: table(names), PAGE.read_text()))

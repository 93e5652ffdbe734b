"""Writes the tables of checks of docs/plugins.md from the checks.

Run `python tests/docs/checks_page.py` after one changed.
"""

import re
from pathlib import Path

from regplug.conformance import all_backbone_checks, all_checks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
TABLE = re.compile(r"(?<=<!-- checks -->\n).*?(?=<!-- end -->)", re.DOTALL)
BACKBONES = re.compile(r"(?<=<!-- backbone checks -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(checks):
    """One line for each check: its name, what it looks at, and why."""
    lines = ["| check | what it looks at, and why |", "|---|---|"]
    for check in checks:
        why = check.why.replace("``", "`").replace("|", r"\|")  # a bar would end the cell
        name = f"`{check.name}`" + (" (advisory)" if check.advisory else "")
        lines.append(f"| {name} | {why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = TABLE.sub(lambda _: table(all_checks(["BACKEND"])), PAGE.read_text())
    PAGE.write_text(BACKBONES.sub(lambda _: table(all_backbone_checks()), text))

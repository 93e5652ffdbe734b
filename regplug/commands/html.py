"""What the HTML pages of commands have in common: one file, well-formed, without scripts and external addresses."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path

import click

STYLE = """
:root { color-scheme: light dark; --page: #f7f8fa; --panel: #ffffff; --edge: #dfe3e8; --ink: #1c232b;
  --quiet: #5c6773; --faster: #2f7fb5; --slower: #c4622d; --spread: #1c232b; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --panel: #1c2229; --edge: #313a44; --ink: #e8ecf0;
  --quiet: #a3aeb9; --faster: #4d9fd6; --slower: #e08a55; --spread: #f2f5f7; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 22px; line-height: 1.3; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 32px 0 4px; }
p { margin: 4px 0 12px; color: var(--quiet); max-width: 78ch; overflow-wrap: anywhere; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, max(300px, 31%)), 1fr)); gap: 16px; }
figure { margin: 0; padding: 12px 14px; background: var(--panel); border: 1px solid var(--edge); border-radius: 8px; }
figcaption { font-size: 13px; font-weight: 600; margin-bottom: 6px; }
svg { display: block; width: 100%; max-width: 350px; height: auto; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .k { fill: var(--quiet); }
.g { stroke: var(--edge); } .o { stroke: var(--quiet); stroke-width: 1.5; }
.f { fill: var(--faster); } .s { fill: var(--slower); } .w { stroke: var(--spread); fill: none; }
.e { text-anchor: end; } .m { text-anchor: middle; }
.table { overflow-x: auto; background: var(--panel); border: 1px solid var(--edge); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 7px; text-align: right; white-space: nowrap; border-top: 1px solid var(--edge); }
th { font-weight: 600; } th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
figure.wide svg { max-width: 760px; }
.said { color: var(--ink); font-size: 17px; }
.b { fill: var(--edge); opacity: 0.5; }
ul { color: var(--quiet); padding-left: 20px; overflow-wrap: anywhere; }
"""


def place_of_page(path: Path) -> Path:
    """The absolute path of ``--html``. Call it before the work, and before a plugin may change the working directory.

    Raises:
        click.UsageError: It names no file, or its folder cannot be written into.
    """
    if not path.name:
        raise click.UsageError(f"--html: expected a file, got {str(path)!r}.")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)):
        raise click.UsageError(f"--html: expected a folder that can be written into, got {str(path.parent)!r}.")
    return path.absolute()


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: As text.
        parts: What is in it, as HTML.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>",
            *parts,
            "</main></body></html>\n",
        ]
    )

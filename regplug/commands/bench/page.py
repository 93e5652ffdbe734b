"""The HTML page of a benchmark, in one file: bars of the ratios with their spread, and the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from html import escape
from itertools import product
from pathlib import Path

from regplug.commands.bench.report import (
    HEADS,
    PASSES,
    PLACES,
    Report,
    Row,
    cells,
    environment,
    failed,
    failures,
    mismatches,
    title,
)
from regplug.format.single_file import write_files

MODE_TITLES = {"eager": "Eager", "torchscript": "TorchScript", "compile": "torch.compile"}
PLACE_TITLES = {"contiguous": "contiguous", "slice": "register slice"}
CHARACTER = 6.8  # a digit's width at the picture's font size, with some room
PLOT, LINE, TOP = 170, 22, 20  # widths and heights of a picture, in its own units

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
ul { color: var(--quiet); padding-left: 20px; overflow-wrap: anywhere; }
"""


def write_page(path: Path, report: Report) -> None:
    """Write the page atomically: an existing page is replaced whole, or kept.

    Raises:
        ExportError: The place is not a file, or the system refuses.
    """
    write_files({path: page(report).encode()}, force=True)


def page(report: Report) -> str:
    """The page as text: HTML that is also well-formed XML, without scripts and external addresses.

    Example:
        >>> from regplug.commands.bench.report import Plan
        >>> empty = Report("pool", {}, None, {"hidden_dim": 8}, Plan([1]), {"cpu": "a", "torch": "2"}, 1.0, [], [])
        >>> page(empty).splitlines()[0]
        '<!DOCTYPE html>'
    """
    name = escape(title(report))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>{name}</title><style>{STYLE}</style></head><body><main>",
            f"<h1>{name.replace('.', '.<wbr/>')}</h1>",
            f"<p>{escape(environment(report))}.</p>",
            "<p>How many times faster, as the median over pairs of adjacent blocks. Right of the line at 1 is faster, "
            "left of it is slower; the thin line spans the quartiles. The scale is logarithmic. Inference is "
            "in inference mode with frozen parameters, forward under no_grad with trainable ones.</p>",
            *_sections(report),
            *_table(report),
            "</main></body></html>\n",
        ]
    )


def _sections(report: Report) -> Iterator[str]:
    """A heading and the charts of each mode."""
    ratios = [row.ratio.median for row in report.rows if row.ratio]
    faster, slower = max([1.25, *ratios]) * 1.15, min([0.8, *ratios]) / 1.15
    for index, mode in enumerate(report.plan.modes):
        rows = [row for row in report.rows if row.mode == mode]
        found = [row.ratio.median for row in rows if row.ratio]
        yield f'<section aria-labelledby="m{index}"><h2 id="m{index}">{MODE_TITLES[mode]}</h2>'
        if not found:
            nothing = (
                "Failed; see the reasons below the table." if any(map(failed, rows)) else "Nothing to compare with."
            )
            yield f"<p>{nothing}</p></section>"
            continue
        low, median, high = min(found), statistics.median(found), max(found)
        yield f"<p>Between {low:.2f} and {high:.2f} times as fast, {median:.2f} in the middle.</p>"
        yield '<div class="panels">'
        for number, (place, work) in enumerate(product(PLACES, PASSES)):
            some = [row for row in rows if (row.registers, row.work) == (place, work)]
            if some:
                name = f"{work}, {PLACE_TITLES[place]}"
                picture = _picture(some, f"m{index}p{number}", f"{MODE_TITLES[mode]}: {name}", slower, faster)
                yield f"<figure><figcaption>{name}</figcaption>{picture}</figure>"
        yield "</div></section>"


def _picture(rows: Sequence[Row], name: str, title: str, slower: float, faster: float) -> str:
    """Bars from the line at 1, on a logarithmic scale from ``slower`` to ``faster``."""
    labels = [f"R={row.num_registers} B={row.batch}" for row in rows]
    values = [f"{row.ratio.median:.2f}" if row.ratio else "failed" for row in rows]
    left = round(max(map(len, labels)) * CHARACTER) + 14
    right = left + PLOT
    width = right + round(max(map(len, values)) * CHARACTER) + 8
    height = TOP + LINE * len(rows) + 2

    def x(ratio: float) -> float:
        place = math.log(ratio / slower) / math.log(faster / slower)
        return round(left + PLOT * min(1.0, max(0.0, place)), 1)

    drawn = []
    for tick in _ticks(slower, faster):
        at, kind = x(tick), "o" if tick == 1 else "g"
        number = f"1/{1 / tick:.0f}" if tick < 0.5 else f"{tick:g}"
        drawn.append(f'<line class="{kind}" x1="{at}" x2="{at}" y1="{TOP - 4}" y2="{height}"/>')
        drawn.append(f'<text class="k m" x="{at}" y="12">{number}</text>')
    said = []
    for index, (row, label, value) in enumerate(zip(rows, labels, values, strict=True)):
        top = TOP + LINE * index
        drawn.append(f'<text x="0" y="{top + 15}">{label}</text>')
        drawn.append(f'<text class="e" x="{width}" y="{top + 15}">{value}</text>')
        if row.ratio:
            one, end, middle = x(1), x(row.ratio.median), top + 11
            low, high = x(row.ratio.low), x(row.ratio.high)
            drawn.append(
                f'<rect class="{"f" if end >= one else "s"}" x="{min(one, end)}" y="{top + 4}" '
                f'width="{abs(end - one):.1f}" height="14"/>'
                f'<path class="w" d="M{low} {middle}H{high}M{low} {middle - 3}v6M{high} {middle - 3}v6"/>'
            )
            said.append(f"{label}: {value} ({row.ratio.low:.2f} to {row.ratio.high:.2f})")
        else:
            said.append(f"{label}: failed")
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}t {name}d">'
        f'<title id="{name}t">{title}</title><desc id="{name}d">Times faster. {"; ".join(said)}.</desc>'
        f"{''.join(drawn)}</svg>"
    )


def _ticks(slower: float, faster: float) -> list[float]:
    """Round ratios within the scale, few enough to leave room for their labels; 1 is always among them."""
    if faster / slower < 4:
        return [ratio for ratio in (0.5, 0.75, 1, 1.5, 2, 3) if slower <= ratio <= faster]
    step = math.ceil(math.log2(faster / slower) / 5)
    first = step * math.ceil(math.log2(slower) / step)
    return [2.0**power for power in range(first, math.floor(math.log2(faster)) + 1, step)]


def _table(report: Report) -> Iterator[str]:
    """The same numbers and more as a table, for screen readers too."""
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in HEADS)
    yield '<h2 id="numbers">Numbers</h2>'
    yield (
        "<p>Times in microseconds per call (median). The shares are of the copy bandwidth and of the rate of matrix "
        "products that were measured on the same machine. A copy writes as much as it reads, so a module that reads "
        "more than it writes can slightly exceed its rate.</p>"
    )
    yield '<div class="table" role="region" aria-labelledby="numbers" tabindex="0"><table>'
    yield f"<thead><tr>{heads}</tr></thead><tbody>"
    for row in report.rows:
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(row))}</tr>"
    yield "</tbody></table></div>"
    reasons = [*failures(report), *mismatches(report)]
    if reasons:
        yield f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in reasons)}</ul>"

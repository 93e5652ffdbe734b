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
from regplug.commands.html import document
from regplug.format.single_file import write_files

MODE_TITLES = {"eager": "Eager", "torchscript": "TorchScript", "compile": "torch.compile"}
PLACE_TITLES = {"contiguous": "contiguous", "slice": "register slice"}
CHARACTER = 6.8  # a digit's width at the picture's font size, with some room
PLOT, LINE, TOP = 170, 22, 20  # widths and heights of a picture, in its own units


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
    return document(
        title(report),
        [
            f"<h1>{name.replace('.', '.<wbr/>')}</h1>",
            f"<p>{escape(environment(report))}.</p>",
            "<p>How many times faster, as the median over pairs of adjacent blocks. Right of the line at 1 is faster, "
            "left of it is slower; the thin line spans the quartiles. The scale is logarithmic. Inference is "
            "in inference mode with frozen parameters, forward under no_grad with trainable ones.</p>",
            *_sections(report),
            *_table(report),
        ],
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

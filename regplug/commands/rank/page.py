"""The HTML page of a ranking, in one file: differences to the best, score against cost, and the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

from regplug.commands.bench.report import Spread
from regplug.commands.html import document
from regplug.commands.rank.choices import CONSTANT
from regplug.commands.rank.ranking import STRATEGY, RankedRow, Ranking
from regplug.commands.rank.table import cells, failures, heads, origin
from regplug.format.single_file import write_files

CHARACTER = 6.8  # a character's width at the pictures' font size, with some room
LINE, TOP, PLOT = 22, 20, 330
WIDE, HIGH, EDGE = 430, 260, 46  # the picture of score against cost, and the room for its numbers
LABEL_HEIGHT = 13
Axis = Callable[[RankedRow], "float | None"]


def write_page(path: Path, ranking: Ranking) -> None:
    """Write the page atomically: an existing page is replaced whole, or kept.

    Raises:
        ExportError: The place is not a file, or the system refuses.
    """
    write_files({path: page(ranking).encode()}, force=True)


def page(ranking: Ranking) -> str:
    """The page as text: HTML that is also well-formed XML, without scripts and external addresses."""
    return document(
        "Which readout",
        [
            "<h1>Which readout</h1>",
            f"<p>{escape(origin(ranking))}.</p>",
            f'<p class="said">{escape(ranking.sentence)}</p>',
            *_differences(ranking),
            *_costs(ranking),
            *_table(ranking),
        ],
    )


def _differences(ranking: Ranking) -> Iterator[str]:
    # a constant is far from all others, which would be one dot on its scale
    rows = [row for row in ranking.rows if row.score is not None and row.name != CONSTANT]
    if not rows:
        return
    yield '<h2 id="differences">Differences to the best score</h2>'
    yield (
        "<p>Each line is the interval of a difference; all of them hold together in 95 % of such experiments. A "
        "strategy whose line reaches zero cannot be told apart from the best.</p>"
    )
    yield f'<figure class="wide">{_difference_picture(ranking, rows)}</figure>'


def _difference_picture(ranking: Ranking, rows: Sequence[RankedRow]) -> str:
    ends = [0.0] + [end for row in rows if row.to_best for end in (row.to_best.low, row.to_best.high)]
    if ranking.margin is not None:
        ends += [-ranking.margin, ranking.margin]
    finite = [end for end in ends if math.isfinite(end)]
    low, high = min(finite), max(finite)
    room = 0.05 * (high - low) or 1.0
    low, high = low - room, high + room
    left = round(max(len(row.name) for row in rows) * CHARACTER) + 14
    values = [_value(ranking, row) for row in rows]
    width = left + PLOT + round(max(map(len, values)) * CHARACTER) + 12
    height = TOP + LINE * len(rows) + 2

    def x(value: float) -> float:
        return round(left + PLOT * (value - low) / (high - low), 1)

    drawn = []
    if ranking.margin is not None:
        start = x(-ranking.margin)
        drawn.append(
            f'<rect class="b" x="{start}" y="{TOP}" width="{x(ranking.margin) - start:.1f}" height="{height - TOP}"/>'
        )
    for tick in ticks(low, high):
        kind = "o" if tick == 0 else "g"
        drawn.append(f'<line class="{kind}" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP - 4}" y2="{height}"/>')
        drawn.append(f'<text class="k m" x="{x(tick)}" y="12">{_number(ranking, tick)}</text>')
    said = []
    for index, (row, value) in enumerate(zip(rows, values, strict=True)):
        middle = TOP + LINE * index + 11
        kind = "" if row.kind == STRATEGY else ' class="k"'
        drawn.append(f'<text{kind} x="0" y="{middle + 4}">{escape(row.name)}</text>')
        drawn.append(f'<text class="e" x="{width}" y="{middle + 4}">{escape(value)}</text>')
        said.append(f"{row.name}: {value}")
        if row.to_best is None or not math.isfinite(row.to_best.low):
            drawn.append(f'<circle class="f" cx="{x(0)}" cy="{middle}" r="4"/>')
            continue
        ends_of = x(row.to_best.low), x(row.to_best.high)
        dot = "s" if row.to_best.high < 0 else "f"
        drawn.append(
            f'<path class="w" d="M{ends_of[0]} {middle}H{ends_of[1]}M{ends_of[0]} {middle - 3}v6M{ends_of[1]} '
            f'{middle - 3}v6"/><circle class="{dot}" cx="{x(row.to_best.difference)}" cy="{middle}" r="4"/>'
        )
    return _svg("differences", "Differences to the best score", said, width, height, drawn)


def _value(ranking: Ranking, row: RankedRow) -> str:
    if row.to_best is None:
        return "best"
    return f"{_number(ranking, row.to_best.difference)} ({_number(ranking, row.to_best.low)} to " + (
        f"{_number(ranking, row.to_best.high)})"
    )


def _number(ranking: Ranking, difference: float) -> str:
    return f"{100 * difference:+.3g}" if ranking.metric == "accuracy" else f"{difference:+.3g}"


def _costs(ranking: Ranking) -> Iterator[str]:
    """Score against each cost that at least two strategies have."""
    runtimes = dict.fromkeys(name for row in ranking.rows if row.cost for name in row.cost.microseconds)
    axes: list[tuple[str, Axis]] = [(f"microseconds of a call, {name}", _time_in(name)) for name in runtimes]
    axes += [
        ("FLOPs of one sample", lambda row: row.cost.flops if row.cost else None),
        ("parameters", lambda row: row.cost.parameters if row.cost else None),
    ]
    figures = []
    for index, (name, axis) in enumerate(axes):
        placed = [
            (number, row, found)
            for number, row in enumerate(ranking.rows, 1)
            if row.score is not None and (found := axis(row))
        ]
        if len(placed) > 1:
            picture = _cost_picture(ranking, placed, f"cost{index}", f"{ranking.metric} against {name}")
            figures.append(f"<figure><figcaption>{ranking.metric} against {name}</figcaption>{picture}</figure>")
    if figures:
        yield '<h2 id="costs">Score against cost</h2>'
        yield (
            "<p>Numbers are the rows of the table below. Each line is the 95 % interval of one score alone: whether "
            "two strategies differ is in the picture above, not in these lines. The scale of cost is logarithmic; what "
            "costs nothing is not drawn.</p>"
        )
        yield f'<div class="panels">{"".join(figures)}</div>'


def _time_in(runtime: str) -> Axis:
    def median(row: RankedRow) -> float | None:
        found = row.cost.microseconds.get(runtime) if row.cost else None
        return found.median if isinstance(found, Spread) else None

    return median


def _cost_picture(ranking: Ranking, placed: Sequence[tuple[int, RankedRow, float]], name: str, title: str) -> str:
    scores = [end for _, row, _ in placed for end in (row.low, row.high) if end is not None]
    costs = [cost for *_, cost in placed]
    bottom, top = min(scores), max(scores)
    room = 0.05 * (top - bottom) or 0.05
    bottom, top = bottom - room, top + room
    cheap, dear = min(costs) / 1.3, max(costs) * 1.3

    def x(cost: float) -> float:
        return round(EDGE + (WIDE - EDGE - 20) * math.log(cost / cheap) / math.log(dear / cheap), 1)

    def y(score: float) -> float:
        return round(8 + (HIGH - 40) * (top - score) / (top - bottom), 1)

    drawn = []
    for tick in ticks(bottom, top):
        shown = f"{100 * tick:.3g} %" if ranking.metric == "accuracy" else f"{tick:.3g}"
        drawn.append(f'<line class="g" x1="{EDGE}" x2="{WIDE}" y1="{y(tick)}" y2="{y(tick)}"/>')
        drawn.append(f'<text class="k e" x="{EDGE - 5}" y="{y(tick) + 4}">{shown}</text>')
    for power in range(math.floor(math.log10(cheap)), math.ceil(math.log10(dear)) + 1):
        for tick in (10.0**power, 3 * 10.0**power):
            if cheap <= tick <= dear:
                drawn.append(f'<line class="g" x1="{x(tick)}" x2="{x(tick)}" y1="8" y2="{HIGH - 32}"/>')
                drawn.append(f'<text class="k m" x="{x(tick)}" y="{HIGH - 16}">{tick:.4g}</text>')
    said, taken = [], list[tuple[float, float]]()
    for number, row, cost in sorted(placed, key=lambda one: one[2]):
        at, middle, low, high = x(cost), y(row.score or 0), y(row.low or 0), y(row.high or 0)
        label = _free_place(at + 7, middle - 4, taken)
        drawn.append(
            f'<path class="w" d="M{at} {low}V{high}"/><circle class="f" cx="{at}" cy="{middle}" r="4"/>'
            f'<text x="{at + 7}" y="{label}">{number}</text>'
        )
        said.append(f"{row.name}: {ranking.shown(row.score or 0)} at {cost:.4g}")
    return _svg(name, title, said, WIDE, HIGH, drawn)


def _free_place(left: float, base: float, taken: list[tuple[float, float]]) -> float:
    """A height for a label where no other one is near; moved down until it is free."""
    while any(abs(left - one) < 2 * CHARACTER and abs(base - other) < LABEL_HEIGHT for one, other in taken):
        base += LABEL_HEIGHT
    taken.append((left, base))
    return round(base, 1)


def ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers between two."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next(factor for factor in (5, 2, 1, 0.5, 0.2) if (high - low) / (step * factor) >= 3)
    first = math.ceil(low / step)
    return [round(step * number, 12) + 0.0 for number in range(first, math.floor(high / step) + 1)]


def _svg(name: str, title: str, said: Sequence[str], width: float, height: float, drawn: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}t {name}d">'
        f'<title id="{name}t">{escape(title)}</title><desc id="{name}d">{escape("; ".join(said))}.</desc>'
        f"{''.join(drawn)}</svg>"
    )


def _table(ranking: Ranking) -> Iterator[str]:
    titles = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads(ranking))
    yield '<h2 id="numbers">Numbers</h2>'
    yield (
        "<p>The columns between the differences and cond_dim are controls: the same trained readout, given another "
        "sample's registers, the mean registers, or zeros.</p>"
    )
    yield '<div class="table" role="region" aria-labelledby="numbers" tabindex="0"><table>'
    yield f"<thead><tr>{titles}</tr></thead><tbody>"
    for number, row in enumerate(ranking.rows, 1):
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(ranking, number, row))}</tr>"
    yield "</tbody></table></div>"
    if lines := [*failures(ranking), *ranking.notes]:
        yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"

"""Charts of `stgs report` as inline SVG: lines, dots with intervals, and heat maps (tables with coloured cells).

Sizes are in SVG units, which are CSS pixels where a chart has its natural width. Colours come from the page's style, so
that one picture serves light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.report_html import Html, tag

Weight = Literal["", "thick", "faint"]
STYLES = 6  # series styles s0 to s5 of the page
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 26, 40
# Of the names at the ends of lines: width of a letter, and distance between two names.
_LETTER, _LINE_HEIGHT = 6.8, 12.5


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from `low` to `high`, low < high. whole: ticks at integers. log: both above 0, ticks at powers of ten, or
    with `whole` at 1, 2 and 5 times these. named: ticks that are given, with their names.
    """

    label: str
    low: float
    high: float
    log: bool = False
    whole: bool = False
    named: tuple[tuple[float, str], ...] = ()

    def place(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values on the axis and their labels."""
        if self.named:
            return list(self.named)
        if self.log and self.whole:
            values = [factor * 10**power for power in range(13) for factor in (1, 2, 5)]
            return [(float(value), f"{value:,}") for value in values if self.low <= value <= self.high]
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            keep = max(1, math.ceil(len(powers) / 5))
            return [(10.0**power, f"1e{power}" if power else "1") for power in powers if power % keep == 0]
        step = _round_step((self.high - self.low) / 5)
        step = max(step, 1.0) if self.whole else step
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [(index * step, f"{index * step:.{decimals}f}") for index in range(first, last + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def fitted_axis(
    label: str, values: Sequence[float], *, least: float = 0.0, cap: float = math.inf, log: bool = False
) -> Axis:
    """An axis that holds all finite values, with round ends.

    least: the smallest extent, so that noise is not blown up. cap: where the axis ends at most (1 for an AUC). log:
    values at or below 0 are left out, and the ends are powers of ten.
    """
    kept = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if log:
        low, high = (min(kept), max(kept)) if kept else (0.1, 1.0)
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return Axis(label, 10.0**first, 10.0 ** max(last, first + 1), log=True)
    low, high = (min(kept), max(kept)) if kept else (0.0, 1.0)
    missing = max(least, 1e-9 * max(abs(low), abs(high)), 1e-12) - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
        low, high = low - max(0.0, high - cap), min(high, cap)
    step = _round_step((high - low) / 5)
    return Axis(label, math.floor(low / step + 1e-6) * step, min(math.ceil(high / step - 1e-6) * step, cap))


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line. x, y: its points; where y is not finite (or not above 0 on a log axis) the line is broken.

    style: index of its colour and dashes. hint: what the pointer shows over it. weight: `thick` for what matters most,
    `faint` for what stands behind. name: written at the line's end, if there is one. dots: a hint for each point, which
    is then drawn as a dot. line: whether the points are joined. bounds: low and high of each point's interval, drawn as
    a bar; not where one of them is not finite.
    """

    x: Sequence[float]
    y: Sequence[float]
    style: int
    hint: str
    weight: Weight = ""
    name: str = ""
    dots: Sequence[str] = ()
    line: bool = True
    bounds: Sequence[tuple[float, float]] = ()


def line_chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    width: int = 300,
    height: int = 205,
    title: str = "",
    diagonal: bool = False,
) -> Html:
    """Lines over two axes. diagonal: from corner to corner, the ROC curve of a coin."""
    longest = max((len(line.name) for line in series), default=0)
    left, right = _LEFT, width - _RIGHT - longest * _LETTER
    top, bottom = _TOP if title else 10, height - _BOTTOM

    def at(px: float, py: float) -> tuple[float, float]:
        return left + x.place(px) * (right - left), bottom - y.place(py) * (bottom - top)

    parts: list[object] = [_axes(x, y, left, right, top, bottom)]
    if title:
        parts.append(tag("text", title, x=left, y=top - 10, class_="title"))
    if diagonal:
        parts.append(tag("line", x1=left, y1=bottom, x2=right, y2=top, class_="diagonal"))
    for line in series:
        class_ = f"series s{line.style % STYLES} {line.weight}".rstrip()
        usable = [math.isfinite(value) and (value > 0 or not y.log) for value in line.y]
        points = [at(*pair) if good else None for *pair, good in zip(line.x, line.y, usable, strict=True)]
        if line.line:
            parts.append(tag("path", tag("title", line.hint), d=_path(points), class_=class_))
        bars = [(at(px, low), at(px, high)) for px, (low, high) in zip(line.x, line.bounds, strict=False)]
        parts.append(_dots(points, bars, line))
    if longest:
        ends = [(line, [height for height in line.y if math.isfinite(height)]) for line in series if line.name]
        heights = [(at(x.high, values[-1])[1], line) for line, values in ends if values]
        parts += _end_names(heights, right + 5, top, bottom)
    hints = [hint for line in series for hint in ([line.hint] if line.hint else line.dots)]
    label = f"{title or y.label} over {x.label}: " + "; ".join(hints)
    return tag("svg", parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def _dots(
    points: Sequence[tuple[float, float] | None],
    ends: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    line: Series,
) -> Html | None:
    """The points of a line with their hints, in front of the bars of their intervals."""
    if not line.dots:
        return None
    bars = [f"M{_short(x)} {_short(low)}V{_short(high)}" for (x, low), (_, high) in ends if math.isfinite(low + high)]
    style = f"s{line.style % STYLES}"
    parts = [tag("path", d="".join(bars), class_=f"series {style}", style="stroke-dasharray:none")] if bars else []
    radius = 5 if line.weight == "thick" else 3
    for place, hint in zip(points, line.dots, strict=True):
        if place is not None:
            dot = tag("circle", tag("title", hint), cx=_short(place[0]), cy=_short(place[1]), r=radius)
            parts.append(tag("g", dot, class_=f"{style} dot", style=_dot_look(line.style)))
    return tag("g", parts)


def _dot_look(style: int) -> str:
    """Discs, and rings where the colours begin again."""
    if style < STYLES:
        return "stroke:none;fill-opacity:.75"
    return "fill:none;stroke:currentColor;stroke-width:1.6;stroke-dasharray:none"


def _end_names(heights: Sequence[tuple[float, Series]], left: float, top: float, bottom: float) -> list[Html]:
    """The lines' names beside their ends, moved apart where they would overlap, in the order of the ends."""
    ranked = sorted(heights, key=lambda item: item[0])
    gap = min(_LINE_HEIGHT, (bottom - top) / max(len(ranked) - 1, 1))
    placed: list[float] = []
    for height, _ in ranked:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    # What was pushed below the axis pushes its neighbours up again.
    limit = bottom
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    names = []
    for height, (_, line) in zip(placed, ranked, strict=True):
        class_ = f"s{line.style % STYLES} {line.weight}".rstrip()
        names.append(tag("text", line.name, x=left, y=_short(height), dy="0.35em", class_=class_))
    return names


def _axes(x: Axis, y: Axis, left: float, right: float, top: float, bottom: float) -> Html:
    parts: list[object] = []
    for value, text in y.ticks():
        height = _short(bottom - y.place(value) * (bottom - top))
        parts.append(tag("line", x1=left, y1=height, x2=right, y2=height, class_="tick"))
        parts.append(tag("text", text, x=left - 6, y=height, dy="0.35em", text_anchor="end"))
    for value, text in x.ticks():
        across = _short(left + x.place(value) * (right - left))
        parts.append(tag("line", x1=across, y1=bottom, x2=across, y2=bottom + 4, class_="axis"))
        parts.append(tag("text", text, x=across, y=bottom + 17, text_anchor="middle"))
    parts.append(tag("path", d=f"M{left} {top}V{bottom}H{right}", class_="axis"))
    parts.append(tag("text", x.label, x=(left + right) / 2, y=bottom + 34, text_anchor="middle"))
    if y.label:
        middle = (top + bottom) / 2
        turned = f"rotate(-90 12 {middle})"
        parts.append(tag("text", y.label, x=12, y=middle, text_anchor="middle", transform=turned))
    return tag("g", parts)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Path through points, to a tenth of a pixel; points inside a straight horizontal or vertical run are left out."""
    pieces: list[str] = []
    run: list[tuple[str, str]] = []

    def flush() -> None:
        if run:
            pieces.append("M" + "L".join(f"{px} {py}" for px, py in run))
        run.clear()

    for point in points:
        if point is None:
            flush()
            continue
        here = (_short(point[0]), _short(point[1]))
        if run and run[-1] == here:
            continue
        if len(run) > 1 and any(run[-2][axis] == run[-1][axis] == here[axis] for axis in (0, 1)):
            run.pop()
        run.append(here)
    flush()
    return "".join(pieces)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def legend(
    names: Mapping[str, int], *, rows: bool = False, note: str | None = None, dots: Collection[str] = ()
) -> Html:
    """Name -> style of series, with a piece of each line. rows: one below the other. note: a last entry without one.
    dots: names of those that are dots, not lines.
    """

    def piece(name: str, style: int) -> Html:
        class_ = f"s{style % STYLES}"
        if name in dots:
            return tag("g", tag("circle", cx=17, cy=5, r=4), class_=class_, style=_dot_look(style))
        return tag("line", x1=0, y1=5, x2=34, y2=5, stroke_width=3, class_=class_)

    items = [
        tag(
            "li",
            tag("svg", piece(name, style), viewBox="0 0 34 10", aria_hidden="true"),
            name,
        )
        for name, style in names.items()
    ]
    return tag("ul", items, None if note is None else tag("li", note), class_="legend rows" if rows else "legend")


@dataclass(frozen=True, kw_only=True, slots=True)
class DotRow:
    """A line of a dot chart. values: its dots with hints. chosen: value, low and high of one that is drawn large, and
    hint: what the pointer shows over it.
    """

    name: str
    values: Sequence[tuple[float, str]]
    chosen: tuple[float, float, float] | None
    style: int
    hint: str = ""


def dot_chart(
    rows: Sequence[DotRow],
    x: Axis,
    *,
    width: int = 760,
    row_height: int = 40,
    left: int = 150,
    mark: float | None = None,
) -> Html:
    """Dots over one axis, a row for each group; the chosen one as a diamond with its interval.

    left: room for the names of the rows. mark: a value of the axis at which a line stands, such as chance.
    """
    right, top = width - _RIGHT, 8
    bottom = top + row_height * len(rows)
    parts: list[object] = []
    for value, text in x.ticks():
        across = _short(left + x.place(value) * (right - left))
        parts.append(tag("line", x1=across, y1=top, x2=across, y2=bottom, class_="tick"))
        parts.append(tag("text", text, x=across, y=bottom + 16, text_anchor="middle"))
    parts.append(tag("text", x.label, x=(left + right) / 2, y=bottom + 34, text_anchor="middle"))
    if mark is not None:
        across = _short(left + x.place(mark) * (right - left))
        parts.append(tag("line", x1=across, y1=top, x2=across, y2=bottom, class_="axis"))
    for index, row in enumerate(rows):
        middle = top + row_height * (index + 0.5)
        parts.append(tag("text", row.name, x=left - 12, y=middle, dy="0.35em", text_anchor="end", class_="strong"))
        for number, (value, hint) in enumerate(row.values):
            # Spread over the row in a fixed pattern, so that equal values stay apart.
            height = _short(middle + (number % 5 - 2) * row_height * 0.13)
            dot = tag("circle", tag("title", hint), cx=_short(left + x.place(value) * (right - left)), cy=height, r=3)
            parts.append(tag("g", dot, class_=f"s{row.style} dot", style="stroke:none;fill-opacity:.5"))
        if row.chosen is not None:
            value, low, high = (left + x.place(bound) * (right - left) for bound in row.chosen)
            diamond = (
                f"M{value - 7:.1f} {middle}L{value:.1f} {middle - 7}L{value + 7:.1f} {middle}L{value:.1f} {middle + 7}Z"
            )
            bar = f"M{low:.1f} {middle - 5}v10m0-5H{high:.1f}m0-5v10"
            parts.append(tag("path", d=bar, class_="axis", style="stroke:var(--ink);stroke-width:1.6"))
            look = "stroke:var(--paper);stroke-dasharray:none"
            shown = tag("title", row.hint) if row.hint else None
            parts.append(tag("path", shown, d=diamond, class_=f"s{row.style}", style=look))
    label = f"{x.label}: " + ", ".join(row.name for row in rows)
    return tag("svg", parts, viewBox=f"0 0 {width} {bottom + 40}", role="img", aria_label=label)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A cell of a heat map: the value that colours it, its text, a second line, and what the pointer shows."""

    value: float
    text: str
    small: str = ""
    hint: str = ""
    found: bool = False


def heat_map(
    row_names: Sequence[object],
    column_names: Sequence[object],
    cells: Mapping[tuple[int, int], Cell],
    *,
    least: float = 0.0,
    missing: str = "none",
    class_: str = "heat",
) -> Html:
    """A table of coloured cells, light for the smallest value and dark for the largest.

    cells: by (row, column); the others show `missing`. least: smallest range of the colours, so that noise does not
    look like a trend.
    """
    values = [cell.value for cell in cells.values() if math.isfinite(cell.value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    lacking = max(0.0, least - (high - low))
    low, high = low - lacking / 2, high + lacking / 2
    head = tag("tr", tag("td", class_="corner"), [tag("th", name, scope="col") for name in column_names])
    body = []
    for row, name in enumerate(row_names):
        drawn = [_heat_cell(cells.get((row, column)), low, high, missing) for column in range(len(column_names))]
        body.append(tag("tr", tag("th", name, scope="row"), drawn))
    return tag("div", tag("table", tag("thead", head), tag("tbody", body), class_=class_), class_="scroll")


def _heat_cell(cell: Cell | None, low: float, high: float, missing: str) -> Html:
    if cell is None:
        return tag("td", missing, class_="none")
    share = (cell.value - low) / (high - low) if high > low and math.isfinite(cell.value) else 0.5
    # From a pale to a dark blue of one hue: its lightness alone tells the order, to every kind of sight.
    colour = [round(a + (b - a) * share) for a, b in zip((226, 237, 250), (20, 48, 122), strict=True)]
    ink = "#fff" if share > 0.6 else "#10151b"
    small = tag("small", cell.small) if cell.small else None
    style = f"background:rgb({colour[0]} {colour[1]} {colour[2]});color:{ink}"
    return tag("td", cell.text, small, class_="found" if cell.found else None, style=style, title=cell.hint or None)

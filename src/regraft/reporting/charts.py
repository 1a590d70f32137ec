"""Charts as inline SVG: functions from numbers to markup. Colours are the page's, so that light and dark both fit."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import ceil, floor, log10

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 290  # units of the drawing; it takes the width that the page gives it
LEFT, RIGHT, TOP, BOTTOM = 72, 30, 34, 52  # on small screens letters are larger, to 16 units
ROW, NAMED_ROW = 34, 50  # height of one interval, without and with a name above it
FLAT = 1e-12  # difference below which values are equal
EDGE = 30  # left and right of intervals
LEGEND = 22  # height of a row of names
LONGEST = 32  # letters of a name that are shown

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line through points, or points alone.

    Attributes:
        name: Shown below the chart; "" for none.
        points: Pairs of x and y, in the units of the axes.
        colour: Number of one of the page's colours.
        are_alone: Whether the points are drawn as dots, without a line.
        ranges: Low and high end of a vertical bar at each point, in the units of the y axis.
        radii: Of each dot, in units of the drawing.
    """

    name: str
    points: Sequence[Point]
    colour: int = 1
    are_alone: bool = False
    ranges: Sequence[Point] = ()
    radii: Sequence[float] = ()


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Attributes:
        label: What is measured along it.
        low: Value at its beginning.
        high: Value at its end.
        ticks: Values and their labels.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """A chart that stands by itself, in the page's light colours; a notebook draws it.

    Attributes:
        svg: As the functions of this module make it.
    """

    svg: Markup = field(repr=False)

    def _repr_svg_(self) -> str:
        height = int(re.findall(r'viewBox="0 0 \d+ (\d+)', self.svg)[0])
        root = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{WIDTH}" height="{height}"'
        ground = f'<style>{_style()}</style><rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
        return str(self.svg).replace("<svg", root, 1).replace(">", f">{ground}", 1)


@cache
def _style() -> str:
    """Return what the page's style says of drawings, its names of colours resolved."""
    css = files("regraft.reporting").joinpath("templates/style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): (#\w+)", css.partition("@media")[0]))
    rules = "".join(line for line in css.splitlines() if line.startswith(("svg .", "svg text")))
    return re.sub(r"var\(--(\w+)\)", lambda name: colours[name[1]], rules).replace("svg ", ".chart ")


def axis(label: str, values: Sequence[float], unit: str = "", *, from_zero: bool = False) -> Axis:
    """Make an axis that holds all values, with ticks at round numbers.

    Args:
        label: What is measured along it.
        values: One or more.
        unit: Written after the numbers.
        from_zero: Whether it begins at 0, or below where values do.
    """
    low, high = min(values), max(values)
    low = min(0.0, low) if from_zero else low
    if high - low < FLAT:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / 4)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    ticks = [(k * step, _number(k * step, step) + unit) for k in range(first, last + 1)]
    return Axis(label, first * step, last * step, ticks)


def _number(value: float, step: float) -> str:
    """Write a number with as many decimals as its neighbours, a step away, have."""
    return f"{value:.{-floor(log10(step))}f}" if value and 1e-5 <= step < 1 else f"{value:g}"


def whole_axis(label: str, last: int) -> Axis:
    """Make an axis from 1 to `last`, in whole numbers."""
    step = max(1, round(_round_step(last / 6)))
    ticks = [1, *range(step if step > 1 else 2, last + 1, step)]
    return Axis(label, 1, max(last, 2), [(tick, str(tick)) for tick in ticks])


def percent_axis(label: str, low: float = 0.0) -> Axis:
    """Make an axis of shares from `low`, 0..1, to 1, labelled in per cent."""
    step = 20 if low < 0.5 else 10 if low < 0.8 else 5
    ticks = [k for k in range(0, 101, step) if k / 100 >= low]
    return Axis(label, low, 1.0, [(k / 100, f"{k} %") for k in ticks])


def fifth_below(share: float) -> float:
    """Return where an axis of shares may begin: at 0, 20, 40, 60 or 80 per cent, as a share."""
    return min(4, floor(5 * share)) / 5


def power_axis(label: str, values: Sequence[float]) -> Axis:
    """Make an axis of values that are logarithms to base ten."""
    low, high = floor(min(values)), ceil(max(values))
    step = max(1, (high - low) // 6)
    return Axis(label, low, max(high, low + 1), [(k, f"{10.0**k:g}") for k in range(low, high + 1, step)])


def line_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, *, diagonal: bool = False) -> Markup:
    """Draw lines over one pair of axes.

    Args:
        title: What a reader who cannot see the chart is told.
        lines: In the order in which they are drawn.
        x: The horizontal axis.
        y: The vertical axis.
        diagonal: Whether there is a dashed line of x = y.
    """

    def at(point: Point) -> Point:
        across = LEFT + (point[0] - x.low) / (x.high - x.low) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (point[1] - y.low) / (y.high - y.low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(up, 1)

    parts = [_axes(x, y, at)]
    if diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        parts.append(_path([at((low, low)), at((high, high))], "ideal"))
    for line in lines:
        parts.append(_line(line, at))
    named = [line for line in lines if line.name] if len(lines) > 1 else []
    parts.append(_legend(named))
    return svg(title, HEIGHT + LEGEND * _num_rows(named), parts)


def interval_bars(title: str, rows: Sequence[tuple[str, float, float, float]], *, low: float = 0.0) -> Markup:
    """Draw shares with their intervals, one below the other.

    A name stands above its interval, with the value at its right; without one there is neither.

    Args:
        title: What a reader who cannot see the chart is told.
        rows: Name, low end, value and high end, the last three 0..1.
        low: Where the scale begins, 0..1.
    """
    row_height = NAMED_ROW if any(name for name, *_ in rows) else ROW
    height = row_height * len(rows) + 40
    scale: Callable[[float], float] = lambda share: round(  # noqa: E731
        EDGE + (share - low) / (1 - low) * (WIDTH - 2 * EDGE), 1
    )
    parts = []
    ticks = percent_axis("", low).ticks
    for value, label in ticks:
        parts.append(text(scale(value), height - 8, label, "middle"))
    for number, (name, start, value, end) in enumerate(rows):
        colour, y = f"c{number % 4 + 1}", 8 + row_height * (number + 1) - ROW / 2
        if name:
            parts.append(text(0, y - 16, shortened(name, LONGEST), "start", "name"))
            parts.append(text(WIDTH, y - 16, f"{100 * value:.1f} %", "end", "value"))
        for tick, _ in ticks:
            parts.append(tag("line", x1=scale(tick), x2=scale(tick), y1=y - 11, y2=y + 13, class_="grid"))
        parts.append(tag("line", x1=scale(start), x2=scale(end), y1=y, y2=y, class_=f"range {colour}"))
        parts.append(tag("circle", cx=scale(value), cy=y, r=6, class_=f"dot {colour}"))
    return svg(title, height, parts)


def _axes(x: Axis, y: Axis, at: Callable[[Point], Point]) -> Markup:
    parts = []
    for value, label in y.ticks:
        _, height = at((x.low, value))
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height, class_="grid"))
        parts.append(text(LEFT - 8, height + 5, label, "end"))
    for value, label in x.ticks:
        across, _ = at((value, y.low))
        parts.append(text(across, HEIGHT - BOTTOM + 20, label, "middle"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.label, "middle"))
    parts.append(text(0, 16, y.label, "start", "name"))
    return Markup("").join(parts)


def _line(line: Line, at: Callable[[Point], Point]) -> Markup:
    places = [at(point) for point in line.points]
    parts = [] if line.are_alone else [_path(places, f"line c{line.colour}")]
    for (x, _), (low, high) in zip(line.points, line.ranges, strict=False):
        (across, bottom), (_, top) = at((x, low)), at((x, high))
        parts.append(tag("line", x1=across, x2=across, y1=bottom, y2=top, class_=f"whisker c{line.colour}"))
    if line.are_alone or len(places) == 1:
        radii = line.radii or [4] * len(places)
        sized = zip(places, radii, strict=True)
        parts += [tag("circle", cx=x, cy=y, r=radius, class_=f"dot c{line.colour}") for (x, y), radius in sized]
    return Markup("").join(parts)


def _legend(lines: Sequence[Line]) -> Markup:
    """Write the names of the lines below the chart, in as many rows as they need."""
    parts = []
    for line, (row, left) in zip(lines, _places(lines), strict=True):
        y = HEIGHT + LEGEND * row + 14
        parts.append(tag("circle", cx=left + 5, cy=y - 5, r=4, class_=f"dot c{line.colour}"))
        parts.append(text(left + 14, y, shortened(line.name, LONGEST), "start", f"legend c{line.colour}"))
    return Markup("").join(parts)


def _places(lines: Sequence[Line]) -> list[tuple[int, float]]:
    """Return row and left end of each name."""
    places, row, left = [], 0, 4.0
    for line in lines:
        width = 9.2 * min(len(line.name), LONGEST) + 30
        if left + width > WIDTH and left > 4:
            row, left = row + 1, 4.0
        places.append((row, left))
        left += width
    return places


def _num_rows(lines: Sequence[Line]) -> int:
    return _places(lines)[-1][0] + 1 if lines else 0


def svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    """Make a drawing of these parts.

    Args:
        title: What a reader who cannot see it is told.
        height: In units of the drawing.
        parts: Elements, one drawn over the other.
    """
    return Markup('<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, title, Markup("").join(parts)
    )


def _path(places: Sequence[Point], kind: str) -> Markup:
    return tag("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in places), class_=kind)


def text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> Markup:
    """Make an element of words, which are escaped.

    Args:
        x: Where the anchor lies, in units of the drawing.
        y: Of the line that the words stand on, in units of the drawing.
        words: As they are shown.
        anchor: "start", "middle" or "end": which part of the words lies at x.
        kind: Class in the page's style.
    """
    attributes = {"x": x, "y": y, "text-anchor": anchor, "class": kind}
    return Markup(f"<text{_attributes(attributes)}>{escape(words)}</text>")  # noqa: S704  # escaped


def tag(name: str, **attributes: object) -> Markup:
    """Make an element without content; `_` stands for `-` in names of attributes."""
    named = {key.removesuffix("_").replace("_", "-"): value for key, value in attributes.items()}
    return Markup(f"<{name}{_attributes(named)}/>")  # noqa: S704  # a name of ours


def _attributes(values: dict[str, object]) -> Markup:
    """Return attributes as they are written. Thousands a page: `Markup.format` would take five times as long."""
    return Markup("".join(f' {escape(key)}="{escape(value)}"' for key, value in values.items()))  # noqa: S704  # escaped


def shortened(name: str, length: int) -> str:
    """Shorten a name to its beginning and end: what begins alike often ends otherwise.

    Args:
        name: Any text.
        length: Letters at most.
    """
    if len(name) <= length:
        return name
    end = length // 2
    return name[: length - end - 1] + "…" + name[-end:]


def _round_step(step: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)

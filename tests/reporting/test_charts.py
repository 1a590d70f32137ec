"""Charts: round ticks that hold every value, points inside the drawing, texts that do no harm."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.reporting.charts import (
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    Line,
    axis,
    fifth_below,
    interval_bars,
    line_chart,
    percent_axis,
    power_axis,
    whole_axis,
)

PER_LETTER = 4.5  # units at least that a letter of a label takes
HOSTILE = "</svg><script>alert(1)</script>\" onload='x' & {{7*7}}"

measured = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))
shares = st.floats(0, 1)


def parsed(svg):
    return ElementTree.fromstring(str(svg))


def places(svg):
    """Where points and ends of lines are drawn."""
    root, found = parsed(svg), []
    for one in root.iter("circle"):
        found.append((float(one.get("cx")), float(one.get("cy"))))
    for one in root.iter("line"):
        found += [(float(one.get(f"x{end}")), float(one.get(f"y{end}"))) for end in (1, 2)]
    for one in root.iter("polyline"):
        found += [tuple(map(float, pair.split(","))) for pair in one.get("points").split()]
    return found


def texts(svg):
    return ["".join(one.itertext()) for one in parsed(svg).iter("text")]


def is_inside(svg):
    _, _, width, height = map(float, parsed(svg).get("viewBox").split())
    return all(0 <= x <= width and 0 <= y <= height for x, y in places(svg))


def is_round(step):
    return round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5, 10)


@settings(deadline=None)
@given(st.lists(measured, min_size=1, max_size=20), st.booleans())
def test_an_axis_holds_all_values_between_round_ticks(values, from_zero):
    found = axis("loss", values, from_zero=from_zero)
    slack = 1e-6 * (found.high - found.low)
    assert found.low - slack <= min(values)
    assert max(values) <= found.high + slack
    assert not from_zero or found.low - slack <= 0
    ticks = [value for value, _ in found.ticks]
    steps = [b - a for a, b in pairwise(ticks)]
    assert 2 <= len(ticks) <= 7
    assert (ticks[0], ticks[-1]) == (found.low, found.high)
    assert all(step == pytest.approx(steps[0], rel=1e-4) for step in steps)
    assert is_round(steps[0])


@settings(deadline=None)
@given(st.floats(0.001, 1000), st.floats(0.001, 1000))
def test_ticks_are_told_apart_by_their_labels(low, growth):
    labels = [label for _, label in axis("loss", [low, low * (1 + growth)]).ticks]
    assert len(set(labels)) == len(labels)
    assert all(len(label) <= 10 for label in labels)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.booleans())
def test_equal_values_have_an_axis_too(value, from_zero):
    found = axis("loss", [value, value], from_zero=from_zero)
    assert found.low < found.high
    assert found.low <= value + 1e-6
    assert value - 1e-6 <= found.high


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_whole_numbers_begin_with_one_and_stay_whole(last):
    found = whole_axis("epoch", last)
    ticks = [value for value, _ in found.ticks]
    assert (found.low, found.high) == (1, max(last, 2))
    assert all(tick == int(tick) and label == str(int(tick)) for tick, label in found.ticks)
    assert ticks == sorted(set(ticks))
    assert ticks[0] == 1
    assert max(ticks) <= found.high
    assert last < 2 or len(ticks) >= 2
    assert len(ticks) <= 13


@settings(deadline=None)
@given(st.lists(st.floats(-12, 12), min_size=1, max_size=20))
def test_powers_of_ten_hold_all_values(values):
    found = power_axis("penalty", values)
    assert found.low <= min(values)
    assert max(values) <= found.high
    assert found.low < found.high
    assert all(float(label) == pytest.approx(10.0**tick) for tick, label in found.ticks)
    assert len(found.ticks) <= 13


@pytest.mark.parametrize("low", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_per_cent_begin_at_the_low_end_and_end_at_all(low):
    found = percent_axis("accuracy", low)
    assert [value for value, _ in found.ticks][:1] == [low]
    assert found.ticks[-1] == (1.0, "100 %")
    assert found.ticks[0][1] == f"{100 * low:.0f} %"


@settings(deadline=None)
@given(shares)
def test_shares_may_begin_at_the_fifth_below_them(share):
    found = fifth_below(share)
    assert round(5 * found) in range(5)
    assert found <= share
    assert share - found <= 0.2 + 1e-9


@pytest.mark.parametrize("top", [2e-4, 0.002, 0.5, 1.0, 40.0])
def test_ticks_of_an_axis_have_as_many_decimals_as_each_other(top):
    labels = [label for value, label in axis("rate", [0, top]).ticks if value]
    assert len({len(label.partition(".")[2]) for label in labels}) == 1
    assert not any("e" in label for label in labels)


def test_larger_dots_are_where_it_is_said():
    line = Line("", [(0.2, 0.1), (0.9, 1.0)], 1, True, radii=[3.0, 8.5])
    svg = line_chart("Calibration", [line], percent_axis("says"), percent_axis("is"))
    assert [float(one.get("r")) for one in parsed(svg).iter("circle")] == [3.0, 8.5]


def test_bars_with_names_tell_their_values():
    svg = interval_bars("Accuracy", [("frozen", 0.9, 0.948, 0.97), ("full", 0.8, 0.9, 0.95)], low=0.8)
    assert [one.text for one in parsed(svg).iter("text") if one.get("class") == "value"] == ["94.8 %", "90.0 %"]
    assert "80 %" in texts(svg)
    assert "60 %" not in texts(svg)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.tuples(measured, measured), min_size=1, max_size=30), min_size=1, max_size=4), st.booleans()
)
def test_points_land_inside_the_drawing(lines, are_alone):
    flat = [point for points in lines for point in points]
    x, y = axis("a", [a for a, _ in flat]), axis("b", [b for _, b in flat])
    drawn = [Line(f"line {i}", points, i + 1, are_alone) for i, points in enumerate(lines)]
    svg = line_chart("Everything", drawn, x, y)
    assert is_inside(svg)
    for one in parsed(svg).iter("polyline"):
        for pair in one.get("points").split():
            across, down = map(float, pair.split(","))
            assert LEFT <= across <= WIDTH - RIGHT
            assert TOP <= down <= HEIGHT


def test_higher_values_are_higher_and_later_ones_further_right():
    line = Line("", [(1, 0.0), (2, 0.5), (3, 1.0)])
    svg = line_chart("Accuracy", [line], whole_axis("epoch", 3), percent_axis("accuracy"))
    ((_, lowest), (_, middle), (_, highest)) = points = places_of_line(svg)
    assert points == sorted(points)
    assert lowest > middle > highest
    assert (lowest + highest) / 2 == pytest.approx(middle, abs=0.1)


def places_of_line(svg):
    (one,) = parsed(svg).iter("polyline")
    return [tuple(map(float, pair.split(","))) for pair in one.get("points").split()]


def test_a_single_point_is_a_dot():
    svg = line_chart("Loss", [Line("val", [(1, 0.3)])], whole_axis("epoch", 1), axis("loss", [0.3], from_zero=True))
    assert len(list(parsed(svg).iter("circle"))) == 1
    assert is_inside(svg)


def test_equal_values_are_a_level_line():
    points = [(1, 0.25), (2, 0.25), (3, 0.25)]
    svg = line_chart("Rate", [Line("", points)], whole_axis("epoch", 3), axis("rate", [0.25] * 3))
    assert len({y for _, y in places_of_line(svg)}) == 1
    assert is_inside(svg)


@settings(deadline=None)
@given(st.lists(st.tuples(shares, shares, shares).map(sorted), min_size=1, max_size=8))
def test_bars_are_inside_and_hold_their_dots(rows):
    svg = interval_bars("Accuracy", [(f"model {i}", *row) for i, row in enumerate(rows)])
    root = parsed(svg)
    assert is_inside(svg)
    bars = [one for one in root.iter("line") if "range" in one.get("class")]
    dots = list(root.iter("circle"))
    assert len(bars) == len(dots) == len(rows)
    for bar, dot in zip(bars, dots, strict=True):
        assert float(bar.get("x1")) <= float(dot.get("cx")) <= float(bar.get("x2"))
        assert float(bar.get("y1")) == float(bar.get("y2")) == float(dot.get("cy"))


def test_whiskers_and_the_dashed_line_are_inside():
    line = Line("", [(0.1, 0.0), (0.95, 1.0)], 1, True, [(0.0, 0.4), (0.7, 1.0)])
    svg = line_chart("Calibration", [line], percent_axis("says"), percent_axis("is"), diagonal=True)
    assert is_inside(svg)
    assert len([one for one in parsed(svg).iter("line") if "whisker" in one.get("class")]) == 2
    assert [one.get("class") for one in parsed(svg).iter("polyline")] == ["ideal"]


def charts_of(text):
    tick = Axis(text, 0, 1, [(0, text), (1, text)])
    yield line_chart(text, [Line(text, [(0, 0), (1, 1)]), Line("b", [(0, 1)])], tick, tick, diagonal=True)
    yield interval_bars(text, [(text, 0.1, 0.2, 0.3), ("b", 0.1, 0.2, 0.3)])


@pytest.mark.parametrize("number", [0, 1])
def test_every_text_is_escaped(number):
    svg = list(charts_of(HOSTILE))[number]
    root = parsed(svg)
    assert {one.tag for one in root.iter()} <= {"svg", "line", "polyline", "circle", "text"}
    assert root.get("aria-label") == HOSTILE
    assert any(text.startswith(HOSTILE[:6]) for text in texts(svg))
    assert not [name for one in root.iter() for name in one.keys() if name.startswith("on")]  # noqa: SIM118
    assert "<script" not in svg


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=40))
def test_any_name_makes_a_drawing_that_says_what_it_is(name):
    for svg in charts_of(name):
        root = parsed(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label") == name


FOUR = ["frozen resnet18", "frozen resnet50", "full resnet18", "full resnet50"]


def extent(one):
    """Left and right end of a text, as narrow as it may be."""
    x, width = float(one.get("x")), PER_LETTER * len(one.text or "")
    return {"start": (x, x + width), "middle": (x - width / 2, x + width / 2), "end": (x - width, x)}[
        one.get("text-anchor")
    ]


@pytest.mark.parametrize("names", [["val", "train"], ["frozen", "full", "scratch"], FOUR], ids=len)
def test_a_legend_names_every_line_inside_the_drawing(names):
    lines = [Line(name, [(1, 0.1), (2, 0.2)], i + 1) for i, name in enumerate(names)]
    svg = line_chart("Accuracy", lines, whole_axis("epoch", 2), percent_axis("accuracy"))
    found = [one for one in parsed(svg).iter("text") if "legend" in one.get("class")]
    assert sorted(one.text for one in found) == sorted(names)
    assert is_inside(svg)
    assert all(extent(one)[0] >= 0 for one in found)


@pytest.mark.parametrize("names", [["val", "train"], ["frozen", "full", "scratch"], FOUR], ids=len)
def test_no_two_texts_of_a_line_lie_on_each_other(names):
    lines = [Line(name, [(1, 0.1), (2, 0.2)], i + 1) for i, name in enumerate(names)]
    svg = line_chart("Accuracy", lines, whole_axis("epoch", 2), percent_axis("accuracy"))
    rows = {}
    for one in parsed(svg).iter("text"):
        rows.setdefault(one.get("y"), []).append(extent(one))
    for ends in map(sorted, rows.values()):
        assert all(left[1] <= right[0] for left, right in pairwise(ends))


def test_models_whose_names_begin_alike_are_told_apart():
    names = ["frozen tf_efficientnet_lite0", "frozen tf_efficientnet_lite1"]
    svg = interval_bars("Accuracy", [(name, 0.8, 0.9, 0.95) for name in names])
    shown = [one.text for one in parsed(svg).iter("text") if one.get("class") == "name"]
    assert len(set(shown)) == 2


def test_long_names_are_shortened():
    svg = interval_bars("Accuracy", [("x" * 10_000, 0.1, 0.2, 0.3), ("b", 0.1, 0.2, 0.3)])
    assert max(map(len, texts(svg))) <= 32
    assert len(svg) < 2000


def test_a_chart_that_stands_by_itself_brings_its_colours_along():
    """And touches nothing else on the page it may stand in."""
    svg = interval_bars(HOSTILE, [(HOSTILE, 0.2, 0.5, 0.9), ("b", 0.1, 0.4, 0.6)])
    drawn = Chart(svg)._repr_svg_()
    root = parsed(drawn)
    style = next(one for one in root.iter() if one.tag.endswith("style")).text
    assert "var(" not in style
    rules = [rule.strip() for rule in re.findall(r"([^{}]+)\{", style)]
    assert all(part.strip().startswith(".chart ") for rule in rules for part in rule.split(","))
    used = {kind for one in root.iter() for kind in one.get("class", "").split()} - {"chart"}
    assert used == {"grid", "tick", "name", "value", "range", "dot", "c1", "c2"}
    for kind in used - {"tick"}:  # ticks are as any other text
        assert f".{kind}" in style, kind
    assert (root.get("width"), root.get("height")) == tuple(root.get("viewBox").split()[2:])
    assert root.get("aria-label") == HOSTILE
    assert not [one for one in root.iter() if one.tag.endswith("script")]

"""The confusion matrix as a chart says what was counted."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import tree_of
from regraft.core.errors import DataError
from regraft.reporting.confusion_matrix import confusion_chart


def judged(names, counts):
    return SimpleNamespace(dataset=SimpleNamespace(classes=tuple(names)), confusion=np.array(counts))


def test_each_cell_says_its_count_and_is_as_dark_as_its_share():
    chart = confusion_chart(judged(["ants", "<b>"], [[3, 1], [0, 4]]))
    svg = tree_of(chart._repr_svg_())
    shares = [float(cell.get("fill-opacity")) for cell in svg.iter("rect") if cell.get("fill-opacity")]
    assert shares == [0.75, 0.25, 0.0, 1.0]
    said = [one.text for one in svg.iter("text")]
    assert [word for word in said if word.isdigit()] == ["1", "3", "1", "2", "4"]
    assert "<b> 2" in said


def test_nothing_lies_outside_of_the_drawing():
    names = [f"a rather long name of a class {i}" for i in range(20)]
    svg = str(confusion_chart(judged(names, np.eye(20, dtype=int))).svg)
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    ends = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
    assert len(ends) == 400
    assert all(float(x) + float(w) <= width and float(y) + float(h) <= height for x, y, w, h in ends)


def test_classes_without_photos_and_too_many_classes():
    assert "0.00" in confusion_chart(judged(["a", "b"], [[0, 0], [0, 2]])).svg
    with pytest.raises(DataError, match="at most 20"):
        confusion_chart(judged([f"c{i}" for i in range(21)], np.eye(21, dtype=int)))

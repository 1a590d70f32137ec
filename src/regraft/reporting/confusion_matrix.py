"""The confusion matrix as a chart: rows are what photos are, columns what the model predicted."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from regraft.core.errors import DataError
from regraft.evaluation.evaluate import Evaluation
from regraft.reporting.charts import LONGEST, WIDTH, Chart, shortened, svg, tag, text

MOST = 20  # classes that can still be read
NAMES, TOP, LARGEST = 120, 40, 44  # width of the names, height above the cells, side of a cell at most


def confusion_chart(evaluation: Evaluation) -> Chart:
    """Draw how many photos of each class were taken for which.

    A row's cells are the darker, the larger their share of it.

    Args:
        evaluation: Of at most 20 classes.

    Raises:
        DataError: There are more than 20 classes; `Evaluation.mistaken` lists what is taken for what instead.
    """
    names = evaluation.dataset.classes
    if len(names) > MOST:
        raise DataError(
            f"A matrix of {len(names)} classes cannot be read. Expected at most {MOST}; "
            "evaluation.mistaken lists what is taken for what, the most frequent first."
        )
    return Chart(matrix("What is taken for what", names, evaluation.confusion))


def matrix(title: str, names: Sequence[str], counts: np.ndarray) -> Markup:
    """Draw a square for each count, with numbers of the columns' classes above and names at the left.

    Args:
        title: What a reader who cannot see it is told.
        names: Of the C classes.
        counts: `(C, C)` int64, a row for each true class.
    """
    side = min(LARGEST, (WIDTH - NAMES) / len(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = [text(NAMES, TOP - 22, "said", "start", "name")]
    for i, name in enumerate(names):
        y, x = TOP + i * side + side / 2 + 5, NAMES + i * side + side / 2
        parts.append(text(NAMES - 8, y, f"{shortened(name, LONGEST // 2)} {i + 1}", "end", "name"))
        parts.append(text(x, TOP - 6, str(i + 1), "middle"))
        for j, count in enumerate(counts[i]):
            colour, left = "c1" if i == j else "c2", NAMES + j * side
            share = f"{shares[i, j]:.2f}"
            place = {"x": left + 1, "y": TOP + i * side + 1, "width": side - 2, "height": side - 2, "rx": 3}
            parts.append(tag("rect", **place, fill_opacity=share, class_=f"dot {colour}"))
            if count:
                parts.append(text(left + side / 2, y, str(count), "middle", "value"))
    return svg(title, TOP + side * len(names) + 8, parts)

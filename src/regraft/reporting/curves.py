"""What a report draws as curves: how a model learned, and how far its probabilities can be trusted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.core.statistics import wilson_interval
from regraft.evaluation.evaluate import Evaluation
from regraft.reporting.charts import Axis, Line, axis, fifth_below, line_chart, percent_axis, power_axis, whole_axis

NUM_BINS = 10

Context = dict[str, Any]


def learning_part(manifest: Context) -> Context:
    """Show how a model learned: curves over epochs, or over the penalty for a head that was fitted without epochs.

    Args:
        manifest: Of the model's bundle.

    Returns:
        A text and charts, for the page's template.
    """
    provenance = manifest["provenance"]
    if history := provenance.get("history"):
        return {"text": _epochs_text(provenance), "charts": history_charts({"": history})}
    curve = provenance.get("head", {}).get("curve", [])
    if not curve:
        return {"text": "The head was solved on too few photos to cross-validate its strength.", "charts": []}
    points = [(float(np.log10(point["penalty"])), point["log_loss"]) for point in curve]
    chosen = provenance["head"]["penalty"]
    best = [point for point in points if abs(point[0] - np.log10(chosen)) < 1e-9]
    x = power_axis("penalty on large weights", [a for a, _ in points])
    y = axis("log loss", [b for _, b in points])
    svg = line_chart("Log loss by penalty", [Line("cross-validated", points), Line("chosen", best, 2, True)], x, y)
    rows = [(f"{p['penalty']:.3g}", f"{p['log_loss']:.3f}", f"{p['num_right']} of {p['n']}") for p in curve]
    header = ("penalty", "log loss", "right")
    caption = "Each penalty judged by photos that had no part in solving the head; the lowest is taken."
    text = (
        "The backbone ran once over every photo and stayed as it was; the head was solved, so there are no epochs. "
        f"Its penalty, {chosen:.3g}, was chosen by cross-validation on the photos to learn from."
    )
    return {"text": text, "charts": [{"svg": svg, "caption": caption, "header": header, "rows": rows}]}


def _epochs_text(provenance: Context) -> str:
    first = "All layers" if provenance["mode"] == "full" else "The network"
    text = f"{first} learned for {len(provenance['history'])} epochs; that of epoch {provenance['epoch']} is delivered."
    return text + (f" It stopped early: {provenance['stopped']}." if provenance.get("stopped") else "")


def history_charts(histories: dict[str, Sequence[Context]]) -> list[Context]:
    """Draw loss, accuracy and learning rate over epochs.

    Args:
        histories: Rows of history by name of a training; "" for a single one.
    """
    epochs = [row["epoch"] for rows in histories.values() for row in rows]
    x = whole_axis("epoch", max(epochs))
    charts = []
    for what, label in (("loss", "loss"), ("accuracy", "accuracy"), ("learning_rate", "learning rate")):
        lines = []
        for number, (name, rows) in enumerate(histories.items()):
            parts = [("val", f"val_{what}"), ("train", f"train_{what}")] if what != "learning_rate" else [("", what)]
            for kind, (part, key) in enumerate(parts[: 1 if len(histories) > 1 else 2]):
                points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
                if points:
                    lines.append(Line(name or part, points, (number if name else kind) % 4 + 1))
        if lines:
            charts.append(_history_chart(what, label, lines, x))
    return charts


def _history_chart(what: str, label: str, lines: Sequence[Line], x: Axis) -> Context:
    values = [value for line in lines for _, value in line.points]
    y = percent_axis(label, fifth_below(min(values))) if what == "accuracy" else axis(label, values, from_zero=True)
    rows = [(line.name or label, f"{epoch:g}", f"{value:.4g}") for line in lines for epoch, value in line.points]
    svg = line_chart(f"{label} over epochs", lines, x, y)
    return {"svg": svg, "caption": f"{label} after each epoch", "header": ("", "epoch", label), "rows": rows}


def trust_part(evaluation: Evaluation, manifest: Context) -> Context:
    """Show what probabilities are worth: stated against right, and errors where only the surest answers are given.

    Args:
        evaluation: The model's answers.
        manifest: Of the model's bundle.

    Returns:
        A text and charts, for the page's template.
    """
    p, correct = evaluation.probabilities, evaluation.correct
    confidence, temperature = p.max(axis=1), manifest["temperature"]
    text = f"On average they are off by {100 * evaluation.ece:.1f} points on these photos."
    if temperature != 1:
        before = evaluation.uncalibrated
        text += (
            f" A temperature of {temperature:.2f}, found on photos that are not scored here, brought the calibration "
            f"error from {100 * before['ece']:.1f} to {100 * evaluation.ece:.1f} % and the log loss from "
            f"{before['log_loss']:.3f} to {evaluation.log_loss:.3f}."
        )
    return {"text": text, "charts": [_reliability(confidence, correct), _risk_coverage(confidence, correct)]}


def _reliability(confidence: np.ndarray, correct: np.ndarray) -> Context:
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    points, ranges, radii, rows = [], [], [], []
    for number in np.unique(bins):
        inside = bins == number
        mean, num_right, n = float(confidence[inside].mean()), int(correct[inside].sum()), int(inside.sum())
        points.append((mean, num_right / n))
        ranges.append(wilson_interval(num_right, n))
        radii.append(round(3 + 6 * (n / len(correct)) ** 0.5, 1))
        rows.append((f"{number * 10} to {number * 10 + 10} %", f"{100 * mean:.1f} %", f"{num_right} of {n}"))
    x, y = percent_axis("what it says"), percent_axis("what is right")
    svg = line_chart("Calibration", [Line("", points, 1, True, ranges, radii)], x, y, diagonal=True)
    caption = (
        "Photos by the probability of their answer, more in a larger dot. On the dashed line, 80 % sure is right in "
        "80 % of cases."
    )
    return {"svg": svg, "caption": caption, "header": ("sure", "mean", "right"), "rows": rows}


def _risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> Context:
    order = np.argsort(-confidence, kind="stable")
    n = len(order)
    errors = np.cumsum(~correct[order]) / np.arange(1, n + 1)
    places = np.unique(np.linspace(1, n, min(n, 60)).round().astype(int))
    points = [(k / n, float(errors[k - 1])) for k in places]
    x = percent_axis("photos answered, the surest first")
    top = max(0.02, max(error for _, error in points))
    y = axis("wrong among them", [0, 100 * top], " %")
    line = Line("", [(share, 100 * error) for share, error in points], 2)
    svg = line_chart("Errors among the surest answers", [line], x, y)
    chosen = [k for k in (n // 10, n // 4, n // 2, 3 * n // 4, 9 * n // 10, n) if k]
    rows = [
        (f"{100 * k / n:.0f} %", f"{100 * confidence[order[k - 1]]:.1f} %", f"{100 * errors[k - 1]:.1f} %")
        for k in dict.fromkeys(chosen)
    ]
    caption = "How many of its answers are wrong if it answers only where it is surest."
    return {"svg": svg, "caption": caption, "header": ("answered", "at least so sure", "wrong"), "rows": rows}

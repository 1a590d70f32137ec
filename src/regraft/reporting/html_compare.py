"""What a comparison shows: models side by side, whether they really differ, and the photos on which they disagree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np

from regraft.bundle.bundle import Bundle
from regraft.core.errors import DataError
from regraft.evaluation.comparison import Pair
from regraft.evaluation.evaluate import Evaluation
from regraft.reporting.charts import Chart, fifth_below, interval_bars
from regraft.reporting.curves import Context, history_charts
from regraft.reporting.html_report import CARD, thumb
from regraft.reporting.page import render

NUM_PHOTOS = 12


def compared_html(
    title: str,
    evaluations: Mapping[str, Evaluation],
    summaries: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[Pair],
    reports: Mapping[str, str],
) -> str:
    """Write the page of a comparison.

    Args:
        title: Of the page.
        evaluations: Of each model by name, all on the same photos.
        summaries: Of each model's run by name, as `train --json` has it.
        pairs: Every two of the models, tested.
        reports: Links to the models' own reports, by name.
    """
    rows = []
    for name, evaluation in evaluations.items():
        figures = {"macro_f1": evaluation.macro_f1, "log_loss": evaluation.log_loss, "report": reports.get(name, "")}
        rows.append(
            {"name": name, **vars(evaluation.accuracy), **figures, "seconds": summaries[name]["seconds"]["total"]}
        )
    names, photos_left = _disagreements(evaluations)
    low = fifth_below(min(row["low"] for row in rows))
    epochs = max(len(summary["history"]) for summary in summaries.values())
    histories = {name: _history(summary, epochs) for name, summary in summaries.items()}
    return render(
        "compare.html",
        title=title,
        headline=headline(rows, pairs),
        bars=interval_bars("Accuracy", [(row["name"], row["low"], row["value"], row["high"]) for row in rows], low=low),
        n=rows[0]["n"],
        rows=rows,
        pairs=pairs,
        charts=history_charts(histories) if epochs else [],
        photos=[_photo(evaluations, index) for index in names],
        photos_left=photos_left,
    )


@dataclass(frozen=True)
class SideBySide:
    """Models evaluated on the same photos; a notebook shows a table.

    Attributes:
        evaluations: Of each model by name.
        pairs: Every two of them, tested.
        made: By name, how each was made, as columns of the table.
    """

    evaluations: Mapping[str, Evaluation]
    pairs: Sequence[Pair] = field(repr=False)
    made: Mapping[str, Mapping[str, str]] = field(repr=False)

    def _repr_html_(self) -> str:
        made = next(iter(self.made.values()))
        header = "".join(f"<th>{escape(name)}</th>" for name in ("", *made, "accuracy", "95 % interval", "log loss"))
        rows = "".join(f"<tr>{self._cells(name)}</tr>" for name in self.evaluations)
        verdicts = "".join(f"<li>{escape(one.verdict)}</li>" for one in self.pairs)
        return f"<table><tr>{header}</tr>{rows}</table><ul>{verdicts}</ul>"

    def _cells(self, name: str) -> str:
        one = self.evaluations[name]
        a = one.accuracy
        figures = (f"{100 * a.value:.1f} %", f"{100 * a.low:.1f} to {100 * a.high:.1f}", f"{one.log_loss:.3f}")
        return "".join(f"<td>{escape(cell)}</td>" for cell in (name, *self.made[name].values(), *figures))


def learning_curve(models: Bundle | Mapping[str, Bundle], what: Literal["accuracy", "loss"] = "accuracy") -> Chart:
    """Draw accuracy or loss after each epoch on the photos that the model was evaluated on.

    A head that was fitted without epochs has no curve of its own; beside others its accuracy is a level line.

    Args:
        models: One model, whose training photos are then drawn too, or several by name.
        what: Which figure.

    Raises:
        DataError: No model has epochs.
    """
    named = {"": models} if isinstance(models, Bundle) else models
    epochs = max(len(_epochs(bundle)) for bundle in named.values())
    if epochs == 0:
        raise DataError(
            "There is no learning curve: heads that were solved have no epochs. Expected mode full or scratch."
        )
    histories = {
        name: _history({"history": _epochs(one), "accuracy": one.manifest["metrics"]["accuracy"]}, epochs)
        for name, one in named.items()
    }
    charts = {chart["caption"].partition(" ")[0]: chart["svg"] for chart in history_charts(histories)}
    return Chart(charts[what])


def _epochs(bundle: Bundle) -> Sequence[Context]:
    history: Sequence[Context] = bundle.manifest["provenance"].get("history", [])
    return history


def headline(rows: Sequence[Context], pairs: Sequence[Pair]) -> str:
    """Say in one sentence which model to take: the quickest of those that none is clearly better than.

    Args:
        rows: Of each model its name, value (accuracy, 0..1) and seconds.
        pairs: Every two of the models, tested.
    """
    if len(rows) == 1:
        return f"{rows[0]['name']}: {100 * rows[0]['value']:.1f} %."
    beaten = {one.b if one.a_only > one.b_only else one.a for one in pairs if one.differs}
    left = [row for row in rows if row["name"] not in beaten] or list(rows)
    best = min(left, key=lambda row: row["seconds"])
    others = [row["name"] for row in left if row is not best]
    beats = sorted(beaten)
    sentence = f"{best['name']}: {100 * best['value']:.1f} % in {best['seconds']:.0f} s."
    if beats:
        sentence += f" Clearly better than {_listed(beats)}" + ("." if not others else ";")
    if others:
        sentence += f" {'no' if beats else 'No'} clear difference to {_listed(others)}, and quicker."
    return sentence


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else ", ".join(names[:-1]) + f" and {names[-1]}"


def _history(summary: Mapping[str, Any], epochs: int) -> Sequence[Context]:
    """Return a run's epochs; of a head that was fitted without epochs, its accuracy as a level line."""
    accuracy = summary["accuracy"]["value"]
    return summary["history"] or [{"epoch": epoch, "val_accuracy": accuracy} for epoch in (1, epochs)]


def _disagreements(evaluations: Mapping[str, Evaluation]) -> tuple[list[int], int]:
    """Return photos that some have right and others wrong, where they are surest; and how many more there are."""
    correct = np.stack([one.correct for one in evaluations.values()])
    sure = np.max([one.probabilities.max(axis=1) for one in evaluations.values()], axis=0)
    mixed = np.flatnonzero(correct.any(axis=0) & ~correct.all(axis=0))
    order = mixed[np.argsort(-sure[mixed], kind="stable")]
    return [int(i) for i in order[:NUM_PHOTOS]], max(0, len(order) - NUM_PHOTOS)


def _photo(evaluations: Mapping[str, Evaluation], index: int) -> Context:
    dataset = next(iter(evaluations.values())).dataset
    answers = []
    for name, one in evaluations.items():
        predicted = int(one.probabilities[index].argmax())
        answers.append(
            {
                "name": name,
                "said": dataset.classes[predicted],
                "probability": float(one.probabilities[index, predicted]),
                "right": predicted == int(dataset.labels[index]),
            }
        )
    label = dataset.classes[int(dataset.labels[index])]
    return {"path": dataset.paths[index], "label": label, "thumb": thumb(dataset.read(index), CARD), "answers": answers}

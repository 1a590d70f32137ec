"""What a report shows of a bundle and its evaluation: sentences, tables, charts and the photos behind them."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from safetensors.numpy import load

from regraft.backbones.backbone import first_layer
from regraft.bundle.bundle import Bundle
from regraft.bundle.format import special_features
from regraft.bundle.heatmap import heat_map
from regraft.core.errors import DataError
from regraft.core.progress import QUIET, Progress
from regraft.core.statistics import Accuracy, accuracy, wilson_interval
from regraft.data.decode import Unreadable, decode
from regraft.data.scan import map_photos
from regraft.data.sources import read_bytes
from regraft.evaluation.evaluate import Evaluation
from regraft.reporting.charts import interval_bars
from regraft.reporting.curves import Context, learning_part, trust_part
from regraft.reporting.page import jpeg, png, render
from regraft.reporting.photo_map import photo_map
from regraft.reporting.plots import filter_grid, heat_overlay

NUM_MISTAKES, NUM_UNSURE = 12, 6
COVERING_S = 5.0  # for heat maps of networks for which each takes a second
CARD, THUMB = 240, 132  # pixels
WIDEST = 20  # classes of a confusion matrix that is drawn as one
NUM_PAIRS = 25  # confusions listed
IN_CELL, IN_ALL = 24, 320  # photos behind a cell, and behind all cells
NUM_CLASSES = 25  # in the table before it is folded
FOUND_SHOWN = 8  # photos of each kind of finding
MEANINGS = {
    "leaks": "The same photo to learn from and to judge on: the accuracy is then too good.",
    "conflicts": "The same photo under two labels.",
    "duplicates": "The same photo more than once.",
    "suspects": "Their label is not what the other photos suggest.",
    "outliers": "Unlike all others of their class.",
    "blurred": "Far less sharp than the others.",
    "dark": "Hardly any light.",
    "blank": "One colour, more or less.",
    "tiny": "Of few pixels.",
    "odd shapes": "Far wider than high, or higher than wide.",
    "format leak": "Size or format of the files tells their class.",
    "split shift": "A model tells the photos to judge on from those to learn from.",
}


@dataclass(frozen=True)
class Record:
    """What is known of the run beside the bundle.

    Attributes:
        summary: As `train --json` has it; {} without a run.
        command: That trains the same again.
        first_layer: `(K, 3, h, w)`, weight of the first layer before training; None where it is not known.
    """

    summary: dict[str, Any]
    command: str = ""
    first_layer: np.ndarray | None = None


def report_html(bundle: Bundle, evaluation: Evaluation, record: Record, progress: Progress = QUIET) -> str:
    """Write the whole page.

    Args:
        bundle: The model.
        evaluation: Of the model.
        record: What is known of its run.
        progress: Is told what is done.
    """
    ranked = _ranked(evaluation)
    mistakes, unsure = ranked["mistakes"][:NUM_MISTAKES], ranked["unsure"][:NUM_UNSURE]
    chosen, began = [*mistakes, *unsure], time.monotonic()
    _ = bundle.map_engine  # compiled once, before the threads start

    def card(number: int) -> Context:
        with_heat = bundle.pooled is not None or time.monotonic() - began < COVERING_S
        return _card(bundle, evaluation, chosen[number], with_heat=with_heat)

    with progress.step("draw report", total=len(chosen)) as advance:
        cards = list(map_photos(card, len(chosen), advance))
        confusion = _confusion(evaluation)
        map_of_photos = photo_map(bundle, evaluation, progress)
    manifest = bundle.manifest
    return render(
        "report.html",
        title=_title(bundle),
        verdict=verdict(evaluation),
        tiles=_tiles(evaluation, manifest),
        classes=_classes(evaluation),
        mistakes=cards[: len(mistakes)],
        unsure=cards[len(mistakes) :],
        heat_note=_heat_note(bundle),
        photo_map=map_of_photos,
        findings=_findings(evaluation, record.summary.get("findings", [])),
        decision=record.summary.get("decision", ""),
        learning=learning_part(manifest),
        searched=_searched(manifest),
        trust=trust_part(evaluation, manifest),
        error_thresholds=_error_thresholds(manifest),
        filters=_filters(bundle, record.first_layer),
        made_of=_made_of(manifest),
        command=record.command,
        seconds=[(name.replace("_", " "), value) for name, value in record.summary.get("seconds", {}).items()],
        **confusion,
    )


def verdict(evaluation: Evaluation) -> Context:
    """Say what it comes to: a sentence, the interval as a bar, and what is to be said beside it."""
    a = evaluation.accuracy
    num_right = round(a.value * a.n)
    kind = "photos it has not seen" if a.split in ("val", "test") else "photos"
    headline = f"Right on {num_right} of {a.n} {kind}: {100 * a.value:.1f} %."
    sentences = [f"With 95 % confidence, between {100 * a.low:.1f} and {100 * a.high:.1f} % of such photos."]
    rows = [row for row in evaluation.per_class if row["n"]]
    weakest = min(rows, key=lambda row: (row["recall"], -row["n"]))
    if weakest["recall"] < 1 and len(rows) > 1:
        num_found = round(weakest["recall"] * weakest["n"])
        sentences.append(f"Weakest on {weakest['class']}: {num_found} of {weakest['n']} found.")
    (count, label, predicted), (next_count, *_) = [*evaluation.mistaken, (0, 0, 0), (0, 0, 0)][:2]
    if count > max(1, next_count):
        names = evaluation.dataset.classes
        sentences.append(f"Most frequent mistake: {names[label]} taken for {names[predicted]}, {count} times.")
    bar = interval_bars(f"Accuracy {a}", [("", a.low, a.value, a.high)])
    return {"headline": headline, "sentences": sentences, "bar": bar}


def _title(bundle: Bundle) -> str:
    classes = bundle.classes
    named = ", ".join(classes[:6]) + (f" and {len(classes) - 6} more" if len(classes) > 6 else "")
    return f"Image classifier: {named}"


def _tiles(evaluation: Evaluation, manifest: Context) -> list[Context]:
    a, tiles = evaluation.accuracy, []
    tiles.append(
        {"name": "accuracy", "value": f"{100 * a.value:.1f} %", "note": f"{100 * a.low:.1f} to {100 * a.high:.1f} %"}
    )
    if "cross_validated" in manifest["metrics"]:
        cv = Accuracy(**manifest["metrics"]["cross_validated"])
        note = f"{100 * cv.low:.1f} to {100 * cv.high:.1f} %, all {cv.n} photos"
        tiles.append({"name": "cross-validated", "value": f"{100 * cv.value:.1f} %", "note": note})
    for name, label in (("macro_f1", "macro F1"), ("log_loss", "log loss")):
        low, high = evaluation.intervals[name]
        value = f"{getattr(evaluation, name):.3f}"
        note = f"{low:.3f} to {high:.3f}" if low < high else "no interval from these photos"
        tiles.append({"name": label, "value": value, "note": note})
    before = evaluation.uncalibrated["ece"]
    note = (
        f"{100 * before:.1f} % before calibration"
        if manifest["temperature"] != 1
        else "mean gap between sure and right"
    )
    tiles.append({"name": "calibration error", "value": f"{100 * evaluation.ece:.1f} %", "note": note})
    return tiles


def _classes(evaluation: Evaluation) -> dict[str, list[Context]]:
    """List the classes in their own order; where they are many, the weakest first and the others folded away."""
    rows = [_class(row) for row in evaluation.per_class if row["n"]]
    if len(rows) <= NUM_CLASSES:
        return {"first": rows, "rest": []}
    rows.sort(key=lambda row: (row["recall"], row["f1"]))
    return {"first": rows[:NUM_CLASSES], "rest": rows[NUM_CLASSES:]}


def _class(row: Context) -> Context:
    low, high = wilson_interval(round(row["recall"] * row["n"]), row["n"])
    return {**row, "name": row["class"], "low": low, "high": high}


def _ranked(evaluation: Evaluation) -> dict[str, list[int]]:
    """Rank the photos it has wrong, the worst first; and those it has right, the least sure first."""
    p, y, correct = evaluation.probabilities, evaluation.dataset.labels, evaluation.correct
    of_labels = p[np.arange(len(y)), y]
    order = np.argsort(of_labels, kind="stable")
    return {"mistakes": [int(i) for i in order if not correct[i]], "unsure": [int(i) for i in order if correct[i]]}


def _photo(evaluation: Evaluation, index: int, size: int) -> Context:
    """Return what a caption says of a photo, and the photo."""
    dataset, p = evaluation.dataset, evaluation.probabilities[index]
    first, second = np.argsort(-p, kind="stable")[:2]
    label = int(dataset.labels[index])
    return {
        "path": dataset.paths[index],
        "thumb": thumb(dataset.read(index), size),
        "label": dataset.classes[label],
        "predicted": dataset.classes[int(first)],
        "second": dataset.classes[int(second)],
        "right": int(first) == label,
        "probability": float(p[first]),
        "second_probability": float(p[second]),
        "own_probability": float(p[label]),
    }


def thumb(data: bytes, size: int) -> str:
    """Return a photo as a data URI.

    Args:
        data: The bytes of its file.
        size: Of its longer side, in pixels, at most.

    Raises:
        Unreadable: It cannot be decoded.
    """
    return jpeg(decode(data, at_least=size), size)


def _card(bundle: Bundle, evaluation: Evaluation, index: int, *, with_heat: bool) -> Context:
    """Show a photo beside its heat map for what the model says."""
    heat = ""
    if with_heat:
        image = bundle.to_input(evaluation.dataset.read(index))
        predicted = int(evaluation.probabilities[index].argmax())
        heat = jpeg(heat_overlay(image, heat_map(bundle, image, predicted)), CARD)
    return {**_photo(evaluation, index, CARD), "heat": heat}


def _heat_note(bundle: Bundle) -> str:
    what = "Left the photo, right what the network is given of it: in colour where it speaks for what the model says"
    if bundle.pooled is not None:
        return f"{what}. The map is exact: its places add up to the answer."
    return f"{what}, found by covering each place in turn. Shown for the first photos."


def _confusion(evaluation: Evaluation) -> Context:
    """Show the matrix where it can be read, the most frequent confusions, and the photos behind them."""
    names, counts = evaluation.dataset.classes, evaluation.confusion
    listed = evaluation.mistaken
    is_drawn = len(names) <= WIDEST
    wanted = [(i, j) for _, i, j in (listed if is_drawn else listed[:NUM_PAIRS])]
    if is_drawn:
        wanted += [(i, i) for i in range(len(names)) if counts[i, i]]
    cells = _cells(evaluation, wanted)
    ids = {cell["id"] for cell in cells}
    pairs = [
        {"label": names[i], "said": names[j], "count": count, "n": int(counts[i].sum()), "id": _known(i, j, ids)}
        for count, i, j in listed[:NUM_PAIRS]
    ]
    return {
        "matrix": _matrix(evaluation, ids) if is_drawn else None,
        "pairs": [] if is_drawn and len(names) <= 5 else pairs,
        "pairs_left": max(0, len(listed) - NUM_PAIRS),
        "cells": cells,
    }


def _matrix(evaluation: Evaluation, ids: set[str]) -> Context:
    names, counts = evaluation.dataset.classes, evaluation.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for i, name in enumerate(names):
        cells = [
            {
                "count": int(counts[i, j]),
                "said": names[j],
                "right": i == j,
                "id": _known(i, j, ids),
                "shade": f"{0.5 * shares[i, j]:.2f}",  # which text is read on, light or dark
            }
            for j in range(len(names))
        ]
        rows.append({"name": name, "cells": cells})
    return {"names": names, "rows": rows}


def _known(i: int, j: int, ids: set[str]) -> str:
    name = f"cell-{i}-{j}"
    return name if name in ids else ""


def _cells(evaluation: Evaluation, wanted: Iterable[tuple[int, int]]) -> list[Context]:
    """Show photos behind cells of the confusion matrix, the surest answers first, until there are enough."""
    names, p, predicted = evaluation.dataset.classes, evaluation.probabilities, evaluation.probabilities.argmax(axis=1)
    cells, room = [], IN_ALL
    behind: list[list[int]] = []
    for i, j in wanted:
        members = np.flatnonzero((evaluation.dataset.labels == i) & (predicted == j))
        ranked = members[np.argsort(-p[members, j], kind="stable")]
        if i == j:
            ranked = ranked[::-1][: IN_CELL // 2]  # of what is right, what was least sure tells most
        shown = [int(index) for index in ranked[: min(IN_CELL, room)]]
        room -= len(shown)
        if shown:
            cells.append({"id": f"cell-{i}-{j}", "label": names[i], "said": names[j], "count": len(members)})
            behind.append(shown)
    order = [index for shown in behind for index in shown]
    photos = map_photos(lambda k: _photo(evaluation, order[k], THUMB), len(order), lambda _: None)
    return [{**cell, "photos": list(islice(photos, len(shown)))} for cell, shown in zip(cells, behind, strict=True)]


def _findings(evaluation: Evaluation, issues: Sequence[Context]) -> list[Context]:
    """Show the findings of each kind together, with a few photos."""
    kinds: dict[str, list[Context]] = {}
    for one in issues:
        kinds.setdefault(one["kind"], []).append(one)
    root, shown = evaluation.dataset.root, []
    for kind, members in kinds.items():
        pairs = [(path, one["text"]) for one in members for path in one["paths"]][:FOUND_SHOWN]
        photos = []
        for path, text in pairs:
            try:
                picture = thumb(read_bytes(root / path), THUMB)
            except (OSError, Unreadable, DataError):
                picture = ""
            photos.append({"path": path, "text": text, "thumb": picture})
        meaning = MEANINGS.get(kind, "")
        shown.append({"kind": kind, "meaning": meaning, "count": len(members), "photos": photos})
    return shown


def _searched(manifest: Context) -> list[Context]:
    trials = manifest["provenance"].get("searched", [])
    best = min((one["log_loss"] for one in trials), default=None)
    shares = [vars(accuracy(one["num_right"], one["n"], "cross-validated")) for one in trials]
    return [{**one, **share, "chosen": one["log_loss"] == best} for one, share in zip(trials, shares, strict=True)]


def _error_thresholds(manifest: Context) -> list[Context]:
    """Return each step that has fewer errors than all that answer more."""
    steps = manifest["thresholds"].get("max_error", [])
    kept: list[Context] = []
    for error, probability, share in steps:
        if not kept or error < kept[-1]["error"]:
            kept.append({"error": error, "probability": probability, "share": share})
    return kept


def _filters(bundle: Bundle, before: np.ndarray | None) -> Context | None:
    """Show the filters of the first layer, and as they were before training where they have changed."""
    after = first_layer(load(bundle.read("model.safetensors")))
    if after is None:
        return None
    wanted = [(after, _unchanged(bundle))]
    if before is not None and before.shape == after.shape and not np.array_equal(before, after):
        length = float(np.linalg.norm(before))
        moved = (
            f"; moved by {100 * float(np.linalg.norm(after - before)) / length:.2g} % of their length" if length else ""
        )
        wanted = [(before, "before training"), (after, f"after training{moved}")]
    pictures = []
    for weight, caption in wanted:
        picture = filter_grid(weight)
        pictures.append({"src": png(picture), "width": picture.width, "height": picture.height, "caption": caption})
    return {"size": f"{after.shape[2]} x {after.shape[3]}", "pictures": pictures}


def _unchanged(bundle: Bundle) -> str:
    is_frozen = bundle.manifest["provenance"]["mode"] == "frozen"
    return "of the pretrained network, which training left as they were" if is_frozen else "after training"


def _made_of(manifest: Context) -> list[tuple[str, str]]:
    backbone, provenance = manifest["backbone"], manifest["provenance"]
    images, split, p = provenance["images"], provenance["split"], manifest["preprocessing"]
    given = "as the folder says" if split["given"] else "drawn by content"
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    special = "".join(f"; features: {text}" for text in special_features(backbone))
    return [
        ("backbone", f"{backbone['name']}, {backbone['num_params'] / 1e6:.1f} million parameters{special}"),
        ("weights", f"{backbone['loaded'] or 'random'}; from {backbone['origin']}; licence {backbone['licence']}"),
        ("mode", provenance["mode"]),
        (
            "photos",
            f"{images['used']} used of {images['found']} found; {split['train']} to learn from, {split['judged']} to "
            f"judge on, {given}",
        ),
        (
            "input",
            f"{p['height']} x {p['width']} pixels, {_FITS[p['crop_mode']]}, {p['interpolation']}; "
            f"mean {_triple(p['mean'])}, deviation {_triple(p['std'])}",
        ),
        ("seed", str(provenance["config"]["seed"])),
        ("photos' fingerprint", provenance["data_sha256"][:16]),
        ("graph", backbone["graph_sha256"][:16]),
        ("versions", versions),
    ]


_FITS = {"center": "the middle cut out", "border": "the whole photo, padded", "squash": "the whole photo, squashed"}


def _triple(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)

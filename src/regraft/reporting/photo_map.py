"""A map of the photos that a model was evaluated on: those that look alike to its network lie together."""

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageOps

from regraft.bundle.bundle import Bundle
from regraft.core.progress import QUIET, Progress
from regraft.data.decode import Unreadable, decode
from regraft.data.scan import map_photos
from regraft.data.units import drawn_at
from regraft.evaluation.evaluate import Evaluation, bundle_features
from regraft.models.layout import layout, spread
from regraft.reporting.curves import Context
from regraft.reporting.page import jpeg

NUM_PHOTOS = 240  # laying them out takes a second or two; each adds about 3 kB to the page
FEWEST = 8
TILE = 80  # pixels of a photo in the picture of all
ASPECT = 1.6  # width of the map over its height
FILLED = 0.26  # share of the map that photos cover
LARGEST = 0.055  # width of a photo, as a share of the map's
COLOURS = 12  # of frames; further classes have them again, with another kind of line
LINES = ("solid", "dashed", "dotted")


def photo_map(bundle: Bundle, evaluation: Evaluation, progress: Progress = QUIET) -> Context | None:
    """Lay photos out by the features that the model decides by.

    Args:
        bundle: The model.
        evaluation: Of the model; where it is about more than 240 photos, those that it has wrong come first.
        progress: Is told what is done.

    Returns:
        What the template shows; None for fewer than 8 photos.
    """
    chosen = _chosen(evaluation)
    if len(chosen) < FEWEST:
        return None
    dataset = evaluation.dataset.subset(chosen)
    rows, failures = bundle_features(bundle, dataset, progress)
    if failures:
        return None
    width = min(LARGEST, sqrt(FILLED / len(chosen) / ASPECT))
    y = spread(layout(rows.table[rows.places(dataset.hashes)]), (2 * width, 2 * width * ASPECT))
    names, counts = evaluation.dataset.classes, np.bincount(dataset.labels, minlength=len(evaluation.dataset.classes))
    columns = ceil(sqrt(len(chosen)))
    tiles = list(map_photos(lambda i: _tile(dataset.read(i)), len(chosen), lambda _: None))
    return {
        "spots": [_spot(evaluation, i, place, k, columns) for k, (i, place) in enumerate(zip(chosen, y, strict=True))],
        "sprite": _sprite(tiles, columns),
        "columns": columns,
        "width": f"{100 * width:.2f}",
        "classes": [
            {"id": i, "name": name, "count": int(counts[i]), **_frame(i)} for i, name in enumerate(names) if counts[i]
        ],
        "num_wrong": int((~evaluation.correct[chosen]).sum()),
        "num_left": len(evaluation.dataset) - len(chosen),
    }


def _chosen(evaluation: Evaluation) -> list[int]:
    """Return the photos that are shown, in the order of the data set; where they are many, drawn by their content."""
    hashes, correct = evaluation.dataset.hashes, evaluation.correct
    order = sorted(range(len(hashes)), key=lambda i: (bool(correct[i]), drawn_at(0, hashes[i])))
    return sorted(order[:NUM_PHOTOS])


def _frame(label: int) -> dict[str, object]:
    return {"colour": label % COLOURS + 1, "line": LINES[label // COLOURS % len(LINES)]}


def _spot(evaluation: Evaluation, index: int, place: np.ndarray, number: int, columns: int) -> Context:
    """Say where a photo is, which part of the picture of all shows it, and what the model says of it."""
    p, dataset = evaluation.probabilities[index], evaluation.dataset
    label, predicted = int(dataset.labels[index]), int(p.argmax())
    x, y = 50 + 47 * float(place[0]), 50 - 46 * float(place[1])
    step = 100 / max(1, columns - 1)
    return {
        "x": f"{x:.2f}",
        "y": f"{y:.2f}",
        "u": f"{step * (number % columns):.3f}",
        "v": f"{step * (number // columns):.3f}",
        "side": "start" if x < 33 else "end" if x > 67 else "middle",
        "is_low": y > 55,
        "label": dataset.classes[label],
        "label_id": label,
        "said": dataset.classes[predicted],
        "probability": float(p[predicted]),
        "right": label == predicted,
        "path": dataset.paths[index],
        **_frame(label),
    }


def _tile(data: bytes) -> Image.Image:
    """Return the middle of a photo as a small square; grey where it can no longer be decoded."""
    try:
        return ImageOps.fit(decode(data, at_least=TILE).convert("RGB"), (TILE, TILE), Image.Resampling.BICUBIC)
    except Unreadable:
        return Image.new("RGB", (TILE, TILE), (128, 128, 128))


def _sprite(tiles: Sequence[Image.Image], columns: int) -> Markup:
    """Return one picture of all photos, `columns` a row and as many rows."""
    whole = Image.new("RGB", (columns * TILE, columns * TILE), (128, 128, 128))
    for number, tile in enumerate(tiles):
        whole.paste(tile, (number % columns * TILE, number // columns * TILE))
    return jpeg(whole, max(whole.size))

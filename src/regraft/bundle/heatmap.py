"""Where a model looks: how much each place of a photo speaks for a class.

Features that are means and maxima of maps leave no doubt: the logit is a sum over the places of those maps, and the
heat map shows its summands, at no cost. This is the class activation map, here also for maxima and for several maps.
Roots of such features change how much each counts, in one photo in one way, and the summands still add up.
For other networks places are covered, and the heat is what the class loses by it.

References:
    B. Zhou et al., "Learning deep features for discriminative localization", CVPR 2016.

    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from regraft.backbones.engine import BEFORE_ROOTS, Pooled
from regraft.bundle.bundle import Bundle
from regraft.core.runtime import num_cores

CELLS = 7  # a side, where photos are covered in part


def heat_map(bundle: Bundle, image: np.ndarray, label: int) -> np.ndarray:
    """Compute what each place of a photo adds to the logit of a class.

    For networks with pooled features the sum over all places and the head's bias make up the logit; for others the heat
    is the mean loss in log-probability when the place is covered.

    Args:
        bundle: The model.
        image: `(H, W, 3)` uint8, as `Bundle.to_input` gives it.
        label: Number of the class.

    Returns:
        `(h, w)` float32, below 0 where a place speaks against the class.
    """
    if bundle.pooled is None:
        return _by_covering(bundle, image, label)
    outputs = bundle.map_engine(image[np.newaxis])
    weight, _ = bundle.head
    return _summands(bundle.pooled, outputs, weight[label] * _root_factors(outputs))


def _root_factors(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return by what roots multiply each feature of a photo, `(D,)` or `(1,)` of 1 where the model takes none."""
    if BEFORE_ROOTS not in outputs:
        return np.ones(1, np.float32)
    features, before = outputs["features"][0], outputs[BEFORE_ROOTS][0]
    return np.asarray(np.divide(features, before, out=np.zeros_like(features), where=before != 0))


def _summands(parts: tuple[Pooled, ...], outputs: dict[str, np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Return what each place adds to `features @ weight`, weight `(D,)`, on the grid of the coarsest map."""
    maps = [np.moveaxis(outputs[p.name][0], -1, 0) if p.is_last else outputs[p.name][0] for p in parts]
    height, width = min(m.shape[1:] for m in maps)
    heat, start = np.zeros((height, width), np.float32), 0
    for part, values in zip(parts, maps, strict=True):
        part_weight = weight[start : start + part.num_features]
        start += part.num_features
        _, h, w = values.shape
        flat = values.reshape(len(values), h * w)
        added = part_weight @ flat / (h * w) if part.kind == "mean" else np.zeros(h * w, np.float32)
        if part.kind == "max":
            np.add.at(added, flat.argmax(axis=1), part_weight * flat.max(axis=1))
        rows, columns = np.arange(h) * height // h, np.arange(w) * width // w
        np.add.at(heat, (rows[:, np.newaxis], columns), added.reshape(h, w))
    return heat


def _by_covering(bundle: Bundle, image: np.ndarray, label: int) -> np.ndarray:
    """Cover windows two cells wide, half of which overlap: a cell's heat is the mean over those that cover it."""
    height, width, _ = image.shape
    rows = np.linspace(0, height, CELLS + 1).round().astype(int)
    columns = np.linspace(0, width, CELLS + 1).round().astype(int)
    corners = [(i, j) for i in range(-1, CELLS) for j in range(-1, CELLS)]

    def covered(corner: tuple[int, int]) -> np.ndarray:
        (top, left), photo = corner, image.copy()
        inside = np.s_[
            rows[max(top, 0)] : rows[min(top + 2, CELLS)], columns[max(left, 0)] : columns[min(left + 2, CELLS)]
        ]
        photo[inside] = image.mean(axis=(0, 1))
        return np.asarray(bundle.map_engine(photo[np.newaxis])["logits"])

    with ThreadPoolExecutor(num_cores()) as pool:
        logits = np.concatenate([bundle.map_engine(image[np.newaxis])["logits"], *pool.map(covered, corners)])
    log_p = np.log(np.maximum(bundle.probabilities(logits)[:, label], np.finfo(np.float64).tiny))
    lost = (log_p[0] - log_p[1:]).reshape(CELLS + 1, CELLS + 1)
    return np.asarray((lost[:-1, :-1] + lost[1:, :-1] + lost[:-1, 1:] + lost[1:, 1:]) / 4, np.float32)

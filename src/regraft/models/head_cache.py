"""Heads that were solved before: the same features, labels and folds give the same bytes, so they need no solving.

    heads/<key>    SHA-256 of the rest, 32 bytes; then safetensors

The key hashes all that a head depends on, to the last bit of every feature, and the solver's own code. Nothing else is
looked up, and no fit begins from a stored head: a head does not depend on which ones were solved before it.
"""

import hashlib
from collections.abc import Iterable
from inspect import getfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from regraft.backbones.features import Features
from regraft.core import pca as axes
from regraft.core.errors import OutputError
from regraft.core.files import writable_cache, write_atomic
from regraft.core.progress import Progress
from regraft.models import lbfgs, logistic
from regraft.models import linear_head as heads
from regraft.models.linear_head import Head, Score, score, solve

BLOCK = 4096  # rows that are hashed at a time
CODE = tuple(Path(getfile(module)) for module in (axes, lbfgs, logistic, heads))


def cached_head(features: Features, num_classes: int, folds: np.ndarray, progress: Progress) -> Head:
    """Return what `solve` gives, from the cache where it is there and intact."""
    path = writable_cache("heads", progress) / _key(features, num_classes, folds)
    known = _read(path, features.y, num_classes)
    if known is None:
        known = solve(features, num_classes, folds)
        _write(path, known, progress)
    return known


def _key(features: Features, num_classes: int, folds: np.ndarray) -> str:
    table, rows = features.table, features.rows
    rows = np.arange(len(table)) if rows is None else rows
    digest = hashlib.sha256(f"{np.__version__} {num_classes} {len(rows)} {table.shape[1]} ".encode())
    parts: Iterable[bytes] = (path.read_bytes() for path in CODE)
    weights = b"" if features.weights is None else features.weights.tobytes()
    for part in (*parts, "".join(features.hashes).encode(), features.y.tobytes(), folds.tobytes(), weights):
        digest.update(hashlib.sha256(part).digest())
    for start in range(0, len(rows), BLOCK):
        digest.update(table[rows[start : start + BLOCK]].tobytes())
    return digest.hexdigest()


def _write(path: Path, head: Head, progress: Progress) -> None:
    evaluated = np.flatnonzero(np.isfinite(head.held_out).all(axis=1))
    data = save(
        {
            "weight": head.weight,
            "bias": head.bias,
            "penalty": np.array(head.penalty),
            "curve": np.array([list(vars(point).values()) for point in head.curve]).reshape(-1, 4),
            "judged": evaluated,
            "held_out": head.held_out[evaluated],
        }
    )
    try:
        write_atomic(path, hashlib.sha256(data).digest() + data)
    except OutputError as error:
        progress.say_once("cache", f"{error} Going on without: nothing is kept for the next run.")


def _read(path: Path, y: np.ndarray, num_classes: int) -> Head | None:
    """Read the head of photos with labels `y (N,)`; None where there is none, or a damaged one."""
    try:
        whole = path.read_bytes()
        if hashlib.sha256(whole[32:]).digest() != whole[:32]:
            return None
        arrays = load(whole[32:])
    except (OSError, SafetensorError):
        return None
    held_out = np.full((len(y), num_classes), np.nan)
    held_out[arrays["judged"]] = arrays["held_out"]
    curve = (Score(float(p), float(loss), int(num_right), int(n)) for p, loss, num_right, n in arrays["curve"])
    penalty = float(arrays["penalty"])
    cross_validated = score(held_out, y, penalty) if len(arrays["judged"]) else None
    return Head(arrays["weight"], arrays["bias"], penalty, tuple(curve), held_out, cross_validated)

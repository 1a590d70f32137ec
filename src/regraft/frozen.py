"""The first rungs of a training: a head solved on frozen features, then on the best of several kinds of them."""

from dataclasses import replace
from typing import Any

import numpy as np

from regraft.backbones.familiar import familiar
from regraft.backbones.features import FeatureTable
from regraft.data.scan import Dataset
from regraft.data.splits import folds_of
from regraft.ground.config import TrainConfig
from regraft.ground.statistics import Accuracy, accuracy
from regraft.learn.calibrate import calibrated
from regraft.learn.compare import no_room
from regraft.learn.head import Head, out_of_fold, score, solve
from regraft.learn.search import Tried, Way, best, search, solved
from regraft.learn.selection import Selection, right_frozen
from regraft.run import Graft, Here, Outcome, Start, announce, delivered

MANY = 1000  # photos to judge on, beside which cross-validation over all photos tells nothing new
SEARCH_S, SEARCH_SHARE = 120.0, 0.2  # that the search for better features may take, of the time that is left


def solve_head(start: Start, here: Here) -> Tried | None:
    """The frozen regime: the head of a convex problem on the features, where there are any."""
    if start.backbone is None or start.features is None:
        return None
    way = Way(f"{start.backbone.preprocessing.height} px", start.backbone, start.features)
    train = start.material.splits.train
    return solved(way, train, folds_for(train, here.config), here.progress)


def frozen_model(plain: Tried, start: Start, is_searching: bool, here: Here) -> tuple[Outcome, Tried]:
    """The solved head as the bundle; where it is wanted and there is room, that of the best features instead."""
    frozen = _delivered(plain, [plain], start, here)
    if not is_searching or not plain.head.curve or no_room(plain.score.num_right, plain.score.n):
        return frozen, plain
    announce(start.material, frozen, here)
    here.progress.say("other features of the same network, cross-validated on the photos to learn from:")
    here.progress.say(f"  {plain}")
    splits = start.material.splits
    left_s = here.left_s(len(splits.judged[1]))
    budget_s = SEARCH_S if left_s is None else min(SEARCH_S, left_s * SEARCH_SHARE)
    folds = folds_for(splits.train, here.config)
    tried = search(plain, start.material.dataset, splits.train, folds, here.config, budget_s, here.progress)
    chosen = best(tried)
    if chosen is plain:
        return frozen, plain
    losses = f"cross-validated log loss {chosen.score.log_loss:.3f} instead of {plain.score.log_loss:.3f}"
    decision = f"features of {chosen.way.name}: {losses}."
    return replace(_delivered(chosen, tried, start, here), decision=decision), chosen


def correct_frozen(one: Tried, selection: Selection, start: Start) -> np.ndarray:
    """`(N,)` bool: which of the photos that choose a solved head has right without having seen them."""
    x = one.way.features.of(selection.photos).x
    return right_frozen(selection, one.head, start.material.splits.train, x)


def _delivered(one: Tried, tried: list[Tried], start: Start, here: Here) -> Outcome:
    """One of the heads tried as the bundle."""
    head, material = one.head, start.material
    is_told = material.splits.given or len(material.splits.judged[1]) >= MANY
    whole = None if is_told else _cross_validated(one.way.features, material.dataset, head, here)
    details: dict[str, Any] = {"head": {"penalty": head.penalty, "curve": [vars(point) for point in head.curve]}}
    if len(tried) > 1:
        details["searched"] = [other.to_json() for other in tried]
    learned = one.way.features.of(material.splits.train)
    calm, promises = calibrated(head.held_out, learned.y)
    known = familiar(learned)
    graft = Graft("frozen", one.way.backbone, head.weight, head.bias, details, whole, calm, promises, known)
    return delivered(graft, material, here, one.way.features)


def head_of(features: FeatureTable, photos: Dataset, config: TrainConfig) -> Head:
    """The head solved on some of the photos that there are features of."""
    own = features.of(photos)
    return solve(own, len(photos.classes), folds_for(photos, config))


def folds_for(photos: Dataset, config: TrainConfig) -> np.ndarray:
    """`(N,)` int64: which fold judges a photo, -1 for none."""
    return folds_of(photos, config.num_folds, config.seed)


def _cross_validated(features: FeatureTable, photos: Dataset, head: Head, here: Here) -> Accuracy | None:
    """Accuracy over all photos, each judged by a head that has not seen it, at the penalty the train split chose."""
    folds = folds_for(photos, here.config)
    if not (folds >= 0).any():
        return None
    own = features.of(photos)
    with here.progress.step("cross-validate"):
        log_p = out_of_fold(own, len(photos.classes), folds, head.penalty)
    found = score(log_p, own.y, head.penalty)
    return accuracy(found.num_right, found.n, "cross-validated")

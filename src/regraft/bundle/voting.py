"""One answer for photos that belong together, such as those of one animal: their photos vote."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regraft.bundle.bundle import Bundle, Prediction
from regraft.bundle.predict import Answer
from regraft.core.errors import ConfigError

LEAST = float(np.finfo(np.float64).tiny)  # probability; the logarithm of 0 would outvote all others


@dataclass(frozen=True)
class GroupAnswer:
    """What came of a group of photos.

    Attributes:
        group: Its name; the path of a photo that belongs to none.
        files: Its photos that could be read.
        prediction: What the model says of the group; None where no photo of it can be read.
        num_failed: Photos that cannot be read.
        error: Why the first of them cannot be read, where there is no prediction; else None.
    """

    group: str
    files: tuple[Path, ...] = field(repr=False)
    prediction: Prediction | None
    num_failed: int
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft predict --vote-by --json` prints."""
        counts = {"group": self.group, "photos": len(self.files), "failed": self.num_failed}
        return {**counts, **(self.prediction.to_json() if self.prediction else {"error": self.error})}


def vote(bundle: Bundle, answers: Iterable[Answer], by: str) -> list[GroupAnswer]:
    """Give one answer for each group of photos.

    The logarithms of the photos' probabilities are averaged, class by class, and made to sum to 1: so photos in which a
    class can hardly be count against it, and ten photos of one thing make the model no surer than one. Novelty is the
    photos' median.

    Args:
        bundle: The model that answered.
        answers: Of photos.
        by: A regular expression that is searched for in the path: its first bracket, or all that it finds, is the
            group's name. A photo in which it finds nothing stands for itself.

    Returns:
        An answer for each group, in the order in which the groups first appear.

    Raises:
        ConfigError: It is no regular expression, or finds nothing in any path.
    """
    pattern, groups, is_any_matched = compiled(by), dict[str, list[Answer]](), False
    for one in answers:
        match = pattern.search(one.path)
        is_any_matched |= match is not None
        groups.setdefault((match[pattern.groups and 1] or "") if match else one.path, []).append(one)
    if groups and not is_any_matched:
        raise ConfigError(f"--vote-by {by!r} finds nothing in any path, such as {next(iter(groups))!r}.")
    return [_voted(bundle, name, members) for name, members in groups.items()]


def compiled(by: str) -> re.Pattern[str]:
    """Compile the expression that finds groups.

    Raises:
        ConfigError: It is none.
    """
    try:
        return re.compile(by)
    except re.error as error:
        raise ConfigError(f"--vote-by {by!r} is no regular expression: {error}.") from error


def _voted(bundle: Bundle, name: str, members: list[Answer]) -> GroupAnswer:
    predictions = [one.prediction for one in members if one.prediction]
    files = tuple(one.file for one in members if one.prediction)
    if not predictions:
        return GroupAnswer(name, (), None, len(members), members[0].error)
    shares = np.array([[one.probabilities[c] for c in bundle.classes] for one in predictions])
    means = np.log(np.maximum(shares, LEAST)).mean(axis=0)
    novelties = [one.novelty for one in predictions if one.novelty is not None]
    novelty = float(np.median(novelties)) if novelties else None
    logits = (means * bundle.manifest["temperature"]).astype(np.float64)  # `to_prediction` divides by it
    prediction = predictions[0] if len(predictions) == 1 else bundle.to_prediction(logits, novelty)
    return GroupAnswer(name, files, prediction, len(members) - len(predictions), None)

"""How much of a training fits into the time: measured before it begins, said in one line."""

import math
import time
from dataclasses import dataclass

SAFETY = 0.92  # share of the time that is planned for
SMALL_SHARE = 0.75  # of the epochs, at most, that learn from smaller photos


class TooLittleTime(Exception):
    """Raised where a training is not begun: less than half of its epochs would fit. Its text says so."""


@dataclass(frozen=True)
class Plan:
    """A training beside the time that it has.

    Attributes:
        epochs: How many will be done.
        small_epochs: How many of them, the first ones, learn from smaller photos.
        wanted: How many the recipe asks for.
        seconds: How long they take.
        left_s: Seconds that there are.
        photos_per_s: Photos a second that are learned from.
    """

    epochs: int
    small_epochs: int
    wanted: int
    seconds: float
    left_s: float
    photos_per_s: float

    def is_worth(self, least: float) -> bool:
        """Return whether at least this share of the epochs fits; 0 for a training that is done whatever fits."""
        return least == 0 or (self.epochs >= least * self.wanted and self.seconds <= self.left_s)

    def describe(self, now: float) -> str:
        """Describe the plan in one line. `now` is in seconds since 1970."""
        ready = time.strftime("%H:%M", time.localtime(now + self.seconds))
        small = f", the first {self.small_epochs} with smaller photos," if self.small_epochs else ""
        return (
            f"plan: {self.epochs} of {self.wanted} epochs{small} at {self.photos_per_s:.0f} photos/s, about "
            f"{self.seconds:.0f} of {self.left_s:.0f} s; ready at {ready}"
        )

    def declined(self) -> str:
        """Say why the training is not begun."""
        return (
            f"not begun: {self.epochs} of {self.wanted} epochs would fit into the {self.left_s:.0f} s left, at "
            f"{self.photos_per_s:.0f} photos/s"
        )


def plan(
    wanted: int,
    epoch_s: float,
    left_s: float,
    photos_per_s: float,
    once_s: float = 0.0,
    small_epoch_s: float | None = None,
) -> Plan:
    """Plan as many epochs as there is time for, one at least, and no more of them with smaller photos than necessary.

    Args:
        wanted: Epochs of the recipe.
        epoch_s: Seconds of one.
        left_s: Seconds that there are.
        photos_per_s: What was measured.
        once_s: Seconds of what is done once before the first epoch.
        small_epoch_s: Seconds of an epoch with smaller photos; None where there is no such epoch.

    References:
        Photos that grow while a network learns: M. Tan, Q. Le, "EfficientNetV2", ICML 2021.
    """
    left_s = max(0.0, left_s)
    saved_s = epoch_s - (epoch_s if small_epoch_s is None else small_epoch_s)
    epochs, small_epochs = _most(wanted, epoch_s, saved_s, SAFETY * left_s - once_s)
    seconds = once_s + epochs * epoch_s - small_epochs * saved_s
    return Plan(epochs, small_epochs, wanted, seconds, left_s, photos_per_s)


def _most(wanted: int, epoch_s: float, saved_s: float, room_s: float) -> tuple[int, int]:
    """Return how many epochs fit into so many seconds, and how many of them have to save some."""
    for epochs in range(wanted, 1, -1):
        missing_s = epochs * epoch_s - room_s
        if missing_s <= 0:
            return epochs, 0
        if missing_s <= SMALL_SHARE * epochs * saved_s and math.ceil(missing_s / saved_s) <= SMALL_SHARE * epochs:
            return epochs, math.ceil(missing_s / saved_s)
    return 1, 0

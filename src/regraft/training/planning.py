"""How much of a training fits into the time: measured before it begins, said in one line."""

import time
from dataclasses import dataclass

SAFETY = 0.92  # share of the time that is planned for
LEAST = 0.5  # share of its epochs without which a training that is tried on top of another model is not begun


class TooLittleTime(Exception):
    """Raised where a training is not begun: less than half of its epochs would fit. Its text says so."""


@dataclass(frozen=True)
class Plan:
    """A training beside the time that it has.

    Attributes:
        epochs: How many will be done.
        wanted: How many the recipe asks for.
        seconds: How long they take.
        left_s: Seconds that there are.
        photos_per_s: Photos a second that are learned from.
    """

    epochs: int
    wanted: int
    seconds: float
    left_s: float
    photos_per_s: float

    @property
    def is_worth_it(self) -> bool:
        """Whether at least half of the epochs fit."""
        return self.epochs >= LEAST * self.wanted and self.seconds <= self.left_s

    def said(self, now: float) -> str:
        """Describe the plan in one line. `now` is in seconds since 1970."""
        ready = time.strftime("%H:%M", time.localtime(now + self.seconds))
        return (
            f"plan: {self.epochs} of {self.wanted} epochs at {self.photos_per_s:.0f} photos/s, about "
            f"{self.seconds:.0f} of {self.left_s:.0f} s; ready at {ready}"
        )

    def declined(self) -> str:
        """Say why the training is not begun."""
        return (
            f"not begun: {self.epochs} of {self.wanted} epochs would fit into the {self.left_s:.0f} s left, at "
            f"{self.photos_per_s:.0f} photos/s"
        )


def plan(wanted: int, epoch_s: float, left_s: float, photos_per_s: float, once_s: float = 0.0) -> Plan:
    """Plan as many epochs as there is time for, one at least.

    Args:
        wanted: Epochs of the recipe.
        epoch_s: Seconds of one.
        left_s: Seconds that there are.
        photos_per_s: What was measured.
        once_s: Seconds of what is done once before the first epoch.
    """
    left_s = max(0.0, left_s)
    epochs = min(wanted, max(1, int((SAFETY * left_s - once_s) / epoch_s)))
    return Plan(epochs, wanted, once_s + epochs * epoch_s, left_s, photos_per_s)

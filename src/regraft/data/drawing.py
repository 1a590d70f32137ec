"""Which units are held out: a share of every class, as near as whole units allow, drawn by their content.

A unit is what is never parted: photos of equal content or of one group (`data.units`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

TOTAL = -1  # stands for all classes together
STARTS = 8  # places in the order to begin from, where the first does not give what is wanted
FEW = 200  # units up to which it is worth to begin from several
MOST_SWAPPED = 100  # units of either side that are exchanged for one another, in the order of the draw
MOST_ROUNDS = 10

Unit = dict[int, int]


@dataclass
class _Drawn:
    """Units that are held out so far.

    Attributes:
        wanted: How many photos of each class are to be held out, and of all: whole where a class's units are single
            photos, else the exact share.
        held: How many are.
        left: Units of each class that are not held out.
        chosen: The units held out.
    """

    units: Sequence[Unit]
    wanted: dict[int, float]
    left: Counter[int]
    held: Counter[int] = field(default_factory=Counter)
    chosen: set[int] = field(default_factory=set)

    def toggle(self, number: int) -> None:
        """Hold a unit out, or no longer."""
        sign = -1 if number in self.chosen else 1
        self.chosen ^= {number}
        for label, count in self.units[number].items():
            self.held[label] += sign * count
            self.left[label] -= sign

    def cost(self, labels: Iterable[int]) -> tuple[int, float]:
        """Return how many classes lack photos to evaluate on or learn from, and the squared distance from the goal."""
        counts = [(self.held[label], self.wanted[label], self.left[label]) for label in labels]
        lacking = sum(left < 1 or (wanted > 0 and held < 1) for held, wanted, left in counts)
        return lacking, round(sum((held - wanted) ** 2 for held, wanted, _ in counts), 6)

    def fits(self, number: int) -> bool:
        """Whether a unit can be held out without exceeding what is wanted of any class."""
        counts = self.units[number].items()
        return all(self.held[label] + count <= self.wanted[label] and self.left[label] > 1 for label, count in counts)

    def improve(self, *numbers: int) -> bool:
        """Toggle some units if that brings what is held out nearer to what is wanted."""
        labels = dict.fromkeys(label for number in numbers for label in self.units[number])
        before = self.cost(labels)
        for number in numbers:
            self.toggle(number)
        if self.cost(labels) < before:
            return True
        for number in numbers:
            self.toggle(number)
        return False


def draw_units(units: Sequence[Unit], fraction: float) -> set[int]:
    """Choose units to hold out.

    A unit that fits is taken, in the given order. Where units are not single photos of one class, what is then missing
    is sought by moving single units and by exchanging two, as long as that helps.

    Args:
        units: For each unit, class -> number of different photos, in the order of the draw.
        fraction: 0..1, share of each class to hold out; at least one photo of a class with several units, and at least
            one unit of each class stays.

    Returns:
        Numbers of the units that are held out.
    """
    units = [{**unit, TOTAL: sum(unit.values())} for unit in units]
    wanted, best = _wanted(units, fraction), None
    for start in range(min(STARTS, len(units)) if len(units) <= FEW else 1):
        drawn = _drawn_from(start, units, wanted)
        if best is None or drawn.cost(wanted) < best.cost(wanted):
            best = drawn
        if best.cost(wanted) == (0, 0):
            break
    return best.chosen if best else set()


def _drawn_from(start: int, units: Sequence[Unit], wanted: dict[int, float]) -> _Drawn:
    """Hold units out beginning with one in the order, then improve the choice as long as that helps."""
    drawn = _Drawn(units, wanted, Counter(label for unit in units for label in unit))
    for number in (*range(start, len(units)), *range(start)):
        if drawn.fits(number):
            drawn.toggle(number)
    for _ in range(MOST_ROUNDS):
        if drawn.cost(wanted) == (0, 0) or not sum(drawn.improve(*move) for move in _moves(drawn)):
            break
    return drawn


def _wanted(units: Sequence[Unit], fraction: float) -> dict[int, float]:
    """Photos of each class to be held out, and of all."""
    num_photos, num_units = Counter[int](), Counter(label for unit in units for label in unit)
    for unit in units:
        num_photos.update(unit)
    whole = {label for unit in units if unit[TOTAL] > 1 for label in unit}
    wanted: dict[int, float] = {}
    for label, count in num_photos.items():
        if label != TOTAL:
            share = fraction * count if label in whole else round(fraction * count)
            wanted[label] = min(count - 1, max(1, share)) if num_units[label] > 1 else 0
    return {**wanted, TOTAL: sum(wanted.values())}


def _moves(drawn: _Drawn) -> Iterator[tuple[int, ...]]:
    """Single units, then pairs of one that is held out and one that is not."""
    numbers = range(len(drawn.units))
    inside = [number for number in numbers if number in drawn.chosen][:MOST_SWAPPED]
    outside = [number for number in numbers if number not in drawn.chosen][:MOST_SWAPPED]
    yield from ((number,) for number in (*inside, *outside))
    yield from ((a, b) for a in inside for b in outside if a in drawn.chosen and b not in drawn.chosen)

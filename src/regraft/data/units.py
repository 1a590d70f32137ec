"""Units of photos that are never parted: those of equal content, and those of one group, whatever their labels."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence


def units_of(hashes: Sequence[str], groups: Sequence[str] = ()) -> tuple[str, ...]:
    """Find the unit of each photo: photos joined by equal content or an equal group, directly or through others.

    Args:
        hashes: Content hashes of N photos.
        groups: Names of N groups, or nothing where each photo stands for itself.

    Returns:
        N names; a unit's is its smallest content hash, so that it depends on no file's name and no order.
    """
    if not groups:
        return tuple(hashes)
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, (content, group) in enumerate(zip(hashes, groups, strict=True)):
        members["content", content].append(i)
        members["group", group].append(i)
    names = list(hashes)
    for unit in connected((numbers[0], other) for numbers in members.values() for other in numbers[1:]):
        name = min(hashes[i] for i in unit)
        for i in unit:
            names[i] = name
    return tuple(names)


def connected(links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Find the connected components of a graph that have two members or more.

    Args:
        links: Pairs of members.

    Returns:
        The components, each sorted, in the order of their first members.
    """
    group_of: dict[int, list[int]] = {}
    for ends in links:
        smaller, larger = sorted((group_of.setdefault(i, [i]) for i in ends), key=len)
        if smaller is not larger:
            larger += smaller
            group_of.update(dict.fromkeys(smaller, larger))
    return sorted(sorted(group) for group in {id(group): group for group in group_of.values()}.values())


def drawn_at(seed: int, unit: str) -> str:
    """Return a unit's place in a random order, a function of seed and content alone.

    It is hexadecimal, and uniformly distributed.
    """
    return hashlib.sha256(f"{seed} {unit}".encode()).hexdigest()


def share_at(seed: int, unit: str) -> float:
    """Return the same place as `drawn_at`, as a number in 0..1."""
    return int(drawn_at(seed, unit)[:13], 16) / 16**13

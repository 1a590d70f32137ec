"""Names of folders that say which part of a data set they hold, as `Training`, `test_set` and `seg_train` do."""

import re
from collections.abc import Sequence

WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tests", "tst"), "test"),
    **dict.fromkeys(("eval", "evaluation", "evaluate", "holdout", "heldout"), "held out"),
}
"""A word and the part it names; "held out" is val or test, whichever has no folder of its own."""

CONTAINERS = frozenset(
    "data|dataset|datasets|image|images|img|imgs|photo|photos|picture|pictures|archive".split("|")  # noqa: SIM905
)
"""Names of a folder that does nothing but hold a data set."""

AFFIXES = CONTAINERS | frozenset(
    "set|sets|pic|pics|sample|samples|split|splits|folder|folders|dir|directory|seg|jpg|jpeg|png|rgb|raw|original|"  # noqa: SIM905
    "resized|cropped|processed|preprocessed|final|new|full|small|mini|subset|part|instances|the|my|of|for|v|x".split(
        "|"
    )
)
"""Words that stand beside those and say nothing more."""

UNLABELLED = frozenset(("unknown", "unlabelled", "unlabeled", "all", "predict", "prediction", "submission"))
"""Names of a folder of photos whose class nobody has said."""


def split_of(name: str) -> str | None:
    """Return the part of a data set that a name says.

    Args:
        name: Of a folder, or in the column `split` of a list.

    Returns:
        "train", "val", "test", "held out" for val or test, or None where it says none of them, or more than one.
    """
    tokens = _tokens(name)
    if meaning := _meaning("".join(tokens)):
        return meaning
    meanings = [meaning for token in tokens if (meaning := _meaning(token))]
    return meanings[0] if len(meanings) == 1 and _rest(tokens) <= AFFIXES else None


def mentions_split(name: str) -> bool:
    """Return whether one of a name's words is of a split, whatever stands beside it, as in `public_test`."""
    return any(map(_meaning, _tokens(name)))


def find_split_folders(names: Sequence[str]) -> dict[str, str]:
    """Find which of some folders beside each other are splits.

    Names that differ in nothing but the word for the split, as `fruit-train` and `fruit-test`, are some too.

    Args:
        names: Of the folders.

    Returns:
        "train", "val" or "test" by name, for those that are splits.
    """
    splits = {name: meaning for name in names if (meaning := split_of(name))}
    twins = [name for name in names if _is_one_of_a_pair(name, names)]
    splits |= {name: next(filter(None, map(_meaning, _tokens(name)))) for name in twins if name not in splits}
    free = [split for split in ("val", "test") if split not in splits.values()]
    return {name: (*free, "val")[0] if meaning == "held out" else meaning for name, meaning in splits.items()}


def is_container(name: str) -> bool:
    """Return whether a folder's name says no more than that photos are in it, as `images` and `data`."""
    return name.lower() in CONTAINERS


def is_unlabelled(name: str) -> bool:
    """Return whether a folder's name says nothing about what its photos are, as `test`, `images` and `unknown`."""
    tokens = set(_tokens(name))
    return bool(tokens) and all(token in AFFIXES | UNLABELLED or _meaning(token) for token in tokens)


def _is_one_of_a_pair(name: str, names: Sequence[str]) -> bool:
    """Whether another name is the same but for the split, and one of the two is of train."""
    meanings = _meanings(name)
    if len(meanings) != 1:
        return False
    others = [_meanings(other) for other in names if other != name and _rest(_tokens(other)) == _rest(_tokens(name))]
    return any(len(other) == 1 and other != meanings and "train" in (*meanings, *other) for other in others)


def _meanings(name: str) -> list[str]:
    return [meaning for token in _tokens(name) if (meaning := _meaning(token))]


def _tokens(name: str) -> list[str]:
    """Words of a name in small letters, without numbers: of `TrainingSet 2`, training and set."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _rest(tokens: Sequence[str]) -> set[str]:
    return {token for token in tokens if not _meaning(token)}


def _meaning(token: str) -> str | None:
    """Return the part that a word names, also with an affix grown to it, as trainset and testdata."""
    if token in WORDS:
        return WORDS[token]
    updated = ((token[len(word) :], meaning) for word, meaning in WORDS.items() if token.startswith(word))
    return next((meaning for rest, meaning in updated if len(rest) > 1 and rest in AFFIXES), None)

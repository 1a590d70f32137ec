"""Every error that a user can cause. One line each: what, where, expected, got, cure.

RegraftError
├── DataError       a folder, a split or a photo
│   └── InputError  photos, labels or weights handed to an estimator; also a ValueError
├── BackboneError   a network's name or structure
├── WeightsError    a weights file
├── BundleError     a saved model
├── OutputError     a place that cannot be written
├── ConfigError     a setting that is unknown or cannot be
├── TrainError      a training that cannot go on
├── ExportError     an exported model that answers otherwise
├── ResourceError   a machine that has too little memory
├── ServeError      a server that cannot start
├── HubError        a model hub that cannot be reached, or refuses
└── MissingExtra    an optional dependency that is not installed
"""

import difflib
from collections.abc import Iterable


class RegraftError(Exception):
    """Base class of errors that a user can cause; the command line prints the message in one line and exits with 1."""


class DataError(RegraftError):
    """A data set cannot be read, or cannot be read one way only."""


class InputError(DataError, ValueError):
    """Photos, labels or weights in memory are not what an estimator takes: to scikit-learn, a ValueError."""


class BackboneError(RegraftError):
    """A backbone is unknown, cannot be built, or does not end in a linear layer."""


class WeightsError(RegraftError):
    """A weights file is unreadable, unsafe, or made for another network."""


class BundleError(RegraftError):
    """A bundle is missing, damaged, or of an unknown format."""


class OutputError(RegraftError):
    """A folder cannot be written, or another run is using it."""


class ConfigError(RegraftError):
    """A setting is unknown, out of range, or contradicts another."""


class TrainError(RegraftError):
    """A training cannot go on: a loss that is not finite, or a checkpoint of another run."""


class ExportError(RegraftError):
    """An exported model does not answer as the bundle does; it was not kept."""


class ResourceError(RegraftError):
    """The machine has too little memory, or this process may not use enough of it."""


class ServeError(RegraftError):
    """A server cannot start: its model does not load, or its address is taken."""


class HubError(RegraftError):
    """A model hub cannot be reached, does not know a repository, or refuses what was asked of it."""


class MissingExtra(RegraftError):
    """A command needs packages that the light core does not install.

    Args:
        package: The one that is not installed.
        extra: The extra of regraft that installs it.
    """

    def __init__(self, package: str, extra: str = "train") -> None:
        super().__init__(
            f"This needs the package {package!r}, which is not installed. "
            f"Install the [{extra}] extra: pip install 'regraft[{extra}]'"
        )


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Suggest known names that are similar to a misspelt one.

    Args:
        name: What was written.
        known: The names that there are.
        count: How many are suggested at most.

    Returns:
        ` Did you mean 'a' or 'b'?`, with the blank at its beginning; "" where no known name is similar.
    """
    matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""

"""Many photos through a bundle, in order, on all cores. A photo that cannot be read does not stop the others."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.data.layout import is_junk, natural_key
from regraft.data.scan import map_photos
from regraft.deliver.bundle import Bundle, Prediction
from regraft.ground.errors import DataError
from regraft.ground.progress import QUIET, Progress


@dataclass(frozen=True)
class Answer:
    """path: as given or found.  Either a prediction, or the reason why there is none."""

    path: str
    prediction: Prediction | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """As printed by `regraft predict --json`."""
        if self.prediction is None:
            return {"path": self.path, "error": self.error}
        return {"path": self.path, **self.prediction.to_json()}


def predict(bundle: Bundle, sources: Iterable[str | Path], *, progress: Progress = QUIET) -> Iterator[Answer]:
    """An Answer for each photo: of each source that is a folder, for every file below it.

    Raises DataError for a source that does not exist, before anything is predicted.
    """
    paths = list(find_photos(sources))
    if not paths:
        return
    _ = bundle.engine  # compiled once, before the threads start

    def answer(index: int) -> Answer:
        try:
            return Answer(str(paths[index]), bundle.predict(paths[index]), None)
        except DataError as error:
            return Answer(str(paths[index]), None, str(error))

    with progress.step("predict", total=len(paths)) as advance:
        yield from map_photos(answer, len(paths), advance)


def find_photos(sources: Iterable[str | Path]) -> Iterator[Path]:
    """Files named, and files below the folders named, in natural order, hidden and junk ones left out.

    Raises DataError for what does not exist.
    """
    for source in map(Path, sources):
        if source.is_dir():
            yield from _below(source)
        elif source.exists():
            yield source
        else:
            raise DataError(f"There is no photo or folder {source}. Check the path.")


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if is_junk(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        elif path.is_file():
            yield path

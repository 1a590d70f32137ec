"""The commands `regraft embed` and `regraft similar`: features of photos as a file, and photos that look alike."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regraft.backbones.backbone import configured
from regraft.backbones.features import fill
from regraft.bundle.bundle import Bundle
from regraft.bundle.predict import find_photos
from regraft.core.config import TrainConfig
from regraft.core.csv_cells import to_cell
from regraft.core.errors import ConfigError, DataError
from regraft.core.files import csv_bytes
from regraft.core.ownership import refuse_foreign, seal_text, write_output
from regraft.core.progress import QUIET, Progress
from regraft.data.remote import named
from regraft.data.scan import Dataset, unlabelled
from regraft.evaluation.evaluate import bundle_features
from regraft.reporting.answer_table import check_parquet
from regraft.reporting.html_similar import similar_html

LEAST = 1e-12  # length below which features have no direction
BLOCK = 4096  # photos that are compared at a time


@dataclass(frozen=True)
class Embeddings:
    """Features of N photos, of which what looks alike lies close.

    Attributes:
        paths: Of the photos, as given or found; of what lies at addresses, by these.
        hashes: SHA-256 of their contents, hexadecimal.
        x: `(N, D)` float32.
        network: What computed them.
        failures: Path and reason of photos that could not be read.
        files: Where the photos were read; () for where `paths` say.
    """

    paths: tuple[str, ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)
    x: np.ndarray = field(repr=False)
    network: str
    failures: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    files: tuple[str, ...] = field(default=(), repr=False)

    def file(self, i: int) -> Path:
        """Return where a photo was read."""
        return Path((self.files or self.paths)[i])


@dataclass(frozen=True)
class Neighbour:
    """A photo that looks like another.

    Attributes:
        path: As given or found.
        similarity: Cosine of the angle between the features of both, -1..1.
        is_same: Whether its file has the same content.
        file: Where it was read; None for where `path` says.
    """

    path: str
    similarity: float
    is_same: bool = False
    file: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft similar --json` prints."""
        return {"path": self.path, "similarity": self.similarity, "is_same": self.is_same}


def embed(
    photos: Sequence[str | Path],
    *,
    bundle: Bundle | None = None,
    config: TrainConfig | None = None,
    follow_links: bool = False,
    every_s: float | None = None,
    progress: Progress = QUIET,
) -> Embeddings:
    """Compute features of photos, or find them in the cache.

    Args:
        photos: Photos and folders.
        bundle: The model whose features are wanted; None for a pretrained backbone's.
        config: Names the backbone and its weights; None for the default one.
        follow_links: Whether links to folders are followed.
        every_s: Seconds from frame to frame of videos; None to read no videos.
        progress: Is told what is done.

    Raises:
        DataError: There is no photo, or none can be read.
        BackboneError: The backbone is unknown.
    """
    paths = list(find_photos(photos, follow_links=follow_links, every_s=every_s, progress=progress))
    dataset = unlabelled(paths, progress)
    rows, failures = _rows(dataset, bundle, config or TrainConfig(), progress)
    name = str(bundle.manifest["backbone"]["name"]) if bundle else (config or TrainConfig()).backbone
    dataset = dataset.without(failures)
    failed = tuple((named(Path(one.path)), one.reason) for one in dataset.quarantine)
    if not len(dataset):
        first = f", such as {failed[0][0]}: {failed[0][1]}" if failed else ""
        raise DataError(f"There is no readable photo in {', '.join(map(str, photos))}{first}. Expected photos.")
    names = tuple(named(Path(path)) for path in dataset.paths)
    return Embeddings(names, dataset.hashes, rows.table[rows.places(dataset.hashes)], name, failed, dataset.paths)


def _rows(dataset: Dataset, bundle: Bundle | None, config: TrainConfig, progress: Progress) -> tuple[Any, Any]:
    if bundle is not None:
        return bundle_features(bundle, dataset, progress)
    return fill(configured(config, progress), dataset, progress=progress)


def check_output(path: Path) -> None:
    """Make sure that features can be written to a file, before they are computed.

    Raises:
        ConfigError: Its name ends in nothing that is known.
        OutputError: Something else is there, which stays.
        MissingExtra: It is a Parquet file, and pyarrow is not installed.
    """
    if path.suffix not in (".npy", ".parquet", ".csv"):
        raise ConfigError(f"{path} has the ending {path.suffix!r}. Expected .npy, .parquet or .csv.")
    if path.suffix == ".parquet":
        check_parquet()
    for one in _files(path):
        refuse_foreign(one)


def _files(path: Path) -> tuple[Path, ...]:
    """Return what is written: NumPy's format has no room for paths, so a list lies beside it."""
    return (path, path.with_suffix(".paths.csv")) if path.suffix == ".npy" else (path,)


def write_embeddings(embeddings: Embeddings, path: Path) -> tuple[Path, ...]:
    """Write features with the paths of their photos.

    Args:
        embeddings: The features.
        path: `.npy` for an array `(N, D)` float32, with `.paths.csv` beside it, a line for each row; `.parquet` for
            columns path, sha256 and features; `.csv` for columns path, f0, f1, ...

    Returns:
        The files written.

    Raises:
        ConfigError: The name ends in none of these.
        OutputError: A file cannot be written, or is not regraft's and stays.
        MissingExtra: It is a Parquet file, and pyarrow is not installed.
    """
    check_output(path)
    contents = {".npy": _npy, ".parquet": _parquet, ".csv": _csv}[path.suffix](embeddings)
    for place, content in zip(_files(path), contents, strict=True):
        write_output(place, content)
    return _files(path)


def _npy(embeddings: Embeddings) -> list[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, embeddings.x, allow_pickle=False)
    return [buffer.getvalue(), csv_bytes(("path", "sha256"), zip(embeddings.paths, embeddings.hashes, strict=True))]


def _csv(embeddings: Embeddings) -> list[bytes]:
    def quoted(text: str) -> str:
        cell = to_cell(text).replace('"', '""')
        return f'"{cell}"'

    header = ",".join(["path", *(f"f{i}" for i in range(embeddings.x.shape[1]))])
    rows = (
        ",".join([quoted(path), *(f"{value:.9g}" for value in row)])  # nine digits are all of a float32
        for path, row in zip(embeddings.paths, embeddings.x, strict=True)
    )
    return ["".join(f"{line}\n" for line in (header, *rows)).encode()]


def _parquet(embeddings: Embeddings) -> list[bytes]:
    import pyarrow
    import pyarrow.parquet

    features = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(embeddings.x.ravel()), embeddings.x.shape[1])
    paths = [path.encode(errors="backslashreplace").decode() for path in embeddings.paths]
    sink = io.BytesIO()
    table = pyarrow.table({"path": paths, "sha256": list(embeddings.hashes), "features": features})
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return [sink.getvalue()]


def similar(photo: Embeddings, among: Embeddings, count: int = 10) -> list[Neighbour]:
    """Find the photos that look most like one.

    Args:
        photo: Features of one photo.
        among: Features of N others by the same network; the photo itself, if it is among them, is not named.
        count: How many are wanted at most.

    Returns:
        The nearest, most similar first.

    Raises:
        ConfigError: There are several photos whose like is sought.
    """
    if len(photo.paths) > 1:
        raise ConfigError(
            f"{len(photo.paths)} photos are named whose like is to be found. Expected one, such as {photo.paths[0]}."
        )
    query_path = Path(photo.paths[0]).resolve()
    query = _directions(photo.x[:1])[0]
    closeness = np.concatenate([block @ query for block in _blocks(among.x)])
    neighbours = []
    for i in map(int, np.argsort(-closeness, kind="stable")):
        if Path(among.paths[i]).resolve() != query_path:
            is_same = among.hashes[i] == photo.hashes[0]
            neighbours.append(Neighbour(among.paths[i], min(1.0, float(closeness[i])), is_same, among.file(i)))
        if len(neighbours) == count:
            break
    return neighbours


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (_directions(x[start : start + BLOCK]) for start in range(0, len(x), BLOCK))


def _directions(x: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, in float64."""
    wide = x.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), LEAST))


def write_similar(photo: Embeddings, neighbours: Sequence[Neighbour], path: Path) -> Path:
    """Write a page that shows a photo and those that look like it.

    Raises:
        OutputError: The file cannot be written, or something else is there, which stays.
    """
    rows = [(one.path, one.file or Path(one.path), one.similarity, one.is_same) for one in neighbours]
    page = similar_html(photo.paths[0], photo.file(0), rows, photo.network)
    write_output(path, seal_text(page, ".html"))
    return path

"""One set of drawn photos, written by the library of each kind of place: a training gives the same bundle from each."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from regraft.cli import cli
from regraft.core.files import sha256_file
from regraft.run_dir import read_record
from tiny_backbone import draw_photos, tiny_backbone

COUNTS = {"ash": 20, "birch": 20, "cedar": 20}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty photos in class folders, and a file that is none."""
    root = tmp_path_factory.mktemp("drawn")
    draw_photos(root / "photos", COUNTS)
    (root / "photos" / "ash" / "none.png").write_bytes(b"no photo")
    return root / "photos"


@pytest.fixture
def trained(backbone, tmp_path, monkeypatch, capsys):
    """`trained(place, ...)`: what the command line says of a training, and the hashes of the bundle's files."""
    monkeypatch.setattr("regraft.commands.train.configured", lambda config, progress: backbone)

    def train(place, *options):
        out = tmp_path / "run"
        words = ["train", str(place), "--mode", "frozen", "--no-report", "--out", str(out), "--json", "--quiet"]
        cli.main([*words, *options], standalone_mode=False)
        said = json.loads(capsys.readouterr().out)
        images = said["images"]
        assert images["found"] == images["used"] + images["quarantined"]
        hashes = {path.name: sha256_file(path) for path in sorted((out / "bundle").iterdir())}
        sides = {photo.sha256: photo.split for photo in read_record(out, "").photos}
        return said, hashes, sides

    return train


@pytest.fixture(scope="module")
def expected():
    """What the folder itself gives, computed once."""
    return {}


def photos_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def as_zip(folder, place, **options):
    with zipfile.ZipFile(place / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in photos_of(folder):
            archive.write(path, path.relative_to(folder))
    return place / "photos.zip"


def as_stored_zip_in_a_folder(folder, place):
    with zipfile.ZipFile(place / "stored", "w") as archive:
        for path in photos_of(folder):
            archive.write(path, Path("a set", path.relative_to(folder)))
    return place / "stored"


def as_tar(folder, place):
    with tarfile.open(place / "photos.tar", "w") as archive:
        archive.add(folder, "photos")
    return place / "photos.tar"


def as_packed_tar(folder, place):
    with tarfile.open(place / "photos.tar.gz", "w:gz") as archive:
        archive.add(folder, ".")
    return place / "photos.tar.gz"


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def as_shards(folder, place, label=lambda name: ("cls", name.encode())):
    """As `webdataset.ShardWriter` writes samples: `__key__`, then its files by their extensions."""
    for number in range(3):
        with tarfile.open(place / f"set-{number:03}.tar", "w") as archive:
            for k, path in enumerate(photos_of(folder)[number::3]):
                kind, text = label(path.parent.name)
                add(archive, f"{k:06d}.{kind}", text)
                add(archive, f"{k:06d}.png", path.read_bytes())
    return place / "set-{000..002}.tar"


def as_shards_with_json(folder, place):
    as_shards(folder, place, lambda name: ("json", json.dumps({"label": name, "size": 16}).encode()))
    return place / "*.tar"


def rows_of(folder, place):
    """The photos in one folder under numbers, and the rows of a list of them."""
    (place / "train").mkdir()
    rows = []
    for number, path in enumerate(photos_of(folder)):
        shutil.copy(path, place / "train" / f"{number:03}.png")
        rows.append((f"{number:03}", path.parent.name))
    return rows


def as_kaggle_list(folder, place):
    rows = rows_of(folder, place)
    pandas.DataFrame(rows, columns=["id", "breed"]).to_csv(place / "labels.csv", index=False)
    return place / "labels.csv"


def as_list_of_excel(folder, place):
    lines = [
        "sep=;",
        "File;Species;Seen",
        *(f"train\\{number}.png;{name};x" for number, name in rows_of(folder, place)),
    ]
    (place / "photos.csv").write_bytes("\r\n".join(lines).encode("utf-16"))
    return place / "photos.csv", "--label-column", "Species"


def as_list_in_a_zip(folder, place):
    as_kaggle_list(folder, make(place / "list"))
    with zipfile.ZipFile(place / "set.zip", "w") as archive:
        for path in (place / "list").rglob("*.*"):
            archive.write(path, path.relative_to(place / "list"))
    return place / "set.zip" / "labels.csv"


def make(folder):
    folder.mkdir()
    return folder


def as_imagefolder(folder, place):
    rows = [{"file_name": f"{number}.png", "label": name} for number, name in rows_of(folder, place)]
    pandas.DataFrame(rows).to_json(place / "train" / "metadata.jsonl", orient="records", lines=True)
    return place / "train"


def as_names(folder, place):
    for number, path in enumerate(photos_of(folder)):
        shutil.copy(path, place / f"{path.parent.name}.{number}.png")
    return place, "--label-by", r"([a-z]+)\.[0-9]+\.png"


def table_of(folder, place, name, group=7):
    """As `Dataset.to_parquet` of the library `datasets` writes a table of an Image and a ClassLabel."""
    names = sorted({path.parent.name for path in photos_of(folder)})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in photos_of(folder)]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    labels = [names.index(path.parent.name) for path in photos_of(folder)]
    table = pyarrow.table({"image": pyarrow.array(images, kind), "label": pyarrow.array(labels, pyarrow.int64())})
    said = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(said), place / name, row_group_size=group)
    return place / name


def as_repository(folder, place):
    table_of(folder, make(place / "data"), "train-00000-of-00001.parquet")
    (place / "README.md").write_text("a data set")
    return place


KINDS = {
    "parquet": lambda folder, place: table_of(folder, place, "photos.parquet"),
    "a repository of parquet": as_repository,
    "a list of Kaggle's": as_kaggle_list,
    "a list of Excel's": as_list_of_excel,
    "a list in a zip": as_list_in_a_zip,
    "imagefolder": as_imagefolder,
    "classes in names": as_names,
    "zip": as_zip,
    "zip, stored, in a folder": as_stored_zip_in_a_folder,
    "tar": as_tar,
    "tar.gz": as_packed_tar,
    "shards": as_shards,
    "shards with json": as_shards_with_json,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_bundle_of_the_folder(folder, tmp_path, trained, expected, kind):
    written = KINDS[kind](folder, make(tmp_path / "written"))
    place, *options = written if isinstance(written, tuple) else (written,)
    if not expected:
        expected["folder"] = trained(folder)
    said, bundle, sides = trained(place, *options)
    of_folder, as_folder, sides_in_folder = expected["folder"]
    assert said["classes"] == of_folder["classes"] == sorted(COUNTS)
    assert said["images"] == of_folder["images"] == {"found": 61, "used": 60, "quarantined": 1}
    assert said["accuracy"] == of_folder["accuracy"]
    assert sides == sides_in_folder
    assert bundle == as_folder

"""One set of drawn photos, written by the library of each kind of place: a training gives the same bundle from each."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import av
import fsspec
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from regraft.cli import cli
from regraft.core.files import sha256_file
from regraft.run_dir import read_record
from tiny_backbone import SHADES, draw, draw_photos, tiny_backbone
from tiny_video import write_video

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


def as_objects(folder, place):
    system = fsspec.filesystem("memory")
    for path in photos_of(folder):
        system.pipe_file(f"/{place.parent.name}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory://{place.parent.name}"


KINDS = {
    "objects": as_objects,
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
    if "folder" not in expected:
        expected["folder"] = trained(folder)
    said, bundle, sides = trained(place, *options)
    of_folder, as_folder, sides_in_folder = expected["folder"]
    assert said["classes"] == of_folder["classes"] == sorted(COUNTS)
    assert said["images"] == of_folder["images"] == {"found": 61, "used": 60, "quarantined": 1}
    assert said["accuracy"] == of_folder["accuracy"]
    assert sides == sides_in_folder
    assert bundle == as_folder


SHEET = 3  # photos side by side on a sheet


@pytest.fixture(scope="module")
def sheets(folder, tmp_path_factory):
    """The photos side by side on sheets, each with its class and its box (left, top, width, height)."""
    root, found = tmp_path_factory.mktemp("sheets"), []
    photos = [path for path in photos_of(folder) if path.name != "none.png"]
    for number in range(len(photos) // SHEET):
        tiles = [(path.parent.name, Image.open(path)) for path in photos[number :: len(photos) // SHEET]]
        width, height = tiles[0][1].size
        sheet = Image.new("RGB", (SHEET * width, height + 3))
        for k, (_, tile) in enumerate(tiles):
            sheet.paste(tile, (k * width, 3))
        sheet.save(root / f"{number:03}.png")
        boxes = [(name, (k * width, 3, width, height)) for k, (name, _) in enumerate(tiles)]
        found.append((root / f"{number:03}.png", sheet.size, boxes))
    return found


def with_photos(sheets, place):
    for path, _, _ in sheets:
        shutil.copy(path, place / path.name)
    return place


def as_crops(sheets, place):
    """What the boxes hold, as files in class folders."""
    for path, _, boxes in sheets:
        for k, (name, (left, top, width, height)) in enumerate(boxes):
            (place / name).mkdir(exist_ok=True)
            Image.open(path).crop((left, top, left + width, top + height)).save(place / name / f"{path.stem}-{k}.ppm")
    return place


def as_coco(sheets, place):
    """As https://cocodataset.org/#format-data says."""
    names, images, drawn = sorted(COUNTS), [], []
    for number, (path, (width, height), boxes) in enumerate(sheets):
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        drawn += [{"image_id": number, "category_id": 7 + names.index(n), "bbox": [*b], "iscrowd": 0} for n, b in boxes]
    drawn = [{"id": number, **one} for number, one in enumerate(drawn)]
    values = {
        "images": images,
        "annotations": drawn,
        "categories": [{"id": 7 + i, "name": n} for i, n in enumerate(names)],
    }
    with_photos(sheets, make(place / "images"))
    (place / "instances.json").write_text(json.dumps(values))
    return place / "instances.json"


def as_label_studio(sheets, place):
    """As https://labelstud.io/guide/export says of JSON."""
    tasks = []
    for number, (path, (width, height), boxes) in enumerate(sheets):
        sides = [
            (n, (100 * x / width, 100 * y / height, 100 * w / width, 100 * h / height)) for n, (x, y, w, h) in boxes
        ]
        results = [
            {
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "value": {**dict(zip(("x", "y", "width", "height"), box, strict=True)), "rectanglelabels": [name]},
            }
            for name, box in sides
        ]
        cancelled = {"was_cancelled": True, "result": []}
        data = {"image": f"/data/local-files/?d=images/{path.name}"}
        tasks.append({"id": number, "data": data, "annotations": [{"result": results}, cancelled]})
    with_photos(sheets, make(place / "images"))
    (place / "export.json").write_text(json.dumps(tasks))
    return place / "export.json"


def as_cvat(sheets, place):
    """As https://docs.cvat.ai/docs/dataset_management/formats/format-cvat says of images."""
    root = ElementTree.Element("annotations")
    for number, (path, (width, height), boxes) in enumerate(sheets):
        image = ElementTree.SubElement(
            root, "image", id=str(number), name=path.name, width=str(width), height=str(height)
        )
        for name, (left, top, w, h) in boxes:
            corners = {"xtl": left, "ytl": top, "xbr": left + w, "ybr": top + h}
            ElementTree.SubElement(image, "box", label=name, **{key: f"{value:.2f}" for key, value in corners.items()})
    ElementTree.ElementTree(root).write(with_photos(sheets, place) / "annotations.xml", encoding="utf-8")
    return place / "annotations.xml"


def as_yolo(sheets, place):
    names = sorted(COUNTS)
    with_photos(sheets, make(place / "images"))
    make(place / "labels")
    for path, (width, height), boxes in sheets:
        lines = [
            f"{names.index(n)} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}\n"
            for n, (x, y, w, h) in boxes
        ]
        (place / "labels" / f"{path.stem}.txt").write_text("".join(lines))
    (place / "data.yaml").write_text("path: .\nnames:\n" + "".join(f"  {i}: {name}\n" for i, name in enumerate(names)))
    return place


def as_coco_in_a_zip(sheets, place):
    as_coco(sheets, make(place / "set"))
    with zipfile.ZipFile(place / "set.zip", "w") as archive:
        for path in (place / "set").rglob("*.*"):
            archive.write(path, path.relative_to(place / "set"))
    return place / "set.zip" / "instances.json"


BOXES = {
    "COCO": as_coco,
    "COCO in a zip": as_coco_in_a_zip,
    "Label Studio": as_label_studio,
    "CVAT": as_cvat,
    "YOLO": as_yolo,
}


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_give_the_bundle_of_a_folder_of_crops(sheets, tmp_path, trained, expected, kind):
    by_sheet = ("--group-by", r"([0-9]{3})[-.]")
    if "crops" not in expected:
        expected["crops"] = trained(as_crops(sheets, make(tmp_path / "crops")), *by_sheet)
    said, bundle, sides = trained(BOXES[kind](sheets, make(tmp_path / "written")), *by_sheet)
    of_crops, as_folder, sides_in_folder = expected["crops"]
    assert said["images"] == of_crops["images"] == {"found": 60, "used": 60, "quarantined": 0}
    assert said["accuracy"] == of_crops["accuracy"]
    assert sides == sides_in_folder
    assert bundle == as_folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Videos of three frames a second, one of each shade and number, of which every third frame is asked for."""
    root = tmp_path_factory.mktemp("clips")
    for name in COUNTS:
        for number in range(6):
            photo = draw(root / "drawn.png", SHADES[name], 1000 * number + len(name))
            make_video(root / "videos" / name / f"{number}.mkv", Image.open(photo), seed=number)
    return root / "videos"


def make_video(path, photo, seed, num_frames=10, rate=3):
    """Lossless, so that what is read is what was drawn; each frame is a little brighter."""
    frames = [np.asarray(photo.point(lambda value, k=k: min(255, value + k + seed))) for k in range(num_frames)]
    write_video(path, frames, rate)
    return path


def test_videos_give_the_bundle_of_a_folder_of_their_frames(clips, tmp_path, trained):
    frames = tmp_path / "frames"
    for path in clips.rglob("*.mkv"):
        with av.open(str(path)) as container:
            shown = [frame.to_image() for frame in container.decode(video=0)][::3]
        for k, image in enumerate(shown):
            place = frames / path.parent.name / f"{path.stem}.mkv"
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{1000 * k:010d}.ppm")
    by_video = ("--group-by", r"([a-z]+/[0-9]+)[.]mkv", "--class-level", "top")
    _, of_folder, sides_in_folder = trained(frames, *by_video)
    said, bundle, sides = trained(clips, "--every", "1s", *by_video)
    assert said["images"] == {"found": 72, "used": 72, "quarantined": 0}
    assert sides == sides_in_folder
    assert bundle == of_folder

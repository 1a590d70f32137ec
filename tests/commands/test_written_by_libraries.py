"""Sixty drawn photos in the files of the programs that people have them from, written by these programs' own libraries.

Needs what regraft itself does not, and is left out where that is missing:

    pip install datasets webdataset datumaro label-studio-sdk supervision
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas
import pytest
import test_kinds_of_photos as kinds
from test_kinds_of_photos import COUNTS, make, photos_of

from regraft.commands.data import write_data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of other libraries
]
backbone, folder, trained, expected, sheets = (
    kinds.backbone,
    kinds.folder,
    kinds.trained,
    kinds.expected,
    kinds.sheets,
)
NAMES = sorted(COUNTS)
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label_rectangles" toName="image">
<Label value="ash"/><Label value="birch"/><Label value="cedar"/></RectangleLabels></View>"""


def table(folder):
    """A data set of the library `datasets`: an Image and a ClassLabel."""
    datasets = pytest.importorskip("datasets")
    paths = photos_of(folder)
    columns = {"image": list(map(str, paths)), "label": [path.parent.name for path in paths]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict(columns, features=features)


def as_parquet_of_paths(folder, place):
    """Without `push_to_hub` a table has the photos' paths alone."""
    shutil.copytree(folder, place / "photos")
    table(place / "photos").to_parquet(place / "photos.parquet")
    return place / "photos.parquet"


def as_repository(folder, place):
    """As `push_to_hub` writes it: several files in `data`, with the photos' bytes."""
    datasets = pytest.importorskip("datasets")
    whole = table(folder)
    for number in range(3):
        shard = whole.shard(num_shards=3, index=number).with_format("arrow")
        shard = shard.map(datasets.table.embed_table_storage, batched=True, batch_size=7).with_format(None)
        shard.to_parquet(place / "data" / f"train-{number:05d}-of-00003.parquet")
    return place


def as_parquet_of_pandas(folder, place):
    photos = photos_of(folder)
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in photos]
    found = pandas.DataFrame({"image": images, "label": [path.parent.name for path in photos]})
    found.to_parquet(place / "photos.parquet")
    return place / "photos.parquet"


def as_imagefolder(folder, place):
    """Photos and `metadata.csv`, which `datasets` itself reads as the same table."""
    datasets = pytest.importorskip("datasets")
    rows = kinds.rows_of(folder, place)
    found = pandas.DataFrame([(f"{number}.png", name) for number, name in rows], columns=["file_name", "label"])
    found.to_csv(place / "train" / "metadata.csv", index=False)
    read = datasets.load_dataset("imagefolder", data_dir=str(place), cache_dir=str(place.parent / "cache"))["train"]
    assert sorted(read["label"]) == sorted(name for _, name in rows)
    return place / "train"


def as_shards(folder, place, label=lambda name: {"cls": name}):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(place / "set-%06d.tar"), maxcount=25, verbose=0) as writer:
        for number, path in enumerate(photos_of(folder)):
            writer.write({"__key__": f"{number:06d}", "png": path.read_bytes(), **label(path.parent.name)})
    return place / "set-{000000..000002}.tar"


def as_shards_with_json(folder, place):
    return as_shards(folder, place, lambda name: {"json": {"label": name}})


def as_packed_shards(folder, place):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(place / "set.tar.gz"), compress=True) as writer:
        for number, path in enumerate(photos_of(folder)):
            writer.write({"__key__": f"{number:06d}", "png": path.read_bytes(), "cls": path.parent.name})
    return place / "set.tar.gz"


def as_zip_of_shutil(folder, place):
    return Path(shutil.make_archive(str(place / "photos"), "zip", folder))


def as_tar_of_shutil(folder, place):
    return Path(shutil.make_archive(str(place / "photos"), "gztar", folder))


def as_pax_tar(folder, place):
    with tarfile.open(place / "photos.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for path in photos_of(folder):
            info = archive.gettarinfo(path, f"größer/{path.relative_to(folder)}")
            info.pax_headers = {"comment": "ein Foto", "mtime": "1.5"}
            with open(path, "rb") as opened:
                archive.addfile(info, opened)
    return place / "photos.tar"


FILES = {
    "parquet of datasets": as_parquet_of_paths,
    "parquet of pandas": as_parquet_of_pandas,
    "a repository of datasets": as_repository,
    "imagefolder": as_imagefolder,
    "shards with cls": as_shards,
    "shards with json": as_shards_with_json,
    "a packed shard": as_packed_shards,
    "zip of shutil": as_zip_of_shutil,
    "tar.gz of shutil": as_tar_of_shutil,
    "tar of PAX": as_pax_tar,
}


@pytest.mark.parametrize("kind", FILES)
def test_what_a_library_writes_gives_the_bundle_of_the_folder(folder, tmp_path, trained, expected, kind):
    place = FILES[kind](folder, make(tmp_path / "written"))
    if "folder" not in expected:
        expected["folder"] = trained(folder)
    said, bundle, sides = trained(place)
    of_folder, as_folder, sides_in_folder = expected["folder"]
    assert said["classes"] == of_folder["classes"] == NAMES
    assert said["images"] == of_folder["images"] == {"found": 61, "used": 60, "quarantined": 1}
    assert said["accuracy"] == of_folder["accuracy"]
    assert sides == sides_in_folder
    assert bundle == as_folder


def in_datumaro(sheets, val=""):
    """The sheets and boxes in the library that CVAT exports with, the last ones in a split of their own."""
    datumaro = pytest.importorskip("datumaro")
    items = [
        datumaro.DatasetItem(
            id=path.stem,
            subset=val if val and path in in_val(sheets) else "train",
            media=datumaro.Image.from_file(path=str(path)),
            annotations=[datumaro.Bbox(*box, label=NAMES.index(name), id=k) for k, (name, box) in enumerate(boxes)],
        )
        for path, _, boxes in sheets
    ]
    return datumaro.Dataset.from_iterable(items, categories=NAMES)


def in_val(sheets):
    return [path for path, _, _ in sheets[-5:]]


def as_cvat(sheets, place):
    in_datumaro(sheets).export(str(place), "cvat", save_media=True)
    return place / "train.xml"


def as_coco(sheets, place):
    in_datumaro(sheets).export(str(place), "coco_instances", save_media=True)
    return place / "annotations" / "instances_train.json"


def as_yolo_of_cvat(sheets, place):
    in_datumaro(sheets, "valid").export(str(place), "yolo", save_media=True)
    return place


def as_yolo_of_ultralytics(sheets, place):
    in_datumaro(sheets, "val").export(str(place), "yolo_ultralytics", save_media=True)
    return place


def in_supervision(sheets):
    supervision = pytest.importorskip("supervision")
    drawn = {}
    for path, _, boxes in sheets:
        corners = np.array([(x, y, x + w, y + h) for _, (x, y, w, h) in boxes], float)
        labels = np.array([NAMES.index(name) for name, _ in boxes])
        drawn[str(path)] = supervision.Detections(xyxy=corners, class_id=labels)
    return supervision.DetectionDataset(classes=NAMES, images=list(drawn), annotations=drawn)


def as_yolo_of_roboflow(sheets, place):
    val = in_val(sheets)
    for name, part in (("train", [one for one in sheets if one[0] not in val]), ("valid", sheets[-5:])):
        folder = place / name
        in_supervision(part).as_yolo(str(folder / "images"), str(folder / "labels"), str(place / "data.yaml"))
    return place


def as_coco_of_roboflow(sheets, place):
    in_supervision(sheets).as_coco(str(place / "train"), str(place / "train" / "_annotations.coco.json"))
    return place / "train" / "_annotations.coco.json"


def as_label_studio(sheets, place):
    """Tasks that Label Studio's own converter makes of COCO."""
    coco = pytest.importorskip("label_studio_sdk.converter.imports.coco")
    instances = kinds.as_coco(sheets, place)
    coco.convert_coco_to_ls(str(instances), str(place / "tasks.json"), image_root_url="/data/local-files/?d=images")
    instances.unlink()
    return place / "tasks.json"


def exported(sheets, place, kind):
    """What Label Studio's own converter exports of tasks that have got their numbers."""
    converter = pytest.importorskip("label_studio_sdk.converter")
    file = as_label_studio(sheets, make(place / "tasks"))
    tasks = [{"id": number, **task} for number, task in enumerate(json.loads(file.read_text()), start=1)]
    file.write_text(json.dumps(tasks))
    writer = converter.Converter(CONFIG, project_dir=str(place / "tasks"), upload_dir=str(place / "tasks" / "images"))
    writer.convert(str(file), str(place / "export"), kind, is_dir=False)
    (place / "export" / "images").mkdir(exist_ok=True)
    return kinds.with_photos(sheets, place / "export" / "images").parent


BOXES = {
    "CVAT": as_cvat,
    "COCO": as_coco,
    "COCO of Roboflow": as_coco_of_roboflow,
    "Label Studio": as_label_studio,
    "Label Studio's JSON": lambda sheets, place: exported(sheets, place, "JSON") / "result.json",
    "Label Studio's YOLO": lambda sheets, place: exported(sheets, place, "YOLO"),
    "Label Studio's COCO": lambda sheets, place: exported(sheets, place, "COCO") / "result.json",
    "YOLO of CVAT": as_yolo_of_cvat,
    "YOLO of Ultralytics": as_yolo_of_ultralytics,
    "YOLO of Roboflow": as_yolo_of_roboflow,
}
SPLIT = ("YOLO of CVAT", "YOLO of Ultralytics", "YOLO of Roboflow")


def crops(sheets, place, is_split):
    if not is_split:
        return kinds.as_crops(sheets, make(place / "crops"))
    for part, some in (("train", sheets[:-5]), ("val", sheets[-5:])):
        (place / "crops" / part).mkdir(parents=True)
        kinds.as_crops(some, place / "crops" / part)
    return place / "crops"


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_that_a_library_writes_give_the_bundle_of_a_folder_of_crops(
    sheets, tmp_path, trained, expected, kind, capsys
):
    by_sheet, is_split = ("--group-by", r"([0-9]{3})[-.]"), kind in SPLIT
    if is_split not in expected:
        expected[is_split] = trained(crops(sheets, tmp_path, is_split), *by_sheet)
    place = BOXES[kind](sheets, make(tmp_path / "written"))
    capsys.readouterr()  # some libraries say what they do
    said, bundle, sides = trained(place, *by_sheet)
    of_crops, as_folder, sides_in_folder = expected[is_split]
    assert said["images"] == of_crops["images"] == {"found": 60, "used": 60, "quarantined": 0}
    assert said["accuracy"] == of_crops["accuracy"]
    assert sides == sides_in_folder
    assert bundle == as_folder


def read_by_datasets(kind, **where):
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(kind, **where)["train"].cast_column("image", datasets.Image(decode=False))
    names = found.features["label"].names
    return {(row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes(), names[row["label"]]) for row in found}


def read_by_webdataset(place):
    webdataset = pytest.importorskip("webdataset")
    found = webdataset.WebDataset(str(place), shardshuffle=False, empty_check=False)
    return {(one["png"], json.loads(one["json"])["label"]) for one in found}


@pytest.mark.parametrize("name", ["out", "out.parquet", "out.tar"])
def test_libraries_read_what_regraft_writes(folder, tmp_path, name):
    place, cache = write_data(folder, tmp_path / name).read_as, {"cache_dir": str(tmp_path / "cache")}
    if name == "out.tar":
        found = read_by_webdataset(place)
    elif name == "out.parquet":
        found = read_by_datasets("parquet", data_files=str(place), **cache)
    else:
        found = read_by_datasets("imagefolder", data_dir=str(place), **cache)
    photos = [path for path in photos_of(folder) if path.name != "none.png"]
    assert found == {(path.read_bytes(), path.parent.name) for path in photos}

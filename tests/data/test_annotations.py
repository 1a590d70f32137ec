"""Boxes of annotation programs: what becomes a crop, what is set aside, and what is refused by name."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from regraft.core.config import FolderOptions, TrainConfig
from regraft.core.errors import ConfigError, DataError
from regraft.data.crops import Box
from regraft.data.decode import Unreadable, decode
from regraft.data.scan import list_photos
from regraft.data.sources import read_bytes
from regraft.data.splits import grouped


@pytest.fixture
def place(tmp_path):
    """A photo of 40x30 pixels, each of another colour, stored upright and turned."""
    y, x = np.mgrid[0:30, 0:40]
    photo = Image.fromarray(np.stack([6 * x, 8 * y, 0 * x], axis=2).astype(np.uint8))
    photo.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[274] = 6
    photo.save(tmp_path / "b.png", exif=exif)
    (tmp_path / "none.png").write_bytes(b"no photo")
    return tmp_path


def coco(place, *drawn, photos=("a.png", "b.png", "none.png", "gone.png")):
    values = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(photos)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("ant", "bee", ""))],
        "annotations": [{"image_id": photo, "category_id": kind, "bbox": box} for photo, kind, box in drawn],
    }
    (place / "set.json").write_text(json.dumps(values))
    return place / "set.json"


def test_a_box_is_the_pixels_within_it_whose_group_is_its_photo(place):
    dataset = list_photos(coco(place, (0, 0, [3, 4, 10, 8]), (0, 1, [30.4, 20.4, 20, 20]), (1, 1, [0, 0, 5, 5])))
    assert dataset.paths == ("a.png#3,4,10,8", "a.png#30,20,20,20", "b.png#0,0,5,5")
    assert dataset.groups == ("=a.png", "=a.png", "=b.png")
    whole = np.asarray(decode((place / "a.png").read_bytes()))
    np.testing.assert_array_equal(np.asarray(decode(dataset.read(0))), whole[4:12, 3:13])
    np.testing.assert_array_equal(np.asarray(decode(dataset.read(1))), whole[20:, 30:])
    upright = np.asarray(decode((place / "b.png").read_bytes()))
    np.testing.assert_array_equal(np.asarray(decode(dataset.read(2))), upright[:5, :5])
    assert grouped(dataset, "(b)[.]").groups == ("=a.png", "=a.png", "=b")


def test_a_margin_is_a_share_of_the_longer_side(place):
    assert Box(10, 10, 8, 4).named("a.png", 0.25) == "a.png#8,8,12,8"
    assert Box(1, 1, 4, 4).named("a.png", 1) == "a.png#0,0,9,9"
    file = coco(place, (0, 0, [10, 10, 8, 4]), (0, 1, [20, 10, 8, 4]))
    assert list_photos(file, options=FolderOptions(margin=0.25)).paths == ("a.png#8,8,12,8", "a.png#18,8,12,8")
    with pytest.raises(ConfigError, match="--margin -1 is no share"):
        TrainConfig(margin=-1)


def test_boxes_that_cannot_be_used_are_set_aside(place):
    good = ((0, 0, [3, 4, 10, 8]), (0, 1, [13, 4, 10, 8]))
    bad = (
        (2, 0, [1, 1, 2, 2]),
        (3, 0, [1, 1, 2, 2]),
        (0, 2, [1, 1, 2, 2]),
        (0, 1, [3, 4, 10, 8]),
        (0, 0, [90, 4, 9, 9]),
    )
    dataset = list_photos(coco(place, *good, *bad, (0, 0, [3, 4, 10, 8])))
    assert (len(dataset), dataset.num_found) == (2, 7)
    assert {q.path: q.reason.partition(":")[0] for q in dataset.quarantine} == {
        "none.png#1,1,2,2": "not an image of a known format",
        "gone.png#3": "the file does not exist",
        "a.png#4": "a box without a class",
        "a.png#5": "the same box is of class 'ant' too",
        "a.png#90,4,9,9": "the box lies outside the photo, which has 40x30 pixels",
    }
    assert dataset.notes == ("set.json has a box of a.png twice",)


def test_a_file_that_is_called_like_a_box_is_that_file(place):
    (place / "a.png#1,2,3,4").write_bytes(b"a file")
    assert read_bytes(place / "a.png#1,2,3,4") == b"a file"
    with pytest.raises(Unreadable, match="the file does not exist"):
        read_bytes(place / "c.png#1,2,3,4")


def studio(place, *results, image="a.png"):
    tasks = [{"data": {"image": image}, "annotations": [{"result": list(results)}]}]
    (place / "set.json").write_text(json.dumps(tasks))
    return place / "set.json"


def rectangle(name, **sides):
    value = {"x": 0, "y": 0, "width": 50, "height": 50, **sides, "rectanglelabels": [name]}
    return {"type": "rectanglelabels", "to_name": "image", "value": value}


def test_label_studio_has_boxes_in_percent_of_the_upright_photo_and_choices(place):
    file = studio(place, rectangle("ant"), rectangle("bee", x=50), image="http://host:8080/b.png")
    assert list_photos(file).paths == ("b.png#0,0,15,20", "b.png#15,0,15,20")
    for image in ("/data/upload/3/0123abcd-b.png", "b.png", "/data/local-files/?d=b.png"):
        assert (
            list_photos(studio(place, rectangle("ant"), rectangle("bee", x=50), image=image)).paths[0][:6] == "b.png#"
        )
    chosen = {"type": "choices", "to_name": "image", "value": {"choices": ["ant"]}}
    tasks = json.loads(studio(place, chosen).read_text()) + json.loads(studio(place, rectangle("bee")).read_text())
    (place / "set.json").write_text(json.dumps(tasks))
    assert list_photos(place / "set.json").paths == ("a.png", "a.png#0,0,20,15")


LAUGHS = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotations>&c;</annotations>'
OUT = '<image name="../a.png"><tag label="x"/></image>'
REFUSED = {
    "no annotations": ("set.json", "[1, 2]", "is neither JSON of COCO"),
    "no JSON": ("set.json", "{", "is no annotation file"),
    "deep JSON": ("set.json", "[" * 100_000, "is no annotation file"),
    "a box of text": ("set.json", {"bbox": ["x", 1, 1, 1]}, "is no annotation file"),
    "a box of three": ("set.json", {"bbox": [1, 1, 1]}, "is no annotation file"),
    "an endless box": ("set.json", {"bbox": [0, 0, 1e300, 1]}, "is no place in a photo"),
    "a box that is no number": ("set.json", {"bbox": [0, 0, float("nan"), 1]}, "is no place in a photo"),
    "an unknown photo": ("set.json", {"image_id": 77}, "KeyError: 77"),
    "no XML": ("set.xml", "<annotations", "is no annotation file"),
    "other XML": ("set.xml", "<svg/>", "begins with <svg>"),
    "entities": ("set.xml", LAUGHS, "declares entities"),
    "a path that leads out": (
        "set.xml",
        '<annotations><image name="../a.png"><tag label="x"/></image></annotations>',
        "no ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_annotation_file_is_refused_by_name(place, name):
    file, text, told = REFUSED[name]
    if isinstance(text, dict):
        values = json.loads(coco(place, (0, 0, [1, 1, 2, 2])).read_text())
        values["annotations"][0] |= text
        text = json.dumps(values)
    (place / file).write_text(text)
    with pytest.raises(DataError, match="set") as refused:
        list_photos(place / file)
    assert str(place / file) in str(refused.value)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "names", ["names: [ant, 'bee']\n", "nc: 2\nnames:\n  0: ant\n  1: bee\n", "names:\n- ant\n- bee\n"]
)
def test_yolo_names_its_classes_and_splits_by_folders(place, names):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (place / kind / split).mkdir(parents=True, exist_ok=True)
        Image.open(place / "a.png").save(place / "images" / split / "a.jpg")
        (place / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n\n1 0.25 0.5 0.5 1\n")
    (place / "data.yaml").write_text(names)
    dataset = list_photos(place)
    assert dataset.classes == ("ant", "bee")
    assert dataset.splits == ("train", "train", "val", "val")
    assert dataset.paths[:2] == ("images/train/a.jpg#10,8,20,14", "images/train/a.jpg#0,0,20,30")
    (place / "labels" / "val" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n7 0 0 1 1\n")
    with pytest.raises(DataError, match=r"a\.txt has no box in line 2\. Expected a class below 2"):
        list_photos(place)


def yolo(place, photos, texts, names="data.yaml"):
    """Two photos of each folder, the second one without boxes."""
    for images, labels in zip(photos, texts, strict=True):
        for folder in (images, labels):
            (place / "yolo" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in (("a", "0 0.5 0.5 0.5 0.5\n1 0.25 0.5 0.5 1\n"), ("b", "")):
            Image.open(place / "a.png").save(place / "yolo" / images / f"{name}.png")
            (place / "yolo" / labels / f"{name}.txt").write_text(text)
    (place / "yolo" / names).write_text("names: [ant, bee]" if names == "data.yaml" else "ant\nbee\n")
    return place / "yolo"


DARKNET = ("obj_train_data", "obj_valid_data")
OF_YOLO = {
    "Roboflow": (("train/images", "valid/images"), ("train/labels", "valid/labels"), "data.yaml"),
    "Darknet": (DARKNET, DARKNET, "obj.names"),
}


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("program", OF_YOLO)
def test_yolo_has_a_folder_for_each_split(place, program, is_packed):
    photos, texts, names = OF_YOLO[program]
    folder = yolo(place, photos, texts, names)
    dataset = list_photos(shutil.make_archive(str(folder), "zip", folder) if is_packed else folder)
    assert dataset.paths == tuple(f"{one}/a.png#{box}" for one in photos for box in ("10,8,20,14", "0,0,20,30"))
    assert dataset.splits == ("train", "train", "val", "val")
    assert [dataset.classes[label] for label in dataset.labels] == ["ant", "bee"] * 2


@pytest.mark.parametrize("box", ["0 nan 0.5 0.5 0.5", "0 0.5 0.5 inf 0.5", "nan 0.5 0.5 0.5 0.5", "1e999 0 0 1 1"])
def test_a_box_of_yolo_that_is_nowhere_is_refused_by_its_line(place, box):
    folder = yolo(place, ["images"], ["labels"])
    (folder / "labels" / "b.txt").write_text(f"\n{box}\n")
    with pytest.raises(DataError, match=r"b\.txt has no box in line 2"):
        list_photos(folder)


@pytest.mark.parametrize("photos", ["train2017", "images/train2017", "images"])
def test_coco_has_its_photos_beside_the_folder_of_its_annotations(place, photos):
    file = coco(place, (0, 0, [1, 1, 5, 5]), (0, 1, [1, 1, 8, 8]), photos=["a.png"])
    (place / "set" / photos).mkdir(parents=True)
    (place / "set" / "annotations").mkdir()
    (place / "a.png").rename(place / "set" / photos / "a.png")
    file = file.rename(place / "set" / "annotations" / "instances_train2017.json")
    dataset = list_photos(file)
    assert {str(dataset.root / path) for path in dataset.paths} == {
        str(place / "set" / photos / f"a.png#{box}") for box in ("1,1,5,5", "1,1,8,8")
    }


def test_label_studio_names_the_photos_of_its_coco_by_addresses(place):
    file = coco(place, (0, 0, [1, 1, 5, 5]), (1, 1, [1, 1, 8, 8]), photos=["/data/local-files/?d=a.png", "b.png"])
    assert list_photos(file).paths == ("a.png#1,1,5,5", "b.png#1,1,8,8")

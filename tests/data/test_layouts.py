"""Ways to arrange photos in folders and lists. A photo's colour is its class: none may get another. (Row D4.)"""

import json
import unicodedata

import numpy as np
import pytest

from conftest import COLOURS, draw
from faults.processes import record
from regraft.core.errors import DataError
from regraft.data.decode import decode
from regraft.data.scan import scan

R, G, B = "red", "green", "blue"
CAFE = unicodedata.normalize("NFC", "café")
EFAC = unicodedata.normalize("NFD", "café")
PLAIN = {"red/1.jpg": R, "red/2.jpg": R, "green/1.jpg": G, "green/2.jpg": G, "blue/1.jpg": B}


def moved(prefix: str, tree: dict = PLAIN) -> dict:
    return {f"{prefix}/{path}": colour for path, colour in tree.items()}


def renamed(**names: str) -> dict:
    return {f"{names[path.partition('/')[0]]}/{path.partition('/')[2]}": colour for path, colour in PLAIN.items()}


def listed(rows: list[str], tree: dict = PLAIN) -> dict:
    return tree | {"list.csv": "\n".join(rows)}


SAME = {R: R, G: G, B: B}
ROWS = ["path,label", *(f"{path},{colour}" for path, colour in PLAIN.items())]
SPLIT_ROWS = [{"path": p, "label": c, "split": "train" if "1" in p else "valid"} for p, c in PLAIN.items()]
# name: (files: colour of a photo or text, what to scan, class of each colour)
READ = {
    "class folders": (PLAIN, "", SAME),
    "train and val": (moved("train") | moved("val"), "", SAME),
    "train, validation, test": (moved("train") | moved("validation") | moved("test"), "", SAME),
    "TRAIN and Dev": (moved("TRAIN") | moved("Dev"), "", SAME),
    "train and test alone": (moved("train") | moved("test"), "", SAME),
    "val without the first class": (moved("train") | {"val/green/1.jpg": G, "val/red/1.jpg": R}, "", SAME),
    "val with one class": (moved("train") | {"val/red/1.jpg": R}, "", SAME),
    "empty val": (moved("train") | {"val/": ""}, "", SAME),
    "another folder beside the splits": (moved("train") | moved("val") | moved("raw"), "", SAME),
    "a class called train": (PLAIN | {"train/1.jpg": R}, "", None),
    "a class called test": (renamed(red="test", green="green", blue="blue"), "", {R: "test", G: G, B: B}),
    "numbers": (renamed(red="10", green="2", blue="1"), "", {R: "10", G: "2", B: "1"}),
    "numbers with zeros": (renamed(red="01", green="1", blue="001"), "", {R: "01", G: "1", B: "001"}),
    "numbers in splits": (
        moved("train", renamed(red="10", green="2", blue="1")) | {"val/10/1.jpg": R, "val/2/1.jpg": G},
        "",
        {R: "10", G: "2", B: "1"},
    ),
    "nested, the same leaf": (
        {"a/x/1.jpg": R, "a/y/1.jpg": G, "b/x/1.jpg": B},
        "",
        {R: "a/x", G: "a/y", B: "b/x"},
    ),
    "nested at two depths": (
        {"a/1.jpg": R, "b/x/1.jpg": G, "b/y/z/1.jpg": B},
        "",
        {R: "a", G: "b/x", B: "b/y/z"},
    ),
    "nested in splits": (
        moved("train", {"a/x/1.jpg": R, "b/x/1.jpg": G}) | moved("val", {"b/x/1.jpg": G}),
        "",
        {R: "a/x", G: "b/x"},
    ),
    "photos at the root": (PLAIN | {"loose.jpg": R}, "", SAME),
    "hidden folders": (PLAIN | {".cache/1.jpg": R, ".ipynb_checkpoints/1.jpg": G, "red/.thumbs/1.jpg": B}, "", SAME),
    "what systems leave": (PLAIN | {"__MACOSX/red/1.jpg": G, "red/Thumbs.db": "x", "desktop.ini": "x"}, "", SAME),
    "one photo each": ({"red/1.jpg": R, "green/1.jpg": G}, "", {R: R, G: G}),
    "an empty class": (PLAIN | {"alpha/": ""}, "", SAME),
    "letters of the world": (renamed(red="猫", green="🦊", blue=CAFE), "", {R: "猫", G: "🦊", B: CAFE}),
    "two encodings of a name": (
        moved("train", renamed(red=CAFE, green="g", blue="b")) | {f"val/{EFAC}/1.jpg": R},
        "",
        {R: CAFE, G: "g", B: "b"},
    ),
    "leading dashes and spaces": (renamed(red="-red", green=" g ", blue="b b"), "", {R: "-red", G: " g ", B: "b b"}),
    "wrong extensions": ({"red/1.png": R, "green/1": G, "blue/1.txt": B}, "", SAME),
    "a list that agrees": (listed(ROWS), "", SAME),
    "a table of something else": (PLAIN | {"sizes.csv": "file,size\na,3\n"}, "", SAME),
    "a list": (listed(ROWS), "list.csv", SAME),
    "a list of loose photos": (
        {"1.jpg": R, "2.jpg": G, "list.csv": "label,path\r\nrot,1.jpg\r\ngrün,2.jpg\r\n"},
        "list.csv",
        {R: "rot", G: "grün"},
    ),
    "a list with tabs and quotes": (
        PLAIN | {"list.tsv": 'path\tlabel\n"red/1.jpg"\t"a, b"\ngreen/1.jpg\tg\n'},
        "list.tsv",
        {R: "a, b", G: "g"},
    ),
    "a list against the folders": (
        PLAIN | {"list.jsonl": '{"path": "red/1.jpg", "label": "x"}\n\n{"path": "blue/1.jpg", "label": 7}\n'},
        "list.jsonl",
        {R: "x", B: "7"},
    ),
    "JSON lines with splits": (
        PLAIN | {"list.jsonl": "\n".join(map(json.dumps, SPLIT_ROWS))},
        "list.jsonl",
        SAME,
    ),
    "a list of more than there is": (
        listed([*ROWS, "red/none.jpg,red", "../outside.jpg,red", "/etc/passwd,red", "red,red"]),
        "list.csv",
        SAME,
    ),
}
# name: (files, what to scan, what the message names)
REFUSED = {
    "a class that train lacks": (moved("train") | {"val/purple/1.jpg": R}, "", "'purple'"),
    "two folders for val": (moved("train") | moved("val") | moved("valid"), "", "val, valid"),
    "photos and no folders": ({"1.jpg": R, "2.jpg": G}, "", "2 files directly inside"),
    "photos and a list": ({"1.jpg": R, "list.csv": "path,label\n1.jpg,r\n"}, "", "list.csv says which is which"),
    "photos beside folders in a class": (PLAIN | {"red/more/1.jpg": R}, "", "red holds photos and folders (more)"),
    "a data set in a folder": (moved("set/train") | moved("set/val"), "", "set holds train, val"),
    "one class": ({"red/1.jpg": R}, "", "one class only, 'red'"),
    "nothing": ({}, "", "no readable photos"),
    "twins in case": (PLAIN | {"Red/1.jpg": R}, "", "'Red' and 'red'"),
    "twins in encoding": ({f"{CAFE}/1.jpg": R, f"{EFAC}/1.jpg": R, "b/1.jpg": G}, "", "how letters are encoded"),
    "nested twins": ({"a/x/1.jpg": R, "a/X/1.jpg": R, "b/1.jpg": G}, "", "'X' and 'x'"),
    "a list that disagrees": (listed(["path,label", "red/1.jpg,green"]), "", "red/1.jpg is 'green'"),
    "a photo under two labels": (listed([*ROWS, "red/1.jpg,green"]), "list.csv", "as 'green' in line 7"),
    "a photo in two splits": (
        listed(["path,label,split", "red/1.jpg,r,train", "green/1.jpg,g,train", "red/1.jpg,r,val"]),
        "list.csv",
        "'r' of val in line 4",
    ),
    "a list without a column": (listed(["path,colour,shape", "red/1.jpg,red,round"]), "list.csv", "'path', 'colour'"),
    "a list without a label": (listed(["path,label", "red/1.jpg,"]), "list.csv", "no label in line 2"),
    "a split by another name": (listed(["path,label,split", "red/1.jpg,r,holdout"]), "list.csv", "'holdout' in line 2"),
    "a split here and there": (
        listed(["path,label,split", "red/1.jpg,r,train", "green/1.jpg,g,"]),
        "list.csv",
        "no split in line 3",
    ),
    "nothing to learn from": (listed(["path,label,split", "red/1.jpg,r,val"]), "list.csv", "split train"),
    "an empty list": (listed(["path,label"]), "list.csv", "lists no photos"),
    "lines that are no JSON": (PLAIN | {"list.jsonl": "{]\n"}, "list.jsonl", "line 1"),
    "lines that are no objects": (PLAIN | {"list.jsonl": "[1]\n"}, "list.jsonl", "Found nothing"),
    "a file that is no list": (PLAIN | {"list.txt": "red"}, "list.txt", "list.txt is a file"),
}


def build(root, tree) -> None:
    for number, (path, what) in enumerate(tree.items()):
        if what in COLOURS:
            draw(root / "photo.jpg", COLOURS[what], number)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "photo.jpg").rename(root / path)
        elif path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(what)


def colour_of(data: bytes) -> str:
    mean = np.asarray(decode(data)).reshape(-1, 3).mean(axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))


@pytest.mark.parametrize("name", READ)
def test_every_photo_has_the_class_of_its_colour(tmp_path, name):
    tree, place, classes = READ[name]
    build(tmp_path / "photos", tree)
    dataset = scan(tmp_path / "photos" / place)
    assert dataset.num_found == len(dataset) + len(dataset.quarantine)
    told = [dataset.classes[label] for label in dataset.labels]
    seen = [colour_of(dataset.read(i)) for i in range(len(dataset))]
    if classes is None:  # a folder of photos called train, beside classes, is a class
        assert set(told) == {R, G, B, "train"}
        return
    assert told == [classes[colour] for colour in seen]
    assert set(told) == set(classes.values()) == set(dataset.classes)


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_read_in_more_ways_than_one_is_refused_by_its_path(tmp_path, name):
    tree, place, told = REFUSED[name]
    (tmp_path / "photos").mkdir()
    build(tmp_path / "photos", tree)
    with pytest.raises(DataError) as refused:
        scan(tmp_path / "photos" / place)
    assert told in str(refused.value)
    assert str(tmp_path / "photos") in str(refused.value)


def test_a_list_keeps_its_splits_and_says_what_it_lists_in_vain(tmp_path):
    tree, place, _ = READ["JSON lines with splits"]
    build(tmp_path / "split", tree)
    assert set(scan(tmp_path / "split" / place).splits) == {"train", "val"}
    tree, place, _ = READ["a list of more than there is"]
    build(tmp_path / "vain", tree)
    reasons = {q.path: q.reason for q in scan(tmp_path / "vain" / place).quarantine}
    assert reasons == {
        "red/none.jpg": "the file does not exist",
        "../outside.jpg": "leads out of the list's folder",
        "/etc/passwd": "leads out of the list's folder",
        "red": "not a regular file",
    }


def test_a_list_that_is_too_large_is_refused_by_its_size(tmp_path, monkeypatch):
    build(tmp_path, listed(ROWS))
    monkeypatch.setattr("regraft.data.list_records.MAX_BYTES", 20)
    with pytest.raises(DataError, match=r"list\.csv has \d+ bytes\. Expected a list of at most 20\."):
        scan(tmp_path / "list.csv")


def test_the_figures_of_layouts(record_property):
    record(record_property, "D4", layouts=len(READ) + len(REFUSED), read=len(READ), refused=len(REFUSED), mislabelled=0)

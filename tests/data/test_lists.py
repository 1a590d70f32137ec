"""Lists are read strictly, line by line: what could be read in two ways is refused by the number of its line."""

import json
import os
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.core.config import FolderOptions
from regraft.core.errors import ConfigError, DataError
from regraft.core.files import csv_bytes
from regraft.data.list_manifest import list_manifest, read_rows, without_others
from regraft.data.merge import joined, relabelled
from regraft.data.scan import Dataset, list_photos
from regraft.data.splits import grouped

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name.strip() and name not in (".", "..")
)


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def write(root, text, name="list.csv"):
    touch(root, *(f"f/{i}.png" for i in range(6)))
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root / name


def refusal(file, call=read_rows):
    with pytest.raises(DataError) as refused:
        call(file)
    assert str(file) in str(refused.value)
    return str(refused.value)


REFUSED = {
    "a comma in a label": ("path,label\nf/0.png,dog\nf/1.png,cat, black\n", "has 3 fields in line 3, but 2 columns"),
    "an open quote": ('path,label\nf/0.png,dog\nf/1.png,"cat\nf/2.png,cat\n', "no CSV in line 3"),
    "a quote that ends late": ('path,label\nf/0.png,"cat\nf/1.png,cat\nf/2.png,cat"\n', "line 2 that ends in line 4"),
    "a quote within quotes": ('path,label\nf/0.png,"cat" black\n', "no CSV in line 2"),
    "two label columns": ("path,label,Label\nf/0.png,cat,x\n", "2 columns label in line 1"),
    "two path columns": ("path;label; Path\nf/0.png;cat;x\n", "2 columns path in line 1"),
    "one photo by two paths": ("path,label\nf/0.png,cat\nf/1.png,dog\n./f//0.png,dog\n", "as 'dog' in line 4"),
    "classes that differ in case": ("path,label\nf/0.png,Cat\nf/1.png,cat\n", "'Cat' and 'cat' in lines 2 and 3"),
    "classes that differ in blanks": ("path,label\nf/0.png,a  b\nf/1.png,a b\n", "in lines 2 and 3, which differ"),
    "an ambiguous split": ("path,label,split\nf/0.png,cat,eval\n", "the split 'eval' in line 2"),
    "a field without end": ("path,label\nf/0.png," + "x" * 200_000, "no CSV in line 2"),
    "a header without end": ("x" * 200_000 + ",path,label\n", "no CSV in line 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused_by_its_line(tmp_path, name):
    text, told = REFUSED[name]
    assert told in refusal(write(tmp_path, text), list_manifest)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    file = write(tmp_path, '{"path": "f/0.png", "label": "a", "label": "b"}\n', "list.jsonl")
    assert "no JSON object in line 1: a key stands there twice" in refusal(file)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_the_first_line_says_what_parts_the_columns(tmp_path, mark, end, delimiter, name):
    lines = (("note", "Path", " LABEL"), ("a, b; c", "f/0.png", "cat"), ("", "f/1.png", '" tabby, or cat"'))
    text = mark + end.join(delimiter.join(f'"{c}"' if ";" in c else c for c in line) for line in lines) + end + end
    rows = read_rows(write(tmp_path, text, name))
    assert [(row.line, row.path, row.label) for row in rows] == [(2, "f/0.png", "cat"), (3, "f/1.png", "tabby, or cat")]


def test_splits_have_the_same_names_as_folders(tmp_path):
    rows = read_rows(
        write(tmp_path, "path,label,split\nf/0.png,a,Training\nf/1.png,b,test_set\nf/2.png,b,VALIDATION\n")
    )
    assert [row.split for row in rows] == ["train", "test", "val"]


@pytest.mark.parametrize("path", ["./f/0.png", "f//0.png", "f/../f/0.png", "{root}/f/0.png"])
def test_a_path_is_taken_in_its_shortest_form(tmp_path, path):
    (row,) = read_rows(write(tmp_path, f"path,label\n{path.format(root=tmp_path)},cat\n"))
    assert row.path == "f/0.png"


def test_wrong_paths_are_answered_about_the_list(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "lists").mkdir()
    file = write(tmp_path / "lists", "path,label\nx/0.png,cat\nx/1.png,dog\n")
    told = refusal(file, list_photos)
    looked = f"x/0.png in line 2, was looked for at {tmp_path}/lists/x/0.png, since paths are relative to the list's"
    assert f"{file} names 2 files that are not there; the first, {looked}" in told
    assert told.endswith("Put the paths right.")
    touch(tmp_path, "x/0.png")
    assert refusal(file, list_photos).endswith(f"It is there relative to {tmp_path}: move the list to that folder.")


def test_some_wrong_paths_are_said_with_their_line(tmp_path):
    file = write(tmp_path, "path,label\nf/0.png,cat\nf/1.png,dog\nf/none.png,dog\n")
    (note,) = list_photos(file).notes
    assert (
        f"names 1 files that are not there; the first, f/none.png in line 4, was looked for at {tmp_path}/f/no" in note
    )


@pytest.mark.parametrize(
    ("path", "cure"),
    [
        ("2.png", "It is there below f: write f/2.png"),
        ("none/0.png", "Put the paths right"),
    ],
)
def test_a_path_that_is_nearly_right_is_answered_with_the_right_one(tmp_path, monkeypatch, path, cure):
    monkeypatch.chdir("/")
    assert list_manifest(write(tmp_path, f"path,label\n{path},cat\nf/1.png,dog\n")).notes[0].endswith(f". {cure}")


@pytest.mark.parametrize(("rows", "told"), [("f/0.png,cat\nf/9.png,dog", "one class only, 'cat'. Expected two")])
def test_too_few_classes_are_answered_about_the_list(tmp_path, rows, told):
    message = refusal(write(tmp_path, f"path,label\n{rows}\n"), list_photos)
    assert told in message
    assert "folder" not in message.replace(str(tmp_path), "")


def test_a_list_with_some_rows_keeps_format_columns_and_order(tmp_path):
    file = write(tmp_path, 'Path;label;note;split\n./f/0.png;"a; b";"=1";Train\nf/1.png;c;;test\nf/2.png;c;x;train\n')
    kept = write(tmp_path / "copy", without_others(file, {"f/0.png", "f/2.png"}))
    assert kept.read_text() == 'path;label;note;split\nf/0.png;"a; b";\'=1;Train\nf/2.png;c;x;train\n'
    assert [row.label for row in read_rows(kept)] == ["a; b", "c"]
    file = write(
        tmp_path, '{"path": "./f/0.png", "label": 7, "box": [1, 2]}\n\n{"path": "f/1.png", "label": "é"}\n', "l.jsonl"
    )
    assert json.loads(without_others(file, {"f/0.png"})) == {"path": "f/0.png", "label": 7, "box": [1, 2]}


def named(root, names):
    """A data set whose classes, folders and files have these names."""
    labels = np.arange(len(names), dtype=np.int64)
    paths = tuple(f"{name}/{name}.png" for name in names)
    return Dataset(root, paths, labels, tuple(names), ("",) * len(names), ("",) * len(names))


ODD = ["+pos", "-neg", "=1+1", "@home", "cat ", " dog", "a, b", '5" pipe', "two\nlines", "'quoted", "x\r", "\\n", "猫"]


@given(
    st.lists(
        NAMES,
        min_size=1,
        max_size=4,
        unique_by=lambda name: " ".join(unicodedata.normalize("NFC", name).casefold().split()),
    )
)
@settings(deadline=None, database=None, max_examples=100)
def test_suspects_handed_back_unchanged_change_nothing(tmp_path_factory, names):
    check_round_trip(tmp_path_factory.getbasetemp(), [unicodedata.normalize("NFC", name) for name in names])


def test_suspects_of_odd_names_handed_back_unchanged_change_nothing(tmp_path):
    check_round_trip(tmp_path, ODD)
    check_round_trip(tmp_path, ["plain"], os.fsdecode(b"caf\xe9.png"))


def check_round_trip(folder, names, *paths):
    dataset = named(folder, names)
    dataset = Dataset(folder, (*dataset.paths[len(paths) :], *paths), *list(vars(dataset).values())[2:])
    rows = [(path, dataset.classes[label]) for path, label in zip(dataset.paths, dataset.labels, strict=True)]
    (folder / "suspects.csv").write_bytes(csv_bytes(("path", "label"), rows))
    again = relabelled(dataset, folder / "suspects.csv")
    assert again.notes == ("0 labels changed as suspects.csv says",)
    assert [again.classes[label] for label in again.labels] == names


def test_a_label_that_is_put_right_in_another_case_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\ncat/cat.png,Dog\n")
    with pytest.raises(DataError, match="the classes 'Dog' and 'dog'"):
        relabelled(named(tmp_path, ["cat", "dog", "emu"]), tmp_path / "list.csv")


def test_folders_whose_classes_differ_in_case_are_not_joined(tmp_path):
    with pytest.raises(DataError, match="the classes 'Cat' and 'cat', which differ in case"):
        joined([named(tmp_path / "a", ["cat", "dog"]), named(tmp_path / "b", ["Cat"])])


def photos_by(file, **options):
    """What a list says: class by path, and what is said of it."""
    dataset = list_photos(file, options=FolderOptions(**options))
    classes = [dataset.classes[label] for label in dataset.labels]
    return dict(zip(dataset.paths, classes, strict=True)), dataset.notes


EXPECTED = {"f/0.png": "cat", "f/1.png": "dog"}
COLUMNS_SAID = "list.csv: photos by the column 'id', classes by the column 'breed'"
FORMS = {
    "columns of other names": ("id,breed\nf/0.png,cat\nf/1.png,dog\n", (COLUMNS_SAID,)),
    "columns in another order": ("Breed;ID\ncat;f/0.png\ndog;f/1.png\n", (COLUMNS_SAID,)),
    "an index of pandas": (",id,breed\n0,f/0.png,cat\n1,f/1.png,dog\n", (COLUMNS_SAID,)),
    "ids without extension": ("path,label\nf/0,cat\nf/1,dog\n", ()),
    "a folder beside the list": ("path,label\n0.png,cat\n1.png,dog\n", ("the photos of list.csv are in {root}/f",)),
    "Kaggle's": ("id,breed\n0,cat\n1,dog\n", (COLUMNS_SAID, "the photos of list.csv are in {root}/f")),
    "Excel's sep=": ("sep=|\nid|breed\nf/0.png|cat\nf/1.png|dog\n", (COLUMNS_SAID,)),
    "UTF-16": ("path\tlabel\nf/0.png\tcat\nf/1.png\tdog\n".encode("utf-16"), ()),
    "UTF-16, big end first": (b"\xfe\xff" + "path,label\nf/0.png,cat\nf/1.png,dog\n".encode("utf-16-be"), ()),
    "Windows paths": ("path,label\nf\\0.png,cat\n.\\f\\1.png,dog\n", ()),
    "another machine's": (
        "path,label\nC:\\my photos\\f\\0.png,cat\nC:\\my photos\\f\\1.png,dog\n",
        ("the paths of list.csv begin on another machine; f/0.png is read for C:\\my photos\\f\\0.png",),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_lists_of_other_programs_are_read_and_what_was_guessed_is_said(tmp_path, name):
    text, said = FORMS[name]
    found, notes = photos_by(write(tmp_path, text))
    assert found == EXPECTED
    assert notes == tuple(one.format(root=tmp_path) for one in said)


def test_columns_that_are_named_are_taken(tmp_path):
    file = write(tmp_path, "a,b,c\nf/0.png,f/1.png,cat\nf/1.png,f/0.png,dog\n")
    assert photos_by(file, path_column="A", label_column="c")[0] == EXPECTED
    assert photos_by(file, path_column="b", label_column="c")[0] == {"f/1.png": "cat", "f/0.png": "dog"}
    assert "has photos in the columns 'a', 'b'. Expected one. Choose with --path-column" in refusal(file, list_photos)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "id,breed,size\nf/0.png,cat,1\nf/1.png,dog,2\n",
            "no column label in its first line. Found 'id', 'breed'",
        ),
        ("id,breed\nx/0.png,cat\nx/1.png,dog\n", "no columns path and label in its first line. Found 'id', 'breed'"),
        ("id,breed,breed\nf/0.png,cat,1\n", "no column label"),
        ("path,label\n7,cat\n8,dog\n", "names photos such as 7, which are in test and in train. Expected one folder"),
        ("path,label\nf/9,cat\nf/0,dog\n", "in line 2: f/9 could be f/9.jpg or f/9.png"),
        ("path,label\nf/0.png,cat\nf/0,dog\n", "lists f/0.png twice: as 'cat' in line 2 and as 'dog' in line 3"),
        ("path,label\nf/0.png,cat\nf\\0.png,dog\n", "lists f/0.png twice"),
        ("path,label\n../x.png,cat\n/etc/passwd,dog\n", "has no readable photos"),
        ("path,label\n..\\x.png,cat\nC:\\x.png,dog\n", "names 2 files that are not there"),
        (b"\xff\xfea\0,", "is not UTF-16"),
        ("path,label\nf/0.png,cat\n".encode("utf-16-le"), "no columns path and label"),
        (b"sep=,\npath,label,label\n", "2 columns label in line 2"),
    ],
)
def test_what_cannot_be_guessed_in_one_way_is_refused(tmp_path, monkeypatch, text, told):
    monkeypatch.chdir("/")
    touch(tmp_path, "train/7.png", "train/8.png", "test/7.png", "test/8.png", "f/9.png", "f/9.jpg")
    assert told in refusal(write(tmp_path, text), list_photos)


def test_the_list_s_name_says_which_folder_is_meant(tmp_path):
    touch(tmp_path, "train/7.png", "train/8.png", "test/7.png", "test/8.png")
    file = write(tmp_path, "id,label\n7,cat\n8,dog\n", "train.csv")
    assert photos_by(file)[0] == {"train/7.png": "cat", "train/8.png": "dog"}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_of_a_folder_is_followed(tmp_path, name):
    rows = [("train/0.png", "cat"), ("train/1.png", "dog"), ("test/0.png", "cat")]
    touch(tmp_path, *(path for path, _ in rows))
    lines = [json.dumps({"file_name": path, "label": label}) for path, label in rows]
    text = "\n".join(lines if name.endswith("l") else ["file_name,label", *map(",".join, rows)])
    (tmp_path / name).write_text(text)
    dataset = list_photos(tmp_path)
    assert dict(zip(dataset.paths, dataset.splits, strict=True)) == {
        "train/0.png": "train",
        "train/1.png": "train",
        "test/0.png": "test",
    }
    for split in ("train", "test"):
        own = [(path.removeprefix(f"{split}/"), label) for path, label in rows if path.startswith(split)]
        lines = [json.dumps({"file_name": path, "label": label}) for path, label in own]
        text = "\n".join(lines if name.endswith("l") else ["file_name,label", *map(",".join, own)])
        (tmp_path / split / name).write_text(text)
    (tmp_path / name).unlink()
    again = list_photos(tmp_path)
    assert dict(zip(again.paths, again.splits, strict=True)) == dict(zip(dataset.paths, dataset.splits, strict=True))


def test_metadata_without_classes_leaves_them_to_the_folders(tmp_path):
    touch(tmp_path, "cat/0.png", "dog/1.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption,width\ncat/0.png,a cat,9\n")
    assert photos_by(tmp_path)[0] == {"cat/0.png": "cat", "dog/1.png": "dog"}


def test_a_list_with_some_rows_names_photos_by_their_paths(tmp_path):
    file = write(tmp_path, "sep=;\nid;breed\n0;cat\n1;dog\n2;dog\n")
    kept = without_others(file, {"f/0.png", "f/2.png"})
    assert kept.decode() == "id;breed\nf/0.png;cat\nf/2.png;dog\n"
    assert photos_by(write(tmp_path, kept))[0] == {"f/0.png": "cat", "f/2.png": "dog"}


def test_classes_in_the_names_of_photos(tmp_path):
    touch(tmp_path, "cat.1.jpg", "more/dog.2.jpg", "more/notes.txt", ".hidden")
    found, _ = photos_by(tmp_path, label_by=r"([a-z]+)\.[0-9]+\.jpg$")
    assert found == {"cat.1.jpg": "cat", "more/dog.2.jpg": "dog"}
    dataset = list_photos(tmp_path, options=FolderOptions(label_by="cat|dog"))
    assert [q.path for q in dataset.quarantine] == ["more/notes.txt"]
    assert dataset.num_found == 3
    for pattern, told in (("(", "is no regular expression"), ("owl", "finds nothing in any path, such as 'cat.1.jpg'")):
        with pytest.raises(ConfigError, match=told):
            list_photos(tmp_path, options=FolderOptions(label_by=pattern))
    touch(tmp_path / "set", "train/cat1.jpg", "train/dog2.jpg", "valid/cat3.jpg")
    dataset = list_photos(tmp_path / "set", options=FolderOptions(label_by="cat|dog"))
    assert dataset.splits == ("train", "train", "val")


def test_groups_are_found_in_the_whole_path(tmp_path):
    touch(tmp_path, "sick/p1/1.png", "sick/p1/2.png", "well/p2-1.png")
    dataset = grouped(list_photos(tmp_path, options=FolderOptions(class_level="top")), "sick/(p[0-9])|p2")
    assert len(set(dataset.groups)) == 2

"""Lists are read strictly, line by line: what could be read in two ways is refused by the number of its line."""

import json
import os
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.core.errors import DataError
from regraft.core.files import csv_bytes
from regraft.data.list_manifest import list_manifest, read_rows, without_others
from regraft.data.merge import joined, relabelled
from regraft.data.scan import Dataset, list_photos

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
    file = write(tmp_path / "lists", "path,label\nf\\0.png,cat\n")
    assert refusal(file, list_photos).endswith("Write / between folders, not \\.")


def test_some_wrong_paths_are_said_with_their_line(tmp_path):
    file = write(tmp_path, "path,label\nf/0.png,cat\nf/1.png,dog\nf/none.png,dog\n")
    (note,) = list_photos(file).notes
    assert (
        f"names 1 files that are not there; the first, f/none.png in line 4, was looked for at {tmp_path}/f/no" in note
    )


@pytest.mark.parametrize(
    ("path", "cure"),
    [
        ("f/0", "There is 0.png: paths need their extension"),
        ("0.png", "It is there below f: write f/0.png"),
        ("none/0.png", "Put the paths right"),
    ],
)
def test_a_path_that_is_nearly_right_is_answered_with_the_right_one(tmp_path, monkeypatch, path, cure):
    monkeypatch.chdir("/")
    assert refusal(write(tmp_path, f"path,label\n{path},cat\n"), list_photos).endswith(f"{cure}.")
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

"""Which folders are splits, which are classes, and what is refused because it could be both."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import draw
from regraft.core.config import FolderOptions, TrainConfig
from regraft.core.errors import ConfigError, DataError
from regraft.data.folder_layout import list_folder
from regraft.data.scan import list_photos
from regraft.data.split_names import find_split_folders, is_unlabelled, mentions_split, split_of
from regraft.data.splits import grouped, split

CATS_AND_DOGS = ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")
SPLIT_PAIRS = [
    ("Training", "Testing"),
    ("training_set", "test_set"),
    ("train_images", "test_images"),
    ("seg_train", "seg_test"),
    ("TrainingSet", "TestSet"),
    ("train-set", "Test Data"),
    ("trainset", "testset"),
    ("trainData", "testData"),
    ("train_v2", "test_v2"),
    ("train2017", "val2017"),
    ("my training photos", "my test photos"),
    ("Training Data (final)", "Validation Data (final)"),
    ("chest_xray_train", "chest_xray_test"),
    ("fruits-360 Training", "fruits-360 Test"),
    ("train", "holdout"),
    ("train", "hold-out"),
    ("train", "eval"),
    ("TRAIN", "TST"),
]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            (root / path).write_bytes(path.encode())
    return root


def below(prefix, paths=CATS_AND_DOGS):
    return [f"{prefix}/{path}" for path in paths]


def read(root, **options):
    """`{path: (split, class)}`."""
    return {one.path: (one.split, one.label) for one in list_folder(root, FolderOptions(**options)).files}


def refusal(root, **options):
    with pytest.raises(DataError) as refused:
        list_photos(root, options=FolderOptions(**options))
    return str(refused.value)


@pytest.mark.parametrize(("train", "other"), SPLIT_PAIRS)
def test_usual_names_of_splits_are_known(tmp_path, train, other):
    found = read(touch(tmp_path, *below(train), *below(other)))
    assert {label for _, label in found.values()} == {"cat", "dog"}
    assert {part for part, _ in found.values()} == {"train", "test" if "est" in other or other == "TST" else "val"}
    assert all((part == "train") == path.startswith(train) for path, (part, _) in found.items())


@pytest.mark.parametrize("name", ["train", "Test-Data", "VALIDATION", "dev_set", "seg_train", "test1", "x-val"])
def test_names_of_splits_mean_the_same_in_any_case(name):
    assert split_of(name) == split_of(name.upper()) == split_of(name.lower()) is not None


@pytest.mark.parametrize(
    "name",
    ["steam train", "bullet_train", "trainer", "test tube", "latest", "devil", "values", "evaluator", "", "é", "7"],
)
def test_names_of_classes_are_no_splits(name):
    assert split_of(name) is None


@given(st.lists(st.text(max_size=12), max_size=4, unique=True))
@settings(deadline=None, database=None)
def test_any_names_can_be_asked(names):
    assert set(find_split_folders(names).values()) <= {"train", "val", "test"}
    assert all(mentions_split(name) for name in find_split_folders(names))
    assert all(isinstance(is_unlabelled(name), bool) for name in names)


def test_a_held_out_part_is_what_has_no_folder_of_its_own():
    assert find_split_folders(["train", "val", "holdout"]) == {"train": "train", "val": "val", "holdout": "test"}
    assert find_split_folders(["train", "test", "eval"]) == {"train": "train", "test": "test", "eval": "val"}


def test_two_held_out_parts_are_refused(tmp_path):
    touch(tmp_path, *below("train"), *below("eval"), *below("holdout"))
    assert "more than one val folder: eval, holdout" in refusal(tmp_path)


def test_a_folder_within_each_split_is_looked_through(tmp_path):
    touch(tmp_path, *below("seg_train/seg_train"), *below("seg_test/seg_test"), "seg_pred/seg_pred/1.jpg")
    assert set(read(tmp_path).values()) == {(part, name) for part in ("train", "test") for name in ("cat", "dog")}


@pytest.mark.parametrize("container", ["images", "data", "archive", "Dataset"])
def test_splits_within_a_folder_that_says_nothing_else_are_found(tmp_path, container):
    touch(tmp_path, *below(f"{container}/train"), *below(f"{container}/val"), "README.md")
    assert set(read(tmp_path).values()) == {(part, name) for part in ("train", "val") for name in ("cat", "dog")}


@pytest.mark.parametrize("wrapper", ["archive", "PetImages", "a/b/c"])
def test_a_folder_around_the_classes_is_looked_through_and_said_once(tmp_path, wrapper):
    touch(tmp_path, *below(wrapper))
    listing = list_folder(tmp_path)
    assert {one.label for one in listing.files} == {"cat", "dog"}
    assert [one.path for one in listing.files] == below(wrapper)
    assert [note for note in listing.notes if "alone in" in note] == [
        f"the classes are the folders in {tmp_path / wrapper}, which is alone in {(tmp_path / wrapper).parent}"
    ]


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_files_beside_a_folder_that_is_looked_through_are_set_aside(tmp_path, parts):
    for part in parts:
        touch(tmp_path / "data", *below(f"{part}/pets" if part else "pets"), *([f"{part}/log.txt"] if part else []))
    touch(tmp_path, "README.md", "data/notes.txt")
    listing = list_folder(tmp_path)
    aside = {"README.md", "data/notes.txt", *(f"data/{part}/log.txt" for part in parts if part)}
    assert {q.path for q in listing.quarantine} == aside
    assert {q.reason for q in listing.quarantine} == {"not inside a class folder"}
    assert {one.label for one in listing.files} == {"cat", "dog"}


def test_a_folder_that_is_a_known_class_is_not_looked_through(tmp_path):
    touch(tmp_path, "birds/owl/1.jpg")
    assert read(tmp_path, known_classes=("birds/owl", "cats/lion")) == {"birds/owl/1.jpg": ("", "birds/owl")}
    assert read(tmp_path) == {"birds/owl/1.jpg": ("", "owl")}


@pytest.mark.parametrize(
    "test", [["test/1.jpg", "test/2.jpg"], ["test/test/1.jpg", "test/test/2.jpg"], ["test/unknown/1.jpg"]]
)
def test_test_photos_without_classes_are_left_out_with_a_note(tmp_path, test):
    listing = list_folder(touch(tmp_path, *below("train"), *test))
    assert (listing.splits, listing.quarantine) == (["train"], [])
    (note,) = [note for note in listing.notes if note.startswith("left out")]
    assert f"{tmp_path / 'test'}, whose {len(test)} files are in no class folders" in note


def test_a_test_folder_of_one_known_class_is_judged_on(tmp_path):
    touch(tmp_path, "train/unknown/1.jpg", "train/dog/1.jpg", "test/unknown/2.jpg")
    assert read(tmp_path)["test/unknown/2.jpg"] == ("test", "unknown")


@pytest.mark.parametrize("names", [("fold1", "fold2"), ("amazon", "webcam"), ("seen", "unseen"), ("val", "test")])
@pytest.mark.parametrize("inner", ["", "/images"])
def test_folders_that_hold_the_same_classes_are_refused_with_all_readings(tmp_path, names, inner):
    touch(tmp_path, *(path for name in names for path in below(name + inner)))
    told = refusal(tmp_path)
    assert f"{names[0]}, {names[1]} in {tmp_path} all hold cat, dog" in told or names == ("val", "test")
    assert "If they are splits, call them train, val and test." in told
    for reading in ("--class-level top", "--class-level leaf", "--class-level path"):
        assert reading in told
    assert {label for _, label in read(tmp_path, class_level="leaf").values()} == {"cat", "dog"}
    assert {label for _, label in read(tmp_path, class_level="top").values()} == set(names)
    assert {label for _, label in read(tmp_path, class_level="path").values()} == {
        f"{name}{inner}/{own}" for name in names for own in ("cat", "dog")
    }


PATIENTS = ("sick/p1/a.png", "sick/p2/a.png", "well/p3/a.png", "well/p4/deep/a.png")


@pytest.mark.parametrize("prefix", ["", "train/"])
@pytest.mark.parametrize("name", ["p", "patient_", "0", "video"])
def test_folders_that_could_be_patients_are_refused_with_all_readings(tmp_path, prefix, name):
    touch(tmp_path, *(prefix + path.replace("/p", f"/{name}") for path in PATIENTS))
    told = refusal(tmp_path)
    assert f"{tmp_path / prefix} has folders in its class folders ({name}1, {name}2, {name}3 and 1 more)" in told
    assert "--class-level top (the class is 'sick')" in told
    assert f"--class-level path ('sick/{name}1')" in told
    labels = {label for _, label in read(tmp_path, class_level="top").values()}
    assert labels == {"sick", "well"}


def test_all_below_a_class_is_of_it_where_the_top_names_it(tmp_path):
    touch(tmp_path, *PATIENTS, "sick/loose.png")
    assert read(tmp_path, class_level="top")["sick/loose.png"] == ("", "sick")
    assert read(tmp_path, class_level="top")["well/p4/deep/a.png"] == ("", "well")
    assert read(tmp_path, class_level="leaf")["well/p4/deep/a.png"] == ("", "deep")


def test_photos_and_folders_in_a_class_are_one_class_by_wish(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/more/2.jpg", "b/3.jpg")
    assert "take all that it holds for one class with --class-level top" in refusal(tmp_path)
    assert [label for _, label in read(tmp_path, class_level="top").values()] == ["a", "a", "b"]
    assert [label for _, label in read(tmp_path, class_level="path").values()] == ["a/more", "a", "b"]


def test_classes_in_classes_are_read_and_said_once(tmp_path):
    listing = list_folder(touch(tmp_path, "birds/owl/1.jpg", "birds/hawk/1.jpg", "cats/lion/1.jpg"))
    assert [one.label for one in listing.files] == ["birds/hawk", "birds/owl", "cats/lion"]
    assert [note for note in listing.notes if "'birds/hawk'; --class-level" in note] == listing.notes


def test_patients_deeper_in_the_classes_are_seen(tmp_path):
    touch(tmp_path, "benign/SOB/adenosis/A_14-2254/40X/1.png", "malignant/SOB/ductal/M_DC_14-1092/40X/1.png")
    assert "has folders in its class folders (A_14-2254, M_DC_14-1092)" in refusal(tmp_path)


def test_a_folder_of_images_within_every_class_is_no_part_of_its_name(tmp_path):
    touch(tmp_path, "train/n01/images/1.jpg", "train/n02/images/1.jpg", "test/images/1.jpg")
    listing = list_folder(tmp_path)
    assert [one.label for one in listing.files] == ["n01", "n02"]
    assert f"the classes of {tmp_path / 'train'} are named without /images, which is in all of them" in listing.notes


def test_class_folders_that_are_data_sets_are_refused_by_name(tmp_path):
    touch(tmp_path, *(f"{name}/{part}/good/1.png" for name in ("bottle", "cable") for part in ("train", "test")))
    assert f"{tmp_path / 'bottle'} holds test, train, so it could be a data set of its own" in refusal(tmp_path)
    assert {label for _, label in read(tmp_path, class_level="top").values()} == {"bottle", "cable"}
    assert len({label for _, label in read(tmp_path, class_level="path").values()}) == 4


def test_leaves_that_differ_in_case_alone_are_refused(tmp_path):
    touch(tmp_path, "a/Cat/1.jpg", "b/cat/1.jpg", "b/dog/1.jpg")
    assert "the classes 'Cat' and 'cat', which differ in case" in refusal(tmp_path, class_level="leaf")


def test_a_train_folder_beside_classes_is_refused_where_it_holds_others(tmp_path):
    touch(tmp_path, "train/steam/1.jpg", "train/diesel/1.jpg", "bus/red/1.jpg")
    assert "so train could be a split, or a class like those" in refusal(tmp_path)
    assert set(read(touch(tmp_path / "b", *below("train"), "docs/api/index.html"))) == set(below("train"))


def test_a_part_that_may_be_a_split_is_refused(tmp_path):
    touch(tmp_path, *below("train"), *below("val"), *below("public_test"))
    assert "has public_test beside train, val, which could be a split or is to be left out" in refusal(tmp_path)


def test_an_unknown_class_level_is_refused():
    with pytest.raises(ConfigError, match=r"Unknown class_level 'inner'\. Expected one of: None, top, leaf, path"):
        TrainConfig(class_level="inner")


def test_how_folders_are_read_is_recorded_with_a_model():
    config = TrainConfig(class_level="top", follow_links=True)
    assert FolderOptions.recorded(config.to_json()) == config.folder_options == FolderOptions("top", True)
    assert FolderOptions.recorded({"class_level": 7}) == FolderOptions()


def test_groups_are_found_in_the_whole_path(tmp_path):
    for number, path in enumerate(PATIENTS):
        draw(tmp_path / path, (number * 60, 0, 0), number, (8, 8))
        draw(tmp_path / path.replace("a.png", "b.png"), (number * 60, 0, 9), number, (8, 8))
    dataset = grouped(list_photos(tmp_path, options=FolderOptions("top")), "p[0-9]+")
    assert dataset.groups == ("=p1", "=p1", "=p2", "=p2", "=p3", "=p3", "=p4", "=p4")
    assert any("4 groups by 'p[0-9]+', such as 'p1' of sick/p1/a.png" in note for note in dataset.notes)
    splits = split(dataset, val_fraction=0.5)
    assert not {path.split("/")[1] for path in splits.train.paths} & {path.split("/")[1] for path in splits.val.paths}

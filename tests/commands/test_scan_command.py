"""`regraft scan`: what was planted is found, shown, and left out of a copy; nothing else is."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regraft
from conftest import draw_folder
from data.test_issues import encoded, pattern
from faults.processes import record
from regraft.commands.scan import chosen_kinds, find_issues, write_fixed, write_scan
from regraft.core.config import TrainConfig
from regraft.core.errors import ConfigError, DataError, OutputError
from regraft.core.files import csv_bytes
from regraft.core.progress import Progress
from regraft.data.decode import decode
from regraft.data.scan import list_photos

SMALL = TrainConfig(backbone="timm/test_resnet", weights="random")


@pytest.fixture
def messy(tmp_path) -> Path:
    """Two classes of patterns in train and val, with a leak, a conflict, a duplicate and a file that is no photo."""
    root = tmp_path / "messy"
    for split, count, first in (("train", 10, 0), ("val", 4, 500)):
        for c, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.jpg").write_bytes(encoded(pattern(first + 100 * c + i)))
    shutil.copy(root / "train/ant/0.jpg", root / "val/ant/again.jpg")
    (root / "val/bee/smaller.jpg").write_bytes(encoded(pattern(101), quality=70))
    shutil.copy(root / "train/ant/5.jpg", root / "train/bee/ant5.jpg")
    shutil.copy(root / "train/bee/7.jpg", root / "train/bee/7b.jpg")
    (root / "train/bee/page.jpg").write_text("<html>")
    return root


def paths(found, kind):
    return [[found.dataset.paths[i] for i in one.photos] for one in found.of(kind)]


def test_what_was_planted_is_found(messy, empty_cache):
    found = find_issues(messy, with_features=False)
    assert paths(found, "leaks") == [
        ["train/ant/0.jpg", "val/ant/again.jpg"],
        ["train/bee/1.jpg", "val/bee/smaller.jpg"],
    ]
    assert paths(found, "conflicts") == [["train/ant/5.jpg", "train/bee/ant5.jpg"]]
    assert paths(found, "duplicates") == [["train/bee/7.jpg", "train/bee/7b.jpg"]]
    assert {one.kind for one in found.issues} == {"leaks", "conflicts", "duplicates"}
    assert str(found).startswith("leaks: 2\n  train/ant/0.jpg, val/ant/again.jpg: ")
    told = found.to_json()
    assert told["leaks"] == paths(found, "leaks")
    assert sorted(map(len, told["duplicates"])) == [2, 2, 2, 2]
    assert (told["found"], told["used"], len(told["quarantined"])) == (33, 32, 1)


def test_features_add_doubts_and_what_leaks_are_worth(messy, empty_cache):
    found = find_issues(messy, SMALL)
    with_them, without = found.leak_cost
    assert (with_them.n, without.n) == (10, 8)
    assert all(s.suggested != found.dataset.labels[s.photo] for s in found.label_issues)
    assert json.loads(json.dumps(found.to_json()))["leak_cost"]["without"]["n"] == 8


def test_a_cleaned_copy_is_made_of_links_and_the_original_is_not_touched(messy, tmp_path, empty_cache):
    before = {path: path.read_bytes() for path in messy.rglob("*.jpg")}
    found = find_issues(messy, with_features=False)
    left_out = write_fixed(found, tmp_path / "fixed")
    assert set(left_out) == {
        "train/ant/0.jpg",
        "train/bee/1.jpg",
        "train/ant/5.jpg",
        "train/bee/ant5.jpg",
        "train/bee/7b.jpg",
        "train/bee/page.jpg",
    }
    again = find_issues(tmp_path / "fixed", with_features=False)
    assert again.issues == ()
    assert len(again.dataset) == 27
    assert (tmp_path / "fixed/train/bee/7.jpg").samefile(messy / "train/bee/7.jpg")
    assert {path: path.read_bytes() for path in messy.rglob("*.jpg")} == before
    rows = list(csv.reader((tmp_path / "fixed.left-out.csv").read_text().splitlines()))
    assert rows[0] == ["path", "reason"]
    assert len(rows) == 7


def test_what_is_dropped_can_be_chosen(messy, tmp_path, empty_cache):
    found = find_issues(messy, with_features=False)
    assert set(write_fixed(found, tmp_path / "none", ())) == {"train/bee/page.jpg"}
    assert len(write_fixed(found, tmp_path / "some", chosen_kinds("duplicates, leaks"))) == 4
    assert chosen_kinds("all") == regraft.data.issues.KINDS
    assert chosen_kinds("odd-shapes") == ("odd shapes",)
    with pytest.raises(ConfigError, match="Did you mean 'leaks'"):
        chosen_kinds("leak")


@pytest.mark.parametrize("place", ["inside", "full", "file"])
def test_a_copy_goes_only_where_nothing_is(messy, tmp_path, empty_cache, place):
    folder = messy / "copy" if place == "inside" else tmp_path / place
    if place == "full":
        folder.mkdir()
        (folder / "mine.txt").touch()
    if place == "file":
        folder.touch()
    with pytest.raises(OutputError, match="Choose another --fix"):
        write_fixed(find_issues(messy, with_features=False), folder)


def test_where_links_do_not_reach_files_are_copied(messy, tmp_path, empty_cache, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    write_fixed(find_issues(messy, with_features=False), tmp_path / "fixed")
    assert (tmp_path / "fixed/train/bee/7.jpg").read_bytes() == (messy / "train/bee/7.jpg").read_bytes()
    assert not (tmp_path / "fixed/train/bee/7.jpg").samefile(messy / "train/bee/7.jpg")


def test_each_kind_of_finding_has_a_picture(messy, tmp_path, empty_cache):
    pictures = write_scan(find_issues(messy, with_features=False), tmp_path / "out")
    assert [path.name for path in pictures] == ["photos.png", "leaks.png", "conflicts.png", "duplicates.png"]
    assert all(decode(path.read_bytes()).width > 400 for path in pictures)
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["used"] == 32
    left_out = list(csv.reader((tmp_path / "out" / "quarantine.csv").read_text().splitlines()))
    assert ["train/bee/page.jpg", "not an image of a known format"] in left_out


def test_training_drops_what_it_is_told_to_and_says_what_it_sees(messy, tmp_path, capsys):
    options = {"mode": "frozen", "backbone": "timm/test_resnet", "weights": "random", "report": False}
    regraft.train(messy, tmp_path / "a", **options)
    assert "scan: leaks: 1, conflicts: 1, duplicates: 1" in capsys.readouterr().err
    regraft.train(messy, tmp_path / "b", drop="leaks,conflicts", **options)
    rows = list(csv.reader((tmp_path / "b" / "quarantine.csv").read_text().splitlines()))
    assert len(rows) == 1 + 1 + 4
    assert ["train/ant/0.jpg", "leaks: the same file in train and val"] in rows
    with pytest.raises(DataError, match=r"1 files of .* cannot be used, and --strict refuses that"):
        regraft.train(messy, tmp_path / "c", strict=True, **options)


def test_photos_of_a_group_stay_on_one_side(tmp_path):
    photos = draw_folder(tmp_path / "photos", ("red", "green"), 20)
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        path.rename(path.with_name(f"patient{number % 10}_{number}.jpg"))
    options = {"mode": "frozen", "backbone": "timm/test_resnet", "weights": "random", "quiet": True, "report": False}
    regraft.train(photos, tmp_path / "run", group_by="patient[0-9]+", **options)
    sides: dict[str, set[str]] = {}
    for line in (tmp_path / "run" / "photos.jsonl").read_text().splitlines():
        row = json.loads(line)
        sides.setdefault(Path(row["path"]).name.partition("_")[0], set()).add(row["split"])
    assert len(sides) == 10
    assert all(len(side) == 1 for side in sides.values())
    assert list(sides.values()).count({"val"}) == 2
    for pattern_, told in (("(", "no regular expression"), ("zebra", "finds nothing")):
        with pytest.raises(ConfigError, match=told):
            regraft.train(photos, tmp_path / "run", group_by=pattern_, **options)


def test_a_pass_that_would_take_long_is_not_begun_unasked(messy, empty_cache, monkeypatch, capsys):
    monkeypatch.setattr("regraft.commands.scan.QUICK", 20)
    assert find_issues(messy, SMALL, progress=Progress()).leak_cost is None
    assert "29 photos have not been through the backbone" in capsys.readouterr().err
    assert find_issues(messy, SMALL, with_features=True).leak_cost is not None
    assert find_issues(messy, SMALL).leak_cost is not None, "the features are there now"


def test_cells_that_spreadsheets_would_run_are_quoted():
    assert (
        csv_bytes(("a",), [("=cmd|x",), ("-1",), ("@x",), ("plain",)]) == b'"a"\n"\'=cmd|x"\n"\'-1"\n"\'@x"\n"plain"\n'
    )


def test_scan_on_the_command_line(run, messy, tmp_path, empty_cache):
    done = run("scan", messy, "--fast", "--json", "--fix", tmp_path / "fixed", forbid="torch")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["leaks"][0] == ["train/ant/0.jpg", "val/ant/again.jpg"]
    done = run("scan", messy, "--fast", "--strict")
    assert done.returncode == 1
    assert "leaks: 2" in done.stdout
    assert "1 files cannot be used; --strict refuses that" in done.stderr


@pytest.mark.slow
def test_what_is_planted_among_real_photos_is_found(real_photos, tmp_path, record_property):
    """20 exact and 20 re-encoded copies, 10 of each across the split, and 15 swapped labels."""
    root = shutil.copytree(real_photos / "hymenoptera", tmp_path / "photos")
    rng = np.random.default_rng(0)
    own = sorted((root / "train").rglob("*.jpg"))
    chosen = [own[i] for i in rng.permutation(len(own))]
    planted, swapped = set(), set()
    for number, path in enumerate(chosen[:40]):
        place = root / ("val" if number % 2 else "train") / path.parent.name / f"copy{number}.jpg"
        if number < 20:
            shutil.copy(path, place)
        else:
            Image.open(path).convert("RGB").save(place, quality=70)
        planted.add((str(path.relative_to(root)), str(place.relative_to(root))))
    for path in chosen[40:55]:
        other = "bees" if path.parent.name == "ants" else "ants"
        place = path.parent.parent / other / f"swapped_{path.name}"
        path.rename(place)
        swapped.add(str(place.relative_to(root)))
    found = find_issues(root)
    groups = [{found.dataset.paths[i] for i in one.photos} for one in found.issues if len(one.photos) > 1]
    exact = [pair for pair in planted if int(Path(pair[1]).stem[4:]) < 20]
    hits = [any(set(pair) <= group for group in groups) for pair in planted]
    assert all(any(set(pair) <= group for group in groups) for pair in exact)
    assert sum(hits) >= 38
    across = [pair for pair in planted if pair[1].startswith("val")]
    leaks = [{found.dataset.paths[i] for i in one.photos} for one in found.of("leaks")]
    assert sum(any(set(pair) <= group for group in leaks) for pair in across) >= 19
    named = {path for pair in planted for path in pair}
    false = [group for group in groups if not group & named]
    assert len(false) <= 5
    first = {found.dataset.paths[s.photo] for s in found.label_issues[:30]}
    assert len(first & swapped) >= 10
    assert any("imageNotFound" in found.dataset.paths[i] for one in found.issues for i in one.photos)
    record(
        record_property,
        "doctor-planted",
        copies=40,
        copies_found=sum(hits),
        false_copies=len(false),
        swapped=15,
        swapped_in_first_30=len(first & swapped),
    )


@pytest.mark.slow
def test_a_class_in_another_format_is_noticed_among_real_photos(real_photos, tmp_path):
    root = tmp_path / "photos"
    for path in sorted((real_photos / "hymenoptera" / "train").rglob("*.jpg"))[::2]:
        place = root / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name == "ants":
            Image.open(path).convert("RGB").save(place.with_suffix(".png"))
        else:
            shutil.copy(path, place)
    told = [one.text for one in find_issues(root, with_features=False).of("format leak")]
    assert any(text.startswith("the file format alone tells the class of 100 %") for text in told)
    clean = find_issues(real_photos / "hymenoptera")
    assert clean.of("format leak") == []
    assert len([one for one in clean.issues if len(one.photos) > 1]) <= 5
    assert len(list_photos(real_photos / "hymenoptera")) == len(clean.dataset)

"""Many photos: in order, and one that is bad does not stop the others."""

import os
import shutil

import pytest

from regraft.bundle.predict import find_photos, predict
from regraft.core.errors import DataError


def test_answers_come_in_input_order_with_errors_between(bundle, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    sources = [photos / "red" / "red_1.jpg", bad, photos / "blue" / "blue_1.jpg"]
    answers = list(predict(bundle, sources))
    assert [answer.path for answer in answers] == list(map(str, sources))
    assert [answer.prediction and answer.prediction.label for answer in answers] == ["red", None, "blue"]
    assert "bad.jpg" in answers[1].to_json()["error"]
    known = {"path", "label", "probability", "probabilities", "novelty", "looks_new", "unsure", "labels"}
    assert set(answers[0].to_json()) == known


def test_folders_are_searched_in_natural_order_without_junk(tmp_path):
    for name in ("10.jpg", "2.jpg", "sub/1.jpg", ".hidden.jpg", "Thumbs.db", "__MACOSX/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in find_photos([tmp_path])] == ["2.jpg", "10.jpg", "sub/1.jpg"]


def test_nothing_is_predicted_when_a_source_is_missing(bundle, photos, tmp_path):
    with pytest.raises(DataError, match="There is no photo or folder"):
        next(predict(bundle, [photos / "red", tmp_path / "none"]))


def test_pipes_and_loops_of_links_do_not_hang(bundle, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(predict(bundle, [tmp_path])) == []
    (answer,) = predict(bundle, [tmp_path / "pipe.jpg"])
    assert "not a regular file" in answer.error


def test_an_empty_folder_gives_no_answers(bundle, tmp_path):
    assert list(predict(bundle, [tmp_path])) == []


def test_a_copy_under_any_name_gets_the_same_answer(bundle, photos, tmp_path):
    name = tmp_path / "-x 'q\" é🐝.dat"
    shutil.copy(photos / "green" / "green_2.jpg", name)
    first, second = predict(bundle, [photos / "green" / "green_2.jpg", name])
    assert first.prediction == second.prediction


def test_one_photo_gets_bars_and_many_get_a_line_each(run, bundle, photos):
    one, other = photos / "red" / "red_0.jpg", photos / "blue" / "blue_0.jpg"
    lines = run("predict", bundle.folder, one).stdout.splitlines()
    assert lines[0].startswith(f"{one}  red")
    assert next(line.split()[0] for line in lines[1:]) == "red"
    assert len(lines) == 4
    assert len(run("predict", bundle.folder, one, other).stdout.splitlines()) == 2

"""Many photos: in order, and one that is bad does not stop the others."""

import os
import shutil

import pytest

from regraft.bundle.predict import find_photos, predict
from regraft.core.errors import DataError
from regraft.core.progress import Progress


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
    with pytest.raises(DataError, match="There are no photos in"):
        list(predict(bundle, [tmp_path]))
    (answer,) = predict(bundle, [tmp_path / "pipe.jpg"])
    assert "not a regular file" in answer.error


def test_a_folder_without_photos_is_an_error_and_never_silence(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"There are no photos in {tmp_path}/empty"):
        list(predict(bundle, [tmp_path / "empty"]))


def test_what_is_not_read_below_a_folder_is_said(tmp_path, capsys):
    for name in ("here/1.jpg", "there/2.jpg", "empty/none/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "empty" / "none" / "x").unlink()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "there")
    (tmp_path / "here" / "back").symlink_to(tmp_path / "here")
    os.mkfifo(tmp_path / "here" / "pipe.jpg")
    found = list(find_photos([tmp_path / "here", tmp_path / "empty"], progress=Progress()))
    assert [path.name for path in found] == ["1.jpg"]
    said = capsys.readouterr().err
    assert f"2 links to folders are not followed in {tmp_path}/here, such as {tmp_path}/here/back; --follow" in said
    assert "1 that are no files, such as" in said
    assert f"there are no photos in {tmp_path}/empty" in said


def test_links_to_folders_are_followed_by_wish_and_not_in_circles(tmp_path):
    for name in ("here/1.jpg", "there/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "back").symlink_to(tmp_path / "here")
    (tmp_path / "there" / "self").symlink_to(".")
    assert [path.name for path in find_photos([tmp_path / "here"], follow_links=True)] == ["1.jpg", "2.jpg"]


def test_a_copy_under_any_name_gets_the_same_answer(bundle, photos, tmp_path):
    name = tmp_path / "-x 'q\" é🐝.dat"
    shutil.copy(photos / "green" / "green_2.jpg", name)
    first, second = predict(bundle, [photos / "green" / "green_2.jpg", name])
    assert first.prediction == second.prediction


def test_one_photo_gets_bars_and_many_get_a_line_each(regraft_main, bundle, photos):
    one, other = photos / "red" / "red_0.jpg", photos / "blue" / "blue_0.jpg"
    lines = regraft_main("predict", bundle.folder, one).stdout.splitlines()
    assert lines[0].startswith(f"{one}  red")
    assert next(line.split()[0] for line in lines[1:]) == "red"
    assert len(lines) == 4
    assert len(regraft_main("predict", bundle.folder, one, other).stdout.splitlines()) == 2

"""A sitting keeps what was said, refuses what would overwrite it, and shows what helps."""

import errno
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from heaps import NAMES, clouds, labels_of, say, sitting

from regraft.core.errors import ConfigError, DataError, OutputError
from regraft.labelling.cards import Annotation, Conflict, UndoneStep
from regraft.labelling.heap import Heap, heap_of


@pytest.fixture
def drawn():
    return clouds(120)


def test_answers_and_undone_steps_are_there_when_the_sitting_is_opened_again(tmp_path, drawn):
    x, y = drawn
    with sitting(tmp_path, x) as one:
        say(one, y, [1, 2, 3])
        say(one, y, [4, 5])
        one.answer([Annotation(1, None, set_aside=True), Annotation(2, "cat")], person="me")
        one.undo(person="me")
        one.undo(person="me")
        one.answer([Annotation(9, None, set_aside=True)], person="me")
        said, status = labels_of(one), one.status()
    assert said == {f"{i}.jpg": NAMES[y[i]] for i in (1, 2, 3)}
    with sitting(tmp_path, x) as again:
        assert labels_of(again) == said
        assert again.status().version == status.version
        assert again.status().num_set_aside == 1
        assert again.undo(person="me").photos == (9,)
        assert again.undo(person="me").photos == (1, 2, 3)
        assert again.undo(person="me") == UndoneStep(again.status().version, ())
        assert labels_of(again) == {}


def test_an_answer_that_would_overwrite_another_is_refused_whole_and_the_same_one_again_is_not(tmp_path, drawn):
    x, y = drawn
    with sitting(tmp_path, x) as one:
        seen = one.status().version
        say(one, y, [7], person="first")
        with pytest.raises(Conflict) as found:
            one.answer([Annotation(8, "cat"), Annotation(7, "cat")], person="second", seen_version=seen)
        assert found.value.photos == (7,)
        assert labels_of(one) == {"7.jpg": NAMES[y[7]]}
        one.answer([Annotation(8, "cat"), Annotation(7, NAMES[y[7]])], person="second", seen_version=seen)
        assert labels_of(one) == {"7.jpg": NAMES[y[7]], "8.jpg": "cat"}


def test_undoing_takes_back_only_what_that_person_said_last(tmp_path, drawn):
    x, _ = drawn
    with sitting(tmp_path, x) as one:
        one.answer([Annotation(1, "ant"), Annotation(2, "ant")], person="a")
        one.answer([Annotation(2, "bee")], person="b")
        assert one.undo(person="a").photos == (1, 2)
        assert labels_of(one) == {"2.jpg": "bee"}
        one.undo(person="b")
        assert labels_of(one) == {}


def test_what_cannot_be_said_is_refused_and_nothing_is_kept(tmp_path, drawn):
    x, _ = drawn
    with sitting(tmp_path, x) as one:
        version = one.status().version
        for answers in (
            [Annotation(120, "ant")],
            [Annotation(-1, "ant")],
            [Annotation(1, "dog")],
            [Annotation(1, "ant")] * 2,
        ):
            with pytest.raises(DataError):
                one.answer([Annotation(3, "ant"), *answers], person="me")
        for name in ("", " ", "a/b", "unsure", "New", "set-aside", ".hidden", "train", "Ant", "ant", "x" * 101, "a\nb"):
            with pytest.raises(DataError):
                one.add_class(name)
        with pytest.raises(DataError):
            one.rename_class("dog", "wolf")
        with pytest.raises(ConfigError):
            one.page("everything")
        assert one.status().version == version


def test_a_class_keeps_its_photos_under_a_new_name(tmp_path, drawn):
    x, y = drawn
    with sitting(tmp_path, x) as one:
        say(one, y, range(6))
        one.rename_class("ant", "termite")
        one.answer([Annotation(0, "bee")], person="me")
        one.undo(person="me")
        before = labels_of(one)
        assert before["0.jpg"] == "termite"
    with sitting(tmp_path, x) as again:
        assert labels_of(again) == before
        assert again.status().classes == ("termite", "bee", "cat")


def test_a_page_of_guesses_is_of_one_class_the_surest_first_and_each_answer_makes_more_of_them_right(tmp_path, drawn):
    x, y = drawn
    with sitting(tmp_path, x) as one:
        assert one.page("guesses").cards == ()
        say(one, y, range(6))
        page = one.page("guesses", size=10)
        sure = [card.probability for card in page.cards]
        assert {card.guess for card in page.cards} == {page.suggestion}
        assert sure == sorted(sure, reverse=True)
        assert len(sure) == 10
        other = next(name for name in NAMES if name != page.suggestion)
        assert one.page("guesses", class_name=other).suggestion == other
        left_out = {card.photo for card in page.cards}
        assert not left_out & {card.photo for card in one.page("guesses", size=10, without=left_out).cards}
        right = [NAMES[y[card.photo]] == card.guess for card in page.cards]
        assert np.mean(right) > 0.8


def test_groups_need_no_model_and_are_mostly_of_one_class(tmp_path, drawn):
    x, y = drawn
    with sitting(tmp_path, x) as one:
        while (page := one.page("groups")).cards:
            counts = np.bincount([y[card.photo] for card in page.cards])
            assert counts.max() >= 0.8 * counts.sum()
            assert {card.guess for card in page.cards} == {None}
            say(one, y, [card.photo for card in page.cards])
        assert one.status().is_done


def test_photos_of_the_audit_are_shown_nowhere_else_and_count_only_when_labelled_blindly(tmp_path, drawn):
    x, y = drawn
    with sitting(tmp_path, x) as one:
        audited = {card.photo for card in one.page("audit").cards}
        assert len(audited) == 12
        say(one, y, range(9))
        for kind in ("groups", "guesses", "questions"):
            assert not audited & {card.photo for card in one.page(kind, size=200).cards}
        blind = sorted(audited - set(range(9)))
        assert {card.guess for card in (*one.page("audit").cards, *one.cards(blind))} == {None}
        say(one, y, blind[:4], is_audit=True)
        other = next(i for i in range(9, 120) if i not in audited)
        say(one, y, [other], is_audit=True)  # not drawn for the audit
        accuracy = one.status().accuracy
        assert (accuracy.n, accuracy.value) == (4, 1.0)
        learned = one._solver.latest.snapshot.photos
        assert not set(blind[:4]) & set(learned.tolist())
        assert other in learned


def test_in_the_end_photos_of_the_audit_are_like_any_other(tmp_path, drawn):
    x, y = drawn
    with sitting(tmp_path, x) as one:
        say(one, y, range(3))
        while (page := one.page("guesses")).cards:
            say(one, y, [card.photo for card in page.cards])
        status = one.status()
        assert status.is_done
        assert status.accuracy is None
        assert one.page("audit").cards == ()
        assert labels_of(one) == {f"{i}.jpg": NAMES[label] for i, label in enumerate(y)}


def test_a_wrong_label_is_doubted_first_and_not_again_once_it_is_confirmed(tmp_path, drawn):
    x, y = drawn
    with sitting(tmp_path, x) as one:
        say(one, y, range(60))
        wrong = NAMES[(y[30] + 1) % 3]
        one.answer([Annotation(30, wrong)], person="me")
        one.wait()
        first = one.page("doubts").cards[0]
        assert (first.photo, first.label, first.guess) == (30, wrong, NAMES[y[30]])
        one.answer([Annotation(30, wrong)], person="me")
        one.wait()
        assert 30 not in {card.photo for card in one.page("doubts").cards}
        assert labels_of(one)["30.jpg"] == wrong


def test_doubts_are_found_in_larger_photos_once_these_are_known(tmp_path, drawn):
    x, y = drawn
    with sitting(tmp_path, np.random.default_rng(3).normal(size=x.shape).astype(np.float32)) as one:
        say(one, y, range(60))
        wrong = NAMES[(y[30] + 1) % 3]
        one.answer([Annotation(30, wrong)], person="me")
        one.wait()
        blind = [card.photo for card in one.page("doubts", 40).cards]
        assert len(blind) > 20, "features that say nothing doubt most labels"
        one.contents.put_closer(np.arange(len(x)), x)
        one.features_arrived()
        one.wait()
        cards = one.page("doubts", 40).cards
        assert (cards[0].photo, cards[0].label, cards[0].guess) == (30, wrong, NAMES[y[30]])
        assert len(cards) < 10


def test_labels_of_folders_count_and_can_be_put_right(tmp_path, drawn):
    x, y = drawn
    given = tuple(NAMES[y[i]] if i < 30 else "" for i in range(120))
    with sitting(tmp_path, x, given) as one:
        assert one.status().num_labelled == 30
        assert one.page("guesses").cards
        one.answer([Annotation(0, "bee")], person="me")
    with sitting(tmp_path, x, given) as again:
        assert again.status().num_labelled == 30
        assert labels_of(again)["0.jpg"] == "bee"
        assert {row.by for row in again.rows() if row.label} == {"folder", "me"}


def test_an_answer_that_did_not_reach_the_disk_does_not_count(tmp_path, drawn, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    x, y = drawn
    with sitting(tmp_path, x) as one:
        say(one, y, [1])
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", broken)
            with pytest.raises(OutputError, match="was not kept"):
                say(one, y, [2])
        assert labels_of(one) == {"1.jpg": NAMES[y[1]]}
        say(one, y, [3])
    with sitting(tmp_path, x) as again:
        assert labels_of(again) == {f"{i}.jpg": NAMES[y[i]] for i in (1, 3)}


def test_the_audit_takes_all_frames_of_a_video_or_none():
    paths = [f"clip{v}.mp4/{frame:010}.ppm" for v in range(40) for frame in range(3)] + [f"{i}.jpg" for i in range(80)]
    paths += [f"long.mp4/{frame:010}.ppm" for frame in range(60)]
    audited = Heap(Path("heap"), tuple(paths), ("",) * len(paths)).audited
    of = Counter(path.partition("/")[0] for path, is_audited in zip(paths, audited, strict=True) if is_audited)
    assert audited.sum() == 26
    assert {count for name, count in of.items() if name.startswith("clip")} == {3}
    assert "long.mp4" not in of


def test_a_video_is_no_class_folder(tmp_path):
    files = [tmp_path / name for name in ("a.jpg", "ant/b.jpg", "ant/c.mp4/0.ppm", "d.mp4/0.ppm")]
    assert heap_of(tmp_path, files).given == ("", "ant", "ant", "")

"""Which phase comes next: all layers at once where photos from elsewhere are to be answered, whatever their labels."""

from types import SimpleNamespace

import numpy as np
import pytest

from regraft.commands.train import configure, train_run
from regraft.core.progress import QUIET, Progress
from regraft.data.scan import list_photos
from regraft.evaluation.comparison import pair
from regraft.pipeline import phases as phases_module
from regraft.pipeline.fine_tune import FULL, LAST_STAGES, Candidate, answers_of, phases_for
from regraft.pipeline.selection import HeldOutPredictions, is_from_elsewhere
from regraft.run import Outcome, TrainedModel
from regraft.run_ownership import SCRATCH
from regraft.training.distributed import ProcessGroup
from regraft.training.planning import TooLittleTime
from tiny_backbone import SHADES, draw, only_tiny_backbone

NAMES = ("ash", "birch", "cedar")


@pytest.fixture(autouse=True)
def backbone(tmp_path):
    with only_tiny_backbone(tmp_path / "backbone") as tiny:
        yield tiny


def draw_split(root, moved=0, mixed_up=False):
    """Photos to learn from and to be evaluated on, the latter lighter; and under wrong labels where that is wanted."""
    for part, lighter, seed in (("train", 0, 0), ("test", moved, 5000)):
        for c, name in enumerate(NAMES):
            for i in range(24):
                label = NAMES[(c + i) % 3] if mixed_up and part == "test" else name
                shade = tuple(value + lighter for value in SHADES[name])
                draw(root / part / label / f"{name}_{i}.png", shade, seed + 1000 * c + i)
    return root


@pytest.fixture
def begun(monkeypatch):
    """Names of the phases that were begun; none has time."""
    names = []

    def tuned(inputs, head, phase, context, selection):
        names.append(phase.name + (", far" if selection.is_far else ""))
        raise TooLittleTime("not begun")

    monkeypatch.setattr("regraft.pipeline.phases.tuned_on_split", tuned)
    monkeypatch.setattr("regraft.pipeline.phases.missing_for_training", tuple)
    return names


def shifts(run):
    return [one["text"] for one in run.summary["findings"] if one["kind"] == "split shift"]


def test_photos_from_elsewhere_let_all_layers_learn_at_once(tmp_path, begun):
    run = train_run(draw_split(tmp_path / "photos", moved=40), tmp_path / "run", configure(), QUIET)
    assert len(shifts(run)) == 1
    assert begun == ["full, far", "last stages, far"], "which take less time, where there is too little for all"
    assert run.summary["mode"] == "frozen"
    assert "there was no time left: full not begun" in run.summary["decision"]


def test_photos_of_the_same_kind_let_the_last_stages_learn_first(tmp_path, begun):
    run = train_run(draw_split(tmp_path / "photos"), tmp_path / "run", configure(), QUIET)
    assert (shifts(run), begun) == ([], ["last stages"])


def test_frozen_features_of_photos_from_elsewhere_are_searched_where_that_is_asked_for(tmp_path, capsys):
    photos = draw_split(tmp_path / "photos", moved=40)
    for i in range(8):  # labels that nobody gets right, so that there is room for something better
        (photos / "train" / "ash" / f"ash_{i}.png").rename(photos / "train" / "birch" / f"of_ash_{i}.png")
    run = train_run(photos, tmp_path / "run", configure(mode="frozen", search=True), Progress())
    assert len(shifts(run)) == 1
    assert "other features of the same network, cross-validated" in capsys.readouterr().err


def test_the_labels_that_judge_have_no_part_in_it(tmp_path):
    texts = []
    for mixed_up in (False, True):
        photos = draw_split(tmp_path / f"photos{mixed_up}", moved=40, mixed_up=mixed_up)
        run = train_run(photos, tmp_path / f"run{mixed_up}", configure(mode="frozen"), QUIET)
        texts.append((shifts(run), run.summary["accuracy"]["value"]))
    assert texts[0][0] == texts[1][0] != []
    assert texts[0][1] != texts[1][1]


def test_the_order_of_the_phases():
    assert phases_for(configure()) == (LAST_STAGES, FULL)
    assert phases_for(configure(), is_far=True) == (FULL, LAST_STAGES)
    assert phases_for(configure(mode="full"), is_far=True) == (FULL,)
    assert not is_from_elsewhere(None, None, ())


@pytest.mark.parametrize(("only_b", "wins", "is_no_worse"), [(0, False, True), (2, False, True), (9, True, True)])
def test_on_photos_from_elsewhere_layers_that_learned_are_kept_unless_they_are_worse(only_b, wins, is_no_worse):
    a = np.arange(40) < 20
    compared = pair("frozen", a, "full", a | (np.arange(40) >= 40 - only_b))
    assert (compared.b_wins, compared.b_is_no_worse) == (wins, is_no_worse)
    assert compared.decision("val", is_b_expected=True).startswith("full: of 40 val photos full alone is right on ")
    worse = pair("frozen", a, "full", np.arange(40) < 19)
    assert not worse.b_is_no_worse
    assert worse.decision("val", is_b_expected=True).startswith("frozen: ")


def test_photos_that_choose_are_counted_as_predictions_are_also_where_a_class_has_none(tmp_path, backbone):
    """Photos of val without the first class."""
    photos = draw_split(tmp_path / "photos")
    for name in NAMES[1:]:
        (photos / "val" / name).mkdir(parents=True)
        for i in range(6):
            draw(photos / "val" / name / f"{i}.png", SHADES[name], 9000 + i)
    run = train_run(photos, tmp_path / "run", configure(mode="frozen"), QUIET)
    weight, bias = run.bundle.head
    model = TrainedModel("frozen", backbone, weight, bias, {}, None, 1.0, {}, None)
    dataset = list_photos(photos)
    val = dataset.subset(i for i, split in enumerate(dataset.splits) if split == "val")
    counted = answers_of(model, val, SimpleNamespace(progress=QUIET)).correct
    predicted = [run.bundle.predict(val.root / path).label for path in val.paths]
    assert counted.tolist() == [label == val.classes[i] for label, i in zip(predicted, val.labels, strict=True)]
    assert counted.sum() > 6


def answers(num_right):
    """Of ten photos of the first of two classes."""
    return HeldOutPredictions(
        np.where(np.arange(10)[:, np.newaxis] < num_right, [[-0.1, -2.4]], [[-2.4, -0.1]]), np.zeros(10)
    )


@pytest.mark.parametrize(("num_right", "is_taken"), [(5, False), (6, True)])
def test_a_model_that_learned_from_all_photos_is_taken_unless_it_fails_those_that_chose(
    monkeypatch, num_right, is_taken
):
    """Six of ten photos that chose were right before."""
    before = TrainedModel("full", None, None, None, {}, None, 0.5, {"n": 10}, None)
    best = Candidate(Outcome(before, None, decision="full: why"), answers(6), ())
    selection = SimpleNamespace(photos=range(10), to_json=lambda: {"n": 10})
    inputs = SimpleNamespace(photos_split=SimpleNamespace(splits=SimpleNamespace(train=range(50))))
    monkeypatch.setattr(phases_module, "answers_of", lambda *_: answers(num_right))
    monkeypatch.setattr(phases_module, "save_bundle", lambda model, *_: Outcome(model, None))
    again = TrainedModel("full", None, None, None, {"epoch": 10}, None, 1.0, {}, None)
    found = phases_module._better_refitted(again, best, selection, inputs, None).outcome
    if not is_taken:
        assert found.model is before
        assert found.decision == "full: why. trained again on all photos it was worse, so that was not taken"
        return
    assert found.decision == "full: why. then it learned from all 50 photos, those that chose too"
    assert (found.model.temperature, found.model.thresholds) == (0.5, {"n": 10})
    assert found.model.details == {"epoch": 10, "chosen_on": {"n": 10}, "refit": 50}


def test_where_there_is_no_time_to_learn_from_all_photos_that_is_said(monkeypatch, begun):
    """Nothing is begun that would be cut."""
    monkeypatch.setattr(phases_module, "announce", lambda *_: None)
    tuned = TrainedModel("full", None, None, None, {"recipe": {"views": 0}})
    best = Candidate(Outcome(tuned, None, decision="full: why"), answers(7), ())
    splits = SimpleNamespace(train=range(50))
    inputs = SimpleNamespace(photos_split=SimpleNamespace(splits=splits))
    context = SimpleNamespace(world=ProcessGroup(), progress=QUIET)
    found = phases_module._refitted(inputs, None, best, SimpleNamespace(photos=range(7), is_far=False), context)
    assert found.outcome.decision == "full: why. 7 photos that chose were not learned from: there was no time left"
    assert begun == ["full"]
    assert FULL.refit().least == LAST_STAGES.refit().least == 1.0
    assert {FULL.refit().folder, LAST_STAGES.refit().folder} <= set(SCRATCH)


def test_a_frozen_model_has_learned_from_all_photos_already(begun):
    frozen = Candidate(Outcome(TrainedModel("frozen", None, None, None), None), answers(7), ())
    context = SimpleNamespace(world=ProcessGroup(), progress=QUIET)
    assert phases_module._refitted(None, None, frozen, None, context) is frozen
    assert begun == []

"""`--time`: whatever is asked for, it ends by itself, with a usable model.

How late it is, is measured where speed is (`bench/limits.py`): here a training without end must come to one.
"""

import pytest

from conftest import draw_folder
from faults.processes import SHORT, Story, mostly_long, record, toy
from regraft.bundle.bundle import load

pytestmark = pytest.mark.slow
NO_TIME_S, LITTLE_S = 1, 12  # less, and more, than is kept back for tracing, saving and judging
CASES = [(mode, limit_s) for limit_s in (NO_TIME_S, LITTLE_S) for mode in ("frozen", "full", "scratch", "auto")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Photos and the command, without a run that nothing disturbs: nothing is compared to one."""
    folder = tmp_path_factory.mktemp("whole")
    photos = draw_folder(folder / "few", ("red", "green", "blue"), 5)
    command = ("train", photos, *toy(folder / "toy", dead=True), *SHORT, "--json")
    return Story(photos, command, folder / "none", folder / "cache", weights="", summary={}, seconds=0.0)


@pytest.mark.parametrize(("mode", "limit_s"), mostly_long(CASES, ("full", NO_TIME_S), ("auto", NO_TIME_S)))
def test_it_ends_by_itself_with_a_model_that_predicts(whole, tmp_path, record_property, mode, limit_s):
    flags = ("--mode", mode, "--epochs", 100_000, "--time", f"{limit_s}s")
    flags += ("--weights", "random") if mode == "scratch" else ()
    ended = whole.start(tmp_path / "run", *flags).wait()
    assert ended.code == 0, ended.stderr
    photo = next(whole.photos.rglob("*.jpg"))
    assert load(tmp_path / "run").predict(photo).label in ("red", "green", "blue")
    assert not (tmp_path / "run" / "checkpoints").exists()
    record(record_property, f"time-{mode}-{limit_s}", limit_s=limit_s)


def test_what_does_not_fit_is_cut_in_the_middle_of_an_epoch(whole, tmp_path):
    ended = whole.start(tmp_path / "run", "--epochs", 100_000, "--time", "1s").wait()
    assert "plan: 1 of 100000 epochs" in ended.stderr
    assert "stopped (time) in epoch 1" in ended.stderr

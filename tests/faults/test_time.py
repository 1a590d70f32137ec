"""`--time`: whatever is asked for, a usable model is there in time."""

import pytest

from faults.processes import record, story
from regraft.bundle.bundle import load

pytestmark = pytest.mark.slow
LATE_S = 10.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return story(tmp_path_factory.mktemp("whole"), dead=True)


@pytest.mark.parametrize("mode", ["frozen", "full", "scratch", "auto"])
@pytest.mark.parametrize("seconds", [1, 12])
def test_it_ends_in_time_with_a_model_that_predicts(whole, tmp_path, record_property, mode, seconds):
    flags = ("--mode", mode, "--epochs", 100_000, "--time", f"{seconds}s")
    flags += ("--weights", "random") if mode == "scratch" else ()
    ended = whole.start(tmp_path / "run", *flags).wait()
    assert ended.code == 0, ended.stderr
    assert ended.seconds < seconds + LATE_S
    photo = next(whole.photos.rglob("*.jpg"))
    assert load(tmp_path / "run").predict(photo).label in ("red", "green", "blue")
    assert not (tmp_path / "run" / "checkpoints").exists()
    record(record_property, f"time-{mode}-{seconds}", limit_s=seconds, seconds=ended.seconds)


def test_what_does_not_fit_is_cut_in_the_middle_of_an_epoch(whole, tmp_path):
    ended = whole.start(tmp_path / "run", "--epochs", 100_000, "--time", "1s").wait()
    assert "plan: 1 of 100000 epochs" in ended.stderr
    assert "stopped (time) in epoch 1" in ended.stderr

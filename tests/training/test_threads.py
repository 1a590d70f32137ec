"""torch computes with fewer threads where other programs take cores, if that is quicker; a user's choice stays."""

from collections import namedtuple

import pytest
import torch

from regraft.core.progress import QUIET, Progress
from regraft.training import threads
from regraft.training.distributed import ProcessGroup
from regraft.training.threads import cores_taken, quickest, threads_beside_others

Times = namedtuple("Times", "user nice system idle")


@pytest.fixture
def two_cores(monkeypatch):
    """A machine of two cores whose user has set nothing; fewer threads are quicker."""
    for name in threads.CHOSEN_BY_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "num_cores", lambda: 2)
    monkeypatch.setattr(threads, "PERIOD_S", 0.0)
    monkeypatch.setattr(threads, "cores_taken", lambda: 1.0)
    monkeypatch.setattr(threads, "seconds_of_convolutions", float)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_they_follow_what_other_programs_take(two_cores, monkeypatch, capsys):
    with threads_beside_others(ProcessGroup(), Progress()) as choose:
        assert torch.get_num_threads() == 2
        choose()
        assert torch.get_num_threads() == 1
        choose()
        monkeypatch.setattr(threads, "cores_taken", lambda: 0.2)
        choose()
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(threads, "cores_taken", lambda: 1.6)
        choose()
    assert torch.get_num_threads() == 2
    assert capsys.readouterr().err.splitlines() == [
        "threads: 1 of 2; other programs take 1.0 cores",
        "threads: 2 of 2; other programs take 0.2 cores",
        "threads: 1 of 2; other programs take 1.6 cores",
    ]


def test_between_looks_nothing_changes(two_cores, monkeypatch):
    monkeypatch.setattr(threads, "PERIOD_S", 1e9)
    with threads_beside_others(ProcessGroup(), QUIET) as choose:
        choose()
        monkeypatch.setattr(threads, "cores_taken", lambda: 0.0)
        choose()
        assert torch.get_num_threads() == 1


def test_after_an_error_they_are_what_they_were(two_cores):
    def fail(choose):
        choose()
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), threads_beside_others(ProcessGroup(), QUIET) as choose:
        fail(choose)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("case", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "set_num_threads", "several", "gpu"])
def test_what_is_chosen_stays(two_cores, monkeypatch, case):
    world = {"several": ProcessGroup(0, 2), "gpu": ProcessGroup(0, 1, "cuda:0")}.get(case, ProcessGroup())
    if case.endswith("_NUM_THREADS"):
        monkeypatch.setenv(case, "2")
    if case == "set_num_threads":
        monkeypatch.setattr(threads, "num_cores", lambda: 4)
        monkeypatch.setattr(threads, "own_cores", lambda: [0, 1, 2, 3])
    with threads_beside_others(world, QUIET) as choose:
        choose()
        assert torch.get_num_threads() == 2


def test_in_a_container_there_are_no_more_than_its_quota(two_cores, monkeypatch):
    monkeypatch.setattr(threads, "num_cores", lambda: 1)
    monkeypatch.setattr(threads, "own_cores", lambda: [0, 1])
    monkeypatch.setattr(threads, "cores_taken", lambda: 0.0)
    with threads_beside_others(ProcessGroup(), QUIET) as choose:
        choose()
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("taken", "number"), [(0.0, 8), (0.4, 8), (1.2, 7), (3.0, 5), (8.0, 1), (11.0, 1)])
def test_as_many_as_cores_are_free(taken, number):
    assert quickest(8, taken, float) == number


def test_all_where_fewer_are_slower():
    assert quickest(8, 3.0, lambda number: -number) == 8


def test_programs_that_are_nice_and_cores_of_others_do_not_count(monkeypatch):
    looks = iter([[Times(5, 5, 5, 5)] * 3, [Times(6, 90, 5.5, 5), Times(90, 5, 90, 5), Times(5, 5, 5, 90)]])
    monkeypatch.setattr(threads.psutil, "cpu_times", lambda percpu: next(looks))
    monkeypatch.setattr(threads, "own_cores", lambda: [0, 2, 7])
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(threads.time, "perf_counter", iter([10.0, 12.0]).__next__)
    monkeypatch.setattr(threads.time, "process_time", iter([1.0, 1.5]).__next__)
    assert cores_taken() == pytest.approx((1 + 0.5 - 0.5) / 2)

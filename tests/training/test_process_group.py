"""Processes of torchrun that do not come together say so in one line."""

import pytest
from torch import distributed

from regraft.core.errors import TrainError
from regraft.training.distributed import process_group


@pytest.fixture
def second_of_two(monkeypatch):
    """`second_of_two(error)`: the environment of a process that meets an error while it looks for the other."""

    def meet(error):
        def fails(*_, **__):
            raise error

        monkeypatch.setattr(distributed, "init_process_group", fails)

    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    return meet


@pytest.mark.parametrize("error", [distributed.DistNetworkError("timed out"), RuntimeError("gloo connectFullMesh")])
def test_where_the_others_have_gone_before_they_are_found_that_is_said(second_of_two, error):
    second_of_two(error)
    with pytest.raises(TrainError, match=r"did not come together: another has ended.*MASTER_PORT"), process_group():
        pass


def test_other_errors_are_told_as_they_are(second_of_two):
    second_of_two(RuntimeError("no such backend"))
    with pytest.raises(RuntimeError, match="no such backend"), process_group():
        pass

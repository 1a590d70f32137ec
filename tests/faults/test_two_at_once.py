"""Two trainings into one folder: the second is refused, and says who has it. (Row F5.)"""

import socket

import pytest

from faults.processes import Trip, record, shared_story

pytestmark = pytest.mark.slow


def test_the_second_is_refused_and_the_first_is_not_disturbed(tmp_path, tmp_path_factory, record_property):
    whole = shared_story(tmp_path_factory.getbasetemp())
    first = whole.start(tmp_path / "run", trips=(Trip("regraft.training.loop.gradients", 2, pause=60.0),))
    first.wait_for("recipe:")
    for flags in ((), ("--restart",), ("--force",), ("--mode", "frozen")):
        second = whole.start(tmp_path / "run", *flags).wait()
        assert second.code == 1
        assert f"in use by process {first.pid} on {socket.gethostname()}" in second.stderr.splitlines()[-1]
    first.resume()
    whole.check(tmp_path / "run", first.wait())
    record(record_property, "F5", trials=4, refused=4)

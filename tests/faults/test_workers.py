"""However many processes change photos, before a stop and after it, the model is the same. (Row R6.)"""

import itertools
import signal

import pytest

from faults.processes import IS_LONG, Trip, record, shared_story

pytestmark = pytest.mark.slow
STOPPED = (Trip("regraft.training.loop.gradients", 5, signal.SIGTERM),)  # in the midst of the second epoch of five
CHANGES = [(1, 2), (4, 0)]  # each number before and after a stop


def test_a_run_goes_on_with_another_number_of_workers_to_the_same_model(tmp_path, tmp_path_factory, record_property):
    whole = shared_story(tmp_path_factory.getbasetemp())
    changes = list(itertools.permutations((0, 1, 2, 4), 2)) if IS_LONG else CHANGES
    for before, after in changes:
        out = tmp_path / f"run-{before}-{after}"
        stopped = whole.start(out, "--workers", before, trips=STOPPED).wait()
        assert stopped.code == 143, stopped.stderr
        again = whole.start(out, "--workers", after).wait()
        assert "continued: epoch 2, step 3" in again.stderr
        for ended, wanted in ((stopped, before), (again, after)):
            assert wanted == 0 or f"workers: {wanted} of {wanted} wanted" in ended.stderr
        whole.check(out, again)
    record(record_property, "R6", trials=len(changes), identical=len(changes))

"""A sitting that is killed at any moment: every answer that it had confirmed is there."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from heaps import hash_of

from regraft.labelling.journal import Journal
from regraft.labelling.labels import Labels

NUM_KILLS = 50 if int(os.environ.get("REGRAFT_TRIALS", "20")) > 20 else 5
pytestmark = [pytest.mark.slow] if NUM_KILLS > 5 else []  # the long form is one of `make torture`
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from heaps import NAMES, clouds, sitting
from regraft.labelling.cards import Annotation
x, y = clouds(600)
with sitting(Path(sys.argv[1]), x) as one:
    print("begins", flush=True)
    for number in range(10**9):
        photo = number * 7 % 600
        label = NAMES[(y[photo] + number // 600) % 3]
        one.answer([Annotation(photo, label)], person="me")
        print(photo, label, flush=True)
"""


@pytest.mark.parametrize("kill", range(NUM_KILLS))
def test_every_confirmed_answer_is_there_after_a_kill(kill, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "begins\n"
        time.sleep(random.Random(kill).uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        confirmed = [line.split() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    labels = Labels()
    with Journal(tmp_path / "journal.jsonl") as journal:
        for entry in journal.entries:
            labels.apply(entry)
        said = [one for entry in journal.entries for one in entry.get("answers", ())]
    assert len(confirmed) <= len(said) <= len(confirmed) + 1  # one may be in flight
    for (photo, label), one in zip(confirmed, said, strict=False):
        assert (one["sha256"], one["label"]) == (hash_of(int(photo)), label)
    in_flight = {one["sha256"] for one in said[len(confirmed) :]}
    for photo, label in dict(confirmed).items():
        if hash_of(int(photo)) not in in_flight:
            assert labels.classes[labels[hash_of(int(photo))].label] == label

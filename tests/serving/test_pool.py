"""Workers: each photo is answered or given up in time, a worker that dies, stops or lies is replaced, none is left."""

import asyncio
import io
import json
import os
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.test_promises import blends
from data.test_decode import png
from faults.processes import IS_LONG
from regraft.bundle.bundle import load
from regraft.core.errors import BundleError, ServeError
from regraft.serving import pool as module
from regraft.serving import process
from regraft.serving.limits import Limits
from regraft.serving.messages import Garbled, WorkItem, decode_message, encode
from regraft.serving.model import SealedModel
from regraft.serving.pool import GAVE_UP, Busy, Pool
from regraft.serving.process import WorkerProcess
from regraft.serving.worker import NO_NUMBER, TOO_LARGE, guarded_answer, warm_up
from regraft.serving.worker import answer as answer_of
from serving.odd_worker import GOOD

pytestmark = pytest.mark.processes

LIMITS = Limits(workers=1)
HASTY = Limits(workers=1, photo_s=0.5, request_s=20.0)
TESTS = str(Path(__file__).parents[1])
ODD = f"import sys; sys.path[:] = [{TESTS!r}, *sys.argv[2:]]; from serving.odd_worker import main; main()"


@dataclass
class NoModel:
    """For workers that need none. sha256: how they begin."""

    sha256: str = "well"
    folder: Path = Path("/nowhere")
    load_options: tuple = ()
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True


def children() -> set[int]:
    """Process numbers of workers of ours."""
    threads = Path("/proc/self/task").glob("*/children")
    own = {int(pid) for one in threads for pid in one.read_text().split()}
    return {pid for pid in own if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()}


@contextmanager
def started(model, limits=LIMITS):
    before = children()
    pool = Pool(model, limits)
    try:
        yield pool
    finally:
        pool.close()
    assert children() <= before


@pytest.fixture
def odd(monkeypatch):
    """Workers that do as a photo tells them."""
    monkeypatch.setattr(process, "PROGRAM", ODD)


@pytest.fixture
def pool(odd):
    with started(NoModel()) as opened:
        yield opened


@pytest.fixture
def hasty(odd):
    """A photo may take half a second."""
    with started(NoModel(), HASTY) as opened:
        yield opened


def pids(pool) -> list[int]:
    return [worker.pid for worker in pool._workers if worker is not None and worker.is_ready]


def until(condition, timeout=60.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(pool, *data, heat=False):
    return asyncio.run(pool.answers(list(data), heat))


def label(pool, data=b"red") -> str:
    (answer,) = ask(pool, data)
    return answer.get("label", answer)


@contextmanager
def stopped_worker(pool):
    """The only worker does not run."""
    until(lambda: is_idle(pool))
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGSTOP)
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def under_way(pool) -> bool:
    """Whether a photo has been handed out and none waits."""
    return bool(pool._busy) and pool.num_waiting == 0


def is_idle(pool) -> bool:
    return pool.is_healthy and not pool._busy and pool.num_waiting == 0


def png_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


LIES = {
    "nothing": b"",
    "no JSON": b"Traceback (most recent call last)",
    "bytes": bytes(range(256)),
    "another kind": encode(WorkItem(with_heat=True, is_alone=True)),
    "an unknown kind": b'["Quit", {}]',
    "a message of another form": b'{"label": "red"}',
    "too many fields": b'["Answered", {"answer": {}, "more": 1}]',
    "too few fields": b'["Answered", {}]',
    "a deep one": b"[" * 100_000,
    "an answer that is a list": b'["Answered", {"answer": []}]',
    "an answer without probabilities": json.dumps(["Answered", {"answer": {"label": "red"}}]).encode(),
    "no numbers": json.dumps(["Answered", {"answer": {**GOOD, "probability": float("nan")}}]).encode(),
    "a probability above one": json.dumps(["Answered", {"answer": {**GOOD, "probability": 1.5}}]).encode(),
    "a text for a number": json.dumps(["Answered", {"answer": {**GOOD, "probabilities": {"red": "0.7"}}}]).encode(),
    "a label of no class": json.dumps(["Answered", {"answer": {**GOOD, "label": "x"}}]).encode(),
    "more than is told": json.dumps(["Answered", {"answer": {**GOOD, "path": "/etc"}}]).encode(),
    "an error that is none": b'["Answered", {"answer": {"error": 3}}]',
    "an error and more": b'["Answered", {"answer": {"error": "x", "label": "y"}}]',
}


@pytest.mark.parametrize("name", LIES)
def test_what_is_no_message_is_known_as_such(name):
    try:
        message = decode_message(LIES[name])
    except Garbled:
        return
    assert name == "another kind"
    assert message == WorkItem(with_heat=True, is_alone=True)


def test_nothing_that_a_worker_says_ends_the_pool(pool):
    """One after the other, each to both workers that are tried."""
    for name, lie in list(LIES.items())[:: 1 if IS_LONG else 4]:
        assert ask(pool, b"say " + lie) == [{"error": GAVE_UP}], name
    assert label(pool) == "red"
    assert all(thread.is_alive() for thread in pool._threads)


@pytest.mark.parametrize("deed", ["die", "stop", "announce much", "send half", "sleep"])
def test_nothing_that_a_worker_does_ends_the_pool(hasty, deed):
    assert ask(hasty, deed.encode()) == [{"error": GAVE_UP}]
    assert label(hasty) == "red"
    until(lambda: hasty.is_healthy)


def test_an_error_of_ours_does_not_end_the_pool_either(pool, monkeypatch, caplog):
    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(WorkerProcess, "ask", fails)
    assert ask(pool, b"red") == [{"error": GAVE_UP}]
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(process, "PROGRAM", ODD)
    assert label(pool) == "red"


def test_an_idle_worker_that_is_stopped_is_missed_and_replaced(hasty, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.1)
    (before,) = pids(hasty)
    os.kill(before, signal.SIGSTOP)
    until(lambda: pids(hasty) != [before])
    until(lambda: hasty.is_healthy)
    assert label(hasty) == "red"


def test_an_idle_worker_that_runs_is_left_alone(hasty, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.0)
    before, asked = pids(hasty), []
    pinged = WorkerProcess.answers_ping
    monkeypatch.setattr(WorkerProcess, "answers_ping", lambda worker: asked.append(pinged(worker)) or asked[-1])
    until(lambda: len(asked) >= 3)
    assert all(asked)
    assert pids(hasty) == before


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("refuses", "The model is none"),
        ("dies", "with code 3"),
        ("talks nonsense", "no message"),
        ("answers unasked", "nonsense"),
        ("sleeps", "did not start within"),
    ],
)
def test_a_worker_that_does_not_begin_is_an_error_at_the_start(odd, monkeypatch, how, why):
    monkeypatch.setattr(process, "START_S", 1.0 if how == "sleeps" else 60.0)
    before, model = children(), NoModel(how)
    with pytest.raises(ServeError, match=why) as error:
        Pool(model, replace(LIMITS, workers=2))
    assert "\n" not in str(error.value)
    assert children() <= before
    assert model.is_closed


def test_an_idle_worker_that_is_killed_is_replaced(pool):
    (before,) = pids(pool)
    os.kill(before, signal.SIGKILL)
    until(lambda: pids(pool) not in ([], [before]))
    assert label(pool) == "red"


def test_a_photo_whose_worker_is_killed_is_answered_by_the_next(pool):
    async def killed():
        with stopped_worker(pool) as pid:
            answer = asyncio.create_task(pool.answers([b"red"], False))
            await asyncio.to_thread(until, lambda: under_way(pool))
            os.kill(pid, signal.SIGKILL)
            return pid, (await answer)[0]["label"]

    pid, said = asyncio.run(killed())
    assert said == "red"
    assert pid not in pids(pool)


def test_a_photo_larger_than_a_socket_holds_cannot_stop_the_pool(hasty):
    with stopped_worker(hasty) as pid:
        assert ask(hasty, bytes(2**24)) == [{"error": GAVE_UP}]
    assert pid not in pids(hasty)


def test_more_than_may_wait_is_refused_before_any_is_taken(pool):
    pool.limits, pool._pace_s = replace(LIMITS, waiting=3), 7.0

    async def crowded():
        with stopped_worker(pool):
            first = asyncio.create_task(pool.answers([b"red"], False))
            await asyncio.to_thread(until, lambda: under_way(pool))
            second = asyncio.create_task(pool.answers([b"red"] * 2, False))
            await asyncio.sleep(0)
            assert pool.num_waiting == 2
            with pytest.raises(Busy) as busy:
                await pool.answers([b"red"] * 2, False)
            assert busy.value.retry_s == 1 + round(2 * 7.0 / len(pids(pool)))
            assert pool.num_waiting == 2
            third = asyncio.create_task(pool.answers([b"red"], False))
            await asyncio.sleep(0)
            assert pool.num_waiting == 3
        return [await task for task in (first, second, third)]

    assert [len(answers) for answers in asyncio.run(crowded())] == [1, 2, 1]
    with pytest.raises(Busy):
        ask(pool, *[b"red"] * 4)


def test_who_waits_too_long_is_told_so_and_the_work_is_dropped(pool, monkeypatch):
    pool.limits, handed_out, asked = replace(LIMITS, request_s=0.1), [], WorkerProcess.ask
    monkeypatch.setattr(WorkerProcess, "ask", lambda *order: handed_out.append(order) or asked(*order))
    with stopped_worker(pool):
        with pytest.raises(TimeoutError):
            ask(pool, *[b"red"] * 5)
        until(lambda: handed_out)
    pool.limits = LIMITS
    assert label(pool, b"blue") == "blue"
    assert len(handed_out) == 2


def test_answers_for_someone_who_has_left_do_no_harm(pool):
    async def leaves():
        with stopped_worker(pool):
            task = asyncio.create_task(pool.answers([b"red"] * 3, False))
            await asyncio.to_thread(until, lambda: bool(pool._busy))
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(leaves())
    assert label(pool, b"blue") == "blue"


def test_several_workers_share_the_work_and_all_are_ended(odd):
    with started(NoModel(), Limits(workers=3)) as pool:
        assert len(pids(pool)) == 3
        assert [answer["label"] for answer in ask(pool, *[b"red", b"blue"] * 20)] == ["red", "blue"] * 20
        assert pool.is_healthy
        assert pool.num_waiting == 0


def test_a_pool_that_is_closed_finishes_what_waits(odd):
    async def closed(pool):
        task = asyncio.create_task(pool.answers([b"red"] * 50, False))
        await asyncio.sleep(0)
        await asyncio.to_thread(pool.close)
        return await task

    with started(NoModel()) as pool:
        assert len(asyncio.run(closed(pool))) == 50


def test_a_pool_that_is_closed_ends_workers_that_are_being_started(odd):
    model = NoModel()
    with started(model) as pool:
        model.sha256 = "sleeps"
        os.kill(*pids(pool), signal.SIGKILL)
        until(lambda: pool._workers[0] is not None and not pool._workers[0].is_ready)
    assert model.is_closed


def test_a_system_that_has_no_process_left_to_give_is_asked_again(pool, monkeypatch):
    refused, begin = [], WorkerProcess.__init__
    monkeypatch.setattr(module, "PAUSE_S", 0.01)

    def refuses(worker, *start):
        if len(refused) < 2:
            refused.append(start)
            raise BlockingIOError("no more processes")
        begin(worker, *start)

    monkeypatch.setattr(WorkerProcess, "__init__", refuses)
    os.kill(*pids(pool), signal.SIGKILL)
    until(lambda: len(refused) == 2)
    assert label(pool) == "red"


def test_the_clock_may_jump(pool, monkeypatch):
    """An hour to and fro: nothing that is measured uses the time of day."""
    jumps, real = iter(range(10**9)), time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * (-1) ** next(jumps))
    assert [answer.get("label") for answer in ask(pool, *[b"nap"] * 10)] == ["red"] * 10


@pytest.fixture(scope="module")
def real(bundle):
    """A worker with a model."""
    with started(SealedModel(bundle)) as opened:
        yield opened


@pytest.fixture
def files(photos):
    return {path: path.read_bytes() for path in sorted(photos.rglob("*.jpg"))}


def test_photos_are_answered_in_order_as_the_model_answers(real, bundle, files):
    answers = ask(real, *files.values())
    for (path, data), answer in zip(files.items(), answers, strict=True):
        expected = bundle.predict(data)
        assert answer["label"] == expected.label == path.parent.name
        assert answer["probability"] == max(answer["probabilities"].values())
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
        assert answer["novelty"] == pytest.approx(expected.novelty, rel=1e-2)
        assert (answer["unsure"], answer["labels"], answer["looks_new"]) == (False, None, expected.looks_new)


def test_what_is_promised_is_kept_by_the_server_too(bundle, files):
    careful, alone = load(bundle.folder, max_error=0.2, coverage=0.8), WorkItem(with_heat=False, is_alone=True)
    photos = [*(png_of(Image.fromarray(pixels)) for pixels in blends()), *files.values()]
    answers, said = [answer_of(careful, one, alone, 10**6) for one in photos], [careful.predict(one) for one in photos]
    assert {one["unsure"] for one in answers} == {True, False}
    assert [one["unsure"] for one in answers] == [one["probability"] < careful.least_sure for one in answers]
    assert [one["labels"] for one in answers] == [one.labels for one in said]


def test_a_heat_map_is_a_picture(real, files):
    (answer,) = ask(real, next(iter(files.values())), heat=True)
    assert answer["heatmap"].startswith("data:image/jpeg;base64,")


def test_a_photo_that_cannot_be_read_says_why_and_the_worker_goes_on(real, files):
    before = pids(real)
    good = next(iter(files.values()))
    answers = ask(real, b"", b"<html>", good[:300], good, png(12_000, 12_000, 1, 0, b""))
    assert answers[3]["label"] == "blue"
    reasons = [answer.get("error", "") for answer in answers]
    assert "not an image" in reasons[1]
    assert reasons[2].startswith("damaged: ")
    assert reasons[4] == "12000 x 12000 pixels; at most 134 megapixels are read"
    assert [bool(reason) for reason in reasons] == [True, True, True, False, True]
    assert pids(real) == before


@pytest.mark.slow
def test_a_photo_that_takes_too_much_memory_is_refused_and_the_worker_goes_on(bundle, files):
    with started(SealedModel(bundle), replace(LIMITS, worker_bytes=2**26)) as pool:
        before = pids(pool)
        assert ask(pool, png_of(Image.new("RGB", (7000, 7000), "red"))) == [{"error": TOO_LARGE}]
        assert label(pool, next(iter(files.values()))) == "blue"
        assert pids(pool) == before


class Lying:
    """A bundle whose graph answers what a test says."""

    folder = Path("photos/bundle")
    classes = ("a", "b")

    def __init__(self, bundle, logits):
        self.bundle, self.logits, self.preprocessing = bundle, logits, bundle.preprocessing

    def to_input(self, photo):
        return self.bundle.to_input(photo)

    def to_prediction(self, logits, novelty):
        return self.bundle.to_prediction(logits, novelty)

    def engine(self, images):
        return {**self.bundle.engine(images), "logits": self.logits}

    quick_engine = engine


@pytest.mark.parametrize("logits", [[[1.0, 2.0]], [[1.0, 2.0, 3.0, 4.0]], [[1.0, float("nan"), 3.0]]])
def test_a_model_that_does_not_answer_is_found_before_anyone_asks(bundle, logits):
    lying = Lying(bundle, np.array(logits, np.float32))
    with pytest.raises(BundleError, match=r"contradicts itself|no number"):
        warm_up(lying)
    found = guarded_answer(lying, png_of(Image.new("RGB", (9, 9))), WorkItem(False, True), 10**6)
    assert set(found) == {"error"}
    assert (found["error"] == NO_NUMBER) is bool(np.isnan(lying.logits).any())


def test_whatever_goes_wrong_with_a_photo_is_an_error_of_that_photo(bundle, monkeypatch, capsys):
    monkeypatch.setattr("regraft.serving.worker.answer", lambda *_: 1 / 0)
    assert "error" in guarded_answer(bundle, b"", WorkItem(False, True), 10**6)
    assert "ZeroDivisionError" in capsys.readouterr().err

"""Workers: each photo is answered or given up in time, a worker that dies is replaced, none is left behind."""

import asyncio
import io
import os
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import active_children

import pytest
from PIL import Image

from data.test_decode import png
from deliver.test_promises import blends
from regraft.deliver.bundle import load
from regraft.ground.errors import ServeError
from regraft.server.limits import Limits
from regraft.server.pool import GAVE_UP, Busy, Pool, _Worker
from regraft.server.worker import TOO_LARGE, Order
from regraft.server.worker import answer as answer_of

LIMITS = Limits(workers=1)


@contextmanager
def started(folder, limits=LIMITS, **promises):
    before = active_children()
    pool = Pool(folder, promises, limits)
    try:
        yield pool
    finally:
        pool.close()
    assert not any(worker._process.is_alive() for worker in pool._workers)
    assert set(active_children()) <= set(before)


@pytest.fixture(scope="module")
def pool(bundle):
    with started(bundle.folder) as opened:
        yield opened


@pytest.fixture
def files(photos):
    return {path: path.read_bytes() for path in sorted(photos.rglob("*.jpg"))}


def pids(pool) -> list[int]:
    return [worker._process.pid for worker in pool._workers if worker._process.is_alive()]


def until(condition, timeout=60.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(pool, *data, heat=False):
    return asyncio.run(pool.answers(list(data), heat))


def label(pool, data) -> str:
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


def large_png(side: int) -> bytes:
    return png_of(Image.new("RGB", (side, side), "red"))


def test_photos_are_answered_in_order_as_the_model_answers(pool, bundle, files):
    answers = ask(pool, *files.values())
    for (path, data), answer in zip(files.items(), answers, strict=True):
        expected = bundle.predict(data)
        assert answer["label"] == expected.label == path.parent.name
        assert answer["probability"] == max(answer["probabilities"].values())
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
        assert answer["novelty"] == pytest.approx(expected.novelty, rel=1e-2)
        assert (answer["unsure"], answer["labels"], answer["looks_new"]) == (False, None, expected.looks_new)


def test_what_is_promised_is_kept_by_the_server_too(bundle):
    careful, alone = load(bundle.folder, max_error=0.2, coverage=0.8), Order(with_heat=False, is_alone=True)
    photos = [png_of(Image.fromarray(pixels)) for pixels in blends()]
    answers, said = [answer_of(careful, one, alone, 10**6) for one in photos], [careful.predict(one) for one in photos]
    assert {one["unsure"] for one in answers} == {True, False}
    assert [one["unsure"] for one in answers] == [one["probability"] < careful.least_sure for one in answers]
    assert [one["labels"] for one in answers] == [one.labels for one in said]


def test_a_heat_map_is_a_picture(pool, files):
    (answer,) = ask(pool, next(iter(files.values())), heat=True)
    assert answer["heatmap"].startswith("data:image/jpeg;base64,")


def test_a_photo_that_cannot_be_read_says_why_and_the_worker_goes_on(pool, files):
    before = pids(pool)
    good = next(iter(files.values()))
    answers = ask(pool, b"", b"<html>", good[:300], good, png(12_000, 12_000, 1, 0, b""))
    assert answers[3]["label"] == "blue"
    reasons = [answer.get("error", "") for answer in answers]
    assert "not an image" in reasons[1]
    assert reasons[2].startswith("damaged: ")
    assert reasons[4] == "12000 x 12000 pixels; at most 134 megapixels are read"
    assert [bool(reason) for reason in reasons] == [True, True, True, False, True]
    assert pids(pool) == before


@pytest.mark.slow
def test_an_idle_worker_that_is_killed_is_replaced(pool, files):
    (before,) = pids(pool)
    os.kill(before, signal.SIGKILL)
    until(lambda: not pool.is_healthy or pids(pool) != [before])
    until(lambda: pool.is_healthy)
    (after,) = pids(pool)
    assert after != before
    assert label(pool, next(iter(files.values()))) == "blue"


@pytest.mark.slow
def test_a_photo_whose_worker_is_killed_is_answered_by_the_next(pool, files):
    async def killed():
        with stopped_worker(pool) as pid:
            answer = asyncio.create_task(pool.answers([next(iter(files.values()))], False))
            await asyncio.to_thread(until, lambda: under_way(pool))
            os.kill(pid, signal.SIGKILL)
            return pid, (await answer)[0]["label"]

    pid, said = asyncio.run(killed())
    assert said == "blue"
    assert pid not in pids(pool)


@pytest.mark.slow
def test_a_photo_is_answered_though_the_killed_worker_seems_alive(bundle, files, monkeypatch):
    monkeypatch.setattr("regraft.server.pool.IDLE_S", 60.0)
    with started(bundle.folder) as pool:
        worker = pool._workers[0]
        os.kill(worker._process.pid, signal.SIGKILL)
        os.waitpid(worker._process.pid, 0)  # so does another thread that starts a worker, before it says so
        assert worker.is_ready
        assert label(pool, next(iter(files.values()))) == "blue"
        worker._process._popen.returncode = -signal.SIGKILL  # now it has said so


@pytest.mark.slow
def test_a_photo_that_kills_two_workers_is_given_up(pool, files, monkeypatch):
    killed = []

    def fatal(worker, *order):
        killed.append(worker)
        worker._process.kill()
        worker._process.join()
        return answer(worker, *order)

    answer = _Worker.ask
    monkeypatch.setattr(_Worker, "ask", fatal)
    assert ask(pool, next(iter(files.values()))) == [{"error": GAVE_UP}]
    assert len({id(worker) for worker in killed}) == 2
    monkeypatch.undo()
    assert label(pool, next(iter(files.values()))) == "blue"


@pytest.mark.slow
def test_a_photo_that_takes_too_long_ends_its_worker_and_not_the_pool(pool, files, monkeypatch):
    monkeypatch.setattr(pool, "limits", replace(LIMITS, photo_s=0.05))
    with stopped_worker(pool) as pid:
        assert ask(pool, next(iter(files.values()))) == [{"error": GAVE_UP}]
    monkeypatch.undo()
    assert label(pool, next(iter(files.values()))) == "blue"
    assert pid not in pids(pool)


@pytest.mark.slow
def test_a_photo_larger_than_a_pipe_holds_cannot_stop_the_pool_either(bundle):
    with started(bundle.folder, replace(LIMITS, photo_s=1.0)) as pool:
        with stopped_worker(pool) as pid:
            assert ask(pool, bytes(2**24)) == [{"error": GAVE_UP}]
        assert pid not in pids(pool)


@pytest.mark.slow
def test_a_photo_that_takes_too_much_memory_is_refused_and_the_worker_goes_on(bundle, files):
    with started(bundle.folder, replace(LIMITS, worker_bytes=2**26)) as pool:
        before = pids(pool)
        assert ask(pool, large_png(7000)) == [{"error": TOO_LARGE}]
        assert label(pool, next(iter(files.values()))) == "blue"
        assert pids(pool) == before


def test_more_than_may_wait_is_refused_before_any_is_taken(pool, files, monkeypatch):
    data = next(iter(files.values()))
    monkeypatch.setattr(pool, "limits", replace(LIMITS, waiting=3))

    async def crowded():
        with stopped_worker(pool):
            first = asyncio.create_task(pool.answers([data], False))
            await asyncio.to_thread(until, lambda: under_way(pool))
            second = asyncio.create_task(pool.answers([data] * 2, False))
            await asyncio.sleep(0)
            assert pool.num_waiting == 2
            with pytest.raises(Busy) as busy:
                await pool.answers([data] * 2, False)
            assert 1 <= busy.value.retry_s < 60
            assert pool.num_waiting == 2
            third = asyncio.create_task(pool.answers([data], False))
            await asyncio.sleep(0)
            assert pool.num_waiting == 3
        return [await task for task in (first, second, third)]

    assert [len(answers) for answers in asyncio.run(crowded())] == [1, 2, 1]
    with pytest.raises(Busy):
        ask(pool, *[data] * 4)


def test_who_waits_too_long_is_told_so_and_the_work_is_dropped(pool, files, monkeypatch):
    data = next(iter(files.values()))
    monkeypatch.setattr(pool, "limits", replace(LIMITS, request_s=0.1))
    handed_out = []
    answer = _Worker.ask
    monkeypatch.setattr(_Worker, "ask", lambda *order: handed_out.append(order) or answer(*order))
    with stopped_worker(pool):
        with pytest.raises(TimeoutError):
            ask(pool, *[data] * 5)
        until(lambda: handed_out)
    monkeypatch.setattr(pool, "limits", LIMITS)
    assert label(pool, data) == "blue"
    assert len(handed_out) == 2


def test_answers_for_someone_who_has_left_do_no_harm(pool, files):
    data = next(iter(files.values()))

    async def leaves():
        with stopped_worker(pool):
            task = asyncio.create_task(pool.answers([data] * 3, False))
            await asyncio.to_thread(until, lambda: bool(pool._busy))
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(leaves())
    assert label(pool, data) == "blue"


@pytest.mark.slow
def test_several_workers_share_the_work_and_all_are_ended(bundle, files):
    with started(bundle.folder, Limits(workers=3)) as pool:
        assert len(pids(pool)) == 3
        answers = ask(pool, *list(files.values()) * 3)
        assert [answer["label"] for answer in answers] == [path.parent.name for path in files] * 3
        assert pool.is_healthy
        assert pool.num_waiting == 0


@pytest.mark.slow
def test_a_pool_that_is_closed_ends_workers_that_are_being_started(bundle):
    with started(bundle.folder) as pool:
        os.kill(*pids(pool), signal.SIGKILL)
        until(lambda: not pool.is_healthy and pids(pool))


@pytest.mark.slow
def test_a_pool_whose_model_has_gone_can_be_closed(bundle, tmp_path, files):
    folder = shutil.copytree(bundle.folder, tmp_path / "copy")
    with started(folder) as pool:
        assert label(pool, next(iter(files.values()))) == "blue"
        (folder / "model.onnx").unlink()
        os.kill(*pids(pool), signal.SIGKILL)
        until(lambda: not pool.is_healthy)
        began = time.monotonic()
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_system_that_has_no_process_left_to_give_is_asked_again(pool, files, monkeypatch):
    refused = []

    def refuses(worker, *start):
        if len(refused) < 2:
            refused.append(start)
            raise BlockingIOError("no more processes")
        begin(worker, *start)

    begin = _Worker.__init__
    monkeypatch.setattr(_Worker, "__init__", refuses)
    os.kill(*pids(pool), signal.SIGKILL)
    until(lambda: len(refused) == 2)
    assert label(pool, next(iter(files.values()))) == "blue"


@pytest.mark.slow
@pytest.mark.parametrize("change", ["a file is missing", "a file is damaged", "what is promised cannot be kept"])
def test_a_model_that_does_not_load_is_an_error_and_leaves_no_process(bundle, tmp_path, change):
    before = active_children()
    folder = shutil.copytree(bundle.folder, tmp_path / "copy")
    promises = {}
    if change == "a file is missing":
        (folder / "model.onnx").unlink()
    elif change == "a file is damaged":
        (folder / "model.onnx").write_bytes(b"nonsense")
    else:
        promises = {"max_error": 1e-9}
    with pytest.raises(ServeError, match=r"model\.onnx is|cannot promise"):
        Pool(folder, promises, Limits(workers=2))
    assert set(active_children()) <= set(before)

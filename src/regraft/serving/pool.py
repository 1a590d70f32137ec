"""Worker processes behind one queue: bounded, each photo within its time, a worker that dies replaced."""

import asyncio
import json
import os
import queue
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from regraft.core.errors import ServeError
from regraft.core.runtime import num_cores
from regraft.serving.limits import Limits
from regraft.serving.worker import READY, WorkerAnswer, WorkItem, work

START_S = 60.0  # for a worker to load its model
IDLE_S = 0.25  # between looks at whether an idle worker is alive
GAVE_UP = "it takes too long to read, or more memory than is allowed"


class Busy(Exception):
    """As many photos are waiting as may. retry_s: seconds after which there may be room."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(retry_s)
        self.retry_s = retry_s


@dataclass(frozen=True)
class PendingRequest:
    """A photo's bytes, and where its answer is waited for."""

    data: bytes
    with_heat: bool
    answer: asyncio.Future[WorkerAnswer]
    loop: asyncio.AbstractEventLoop

    def done(self, answer: WorkerAnswer) -> None:
        """Hand the answer to whoever waits, if anyone still does."""
        try:
            self.loop.call_soon_threadsafe(self._set, answer)
        except RuntimeError:  # the loop has ended
            return

    def _set(self, answer: WorkerAnswer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class Pool:
    """Workers, each with a thread that feeds it.

    Raises what a worker says in place of READY: ServeError with its sentence.
    """

    def __init__(self, folder: Path, promises: dict[str, Any], limits: Limits) -> None:
        self.limits = limits
        num_workers = num_cores() + 1 if limits.workers < 1 else limits.workers  # one fills the gaps
        self._start = (folder, promises, limits)
        self._jobs: queue.Queue[PendingRequest | None] = queue.Queue()
        self._busy: set[int] = set()  # workers that have a photo
        self._pace_s = 0.02  # of late, for one photo
        self._closing = threading.Event()
        self._workers = [_Worker(*self._start) for _ in range(num_workers)]
        self._threads = [threading.Thread(target=self._feed, args=(i,), daemon=True) for i in range(num_workers)]
        try:
            for worker in self._workers:
                worker.wait_ready()
        except ServeError:
            self._end_workers()
            raise
        for thread in self._threads:
            thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether every worker is there and ready."""
        return all(worker.is_ready for worker in self._workers)

    @property
    def num_waiting(self) -> int:
        """Photos that wait for a worker."""
        return self._jobs.qsize()

    async def answers(self, photos: list[bytes], with_heat: bool) -> list[WorkerAnswer]:
        """What the model says of each photo. Raises Busy, before any is taken; TimeoutError."""
        if self.num_waiting + len(photos) > self.limits.waiting:
            raise Busy(1 + round(self.num_waiting * self._pace_s / len(self._threads)))
        loop = asyncio.get_running_loop()
        jobs = [PendingRequest(data, with_heat, loop.create_future(), loop) for data in photos]
        for job in jobs:
            self._jobs.put(job)
        async with asyncio.timeout(self.limits.request_s):
            return list(await asyncio.gather(*(job.answer for job in jobs)))

    def close(self) -> None:
        """End all workers, also those that are being started."""
        self._closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(self.limits.photo_s)
        self._end_workers()

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.end()

    def _feed(self, number: int) -> None:
        """One thread: takes a job, has its worker do it; a worker that is gone is replaced."""
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with suppress(ServeError):
                    self._ready(number)
                continue
            if job is None:
                return
            if not job.answer.cancelled():
                began = time.monotonic()
                self._busy.add(number)
                job.done(self._do(number, job))
                self._busy.discard(number)
                self._pace_s += 0.1 * (time.monotonic() - began - self._pace_s)

    def _do(self, number: int, job: PendingRequest) -> WorkerAnswer:
        """The answer of a worker; of a second one where the first was ended from outside."""
        for _ in range(2):
            try:
                worker = self._ready(number)
            except ServeError:
                break
            order = WorkItem(job.with_heat, is_alone=self._busy == {number} and self.num_waiting == 0)
            try:
                answer = worker.ask(job.data, order, self.limits.photo_s)
            except (EOFError, OSError):  # it died: of this photo, or of something else
                worker.end()
                continue
            if answer is not None:
                return answer
            worker.end()
            break
        return {"error": GAVE_UP}

    def _ready(self, number: int) -> "_Worker":
        """The worker of a thread, a new one where it is dead. Raises ServeError once the pool is being closed."""
        while not self._workers[number].is_ready:
            self._workers[number].end()
            if self._closing.is_set():
                raise ServeError("the server is being stopped")
            try:
                self._workers[number] = _Worker(*self._start)
                self._workers[number].wait_ready()
            except (ServeError, OSError):  # also where the system has no more processes or files to give
                self._closing.wait(1.0)
        return self._workers[number]


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, folder: Path, promises: dict[str, Any], limits: Limits) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        _bound_sending(self._pipe, limits.photo_s)
        self._process: SpawnProcess = context.Process(
            target=work, args=(other, folder, promises, limits), daemon=True, name="regraft worker"
        )
        self._process.start()
        other.close()
        self._has_begun = False

    @property
    def is_ready(self) -> bool:
        return self._has_begun and self._process.is_alive()

    def wait_ready(self) -> None:
        """Raises ServeError where there is no model to be had."""
        message = _received(self._pipe, START_S) or b"the worker did not start within a minute"
        if message != READY:
            self.end()
            raise ServeError(message.decode())
        self._has_begun = True

    def ask(self, data: bytes, order: WorkItem, limit_s: float) -> WorkerAnswer | None:
        """The answer to a photo; None where it took too long. Raises EOFError or OSError where the process dies."""
        try:
            self._pipe.send_bytes(json.dumps(vars(order)).encode())
            self._pipe.send_bytes(data)
        except BlockingIOError:  # it does not read
            return None
        if not self._pipe.poll(limit_s):
            return None
        answer: WorkerAnswer = json.loads(self._pipe.recv_bytes())
        return answer

    def end(self) -> None:
        self._has_begun = False  # is_alive errs while another thread, starting a worker, collects the ended ones
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _bound_sending(pipe: Connection, limit_s: float) -> None:
    """Nothing that is sent waits longer for room: BlockingIOError then."""
    seconds, rest = divmod(limit_s, 1)
    with socket.socket(fileno=os.dup(pipe.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(1e6 * rest)))


def _received(pipe: Connection, limit_s: float) -> bytes | None:
    """A message; None where none comes in time or the other end is closed."""
    try:
        return pipe.recv_bytes() if pipe.poll(limit_s) else None
    except (EOFError, OSError):
        return None

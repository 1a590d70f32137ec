"""Worker processes behind one queue: bounded, each photo within its time, a worker that dies or stops replaced."""

import asyncio
import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

from regraft.core.errors import RegraftError, ServeError
from regraft.core.runtime import num_cores
from regraft.serving.limits import Limits
from regraft.serving.messages import WorkerAnswer, WorkItem
from regraft.serving.model import SealedModel
from regraft.serving.process import WorkerGone, WorkerProcess

IDLE_S = 0.25  # between looks at whether an idle worker is alive
HEARTBEAT_S = 1.0  # of silence, after which it is asked
PAUSE_S = 1.0  # before another worker is tried
GAVE_UP = "it takes too long to read, or more memory than is allowed"
log = logging.getLogger(__name__)


class Busy(Exception):
    """As many photos are waiting as may.

    Attributes:
        retry_s: Seconds after which there may be room.
    """

    def __init__(self, retry_s: int) -> None:
        super().__init__(retry_s)
        self.retry_s = retry_s


@dataclass(frozen=True)
class PendingRequest:
    """A photo's bytes, and where its answer is waited for.

    Attributes:
        data: Of the photo's file.
        with_heat: Whether a heat map is wanted.
        answer: Is given the answer.
        loop: In which the answer is waited for.
    """

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
    """Workers, each with a thread that starts it, feeds it and replaces it.

    Args:
        model: What they answer with; closed with the pool.
        limits: Of the server.

    Raises:
        ServeError: What a worker says in place of being ready.
    """

    def __init__(self, model: SealedModel, limits: Limits) -> None:
        self.limits = limits
        self._model = model
        num_workers = num_cores() + 1 if limits.workers < 1 else limits.workers  # one fills the gaps
        self._jobs: queue.Queue[PendingRequest | None] = queue.Queue()
        self._busy: set[int] = set()  # workers that have a photo
        self._pace_s = 0.02  # of late, for one photo
        self._closing = threading.Event()
        self._workers: list[WorkerProcess | None] = [None] * num_workers
        started: list[Future[None]] = [Future() for _ in range(num_workers)]
        self._threads = [
            threading.Thread(target=self._live, args=one, daemon=True, name="regraft pool")
            for one in enumerate(started)
        ]
        for thread in self._threads:
            thread.start()
        try:
            for one in started:
                one.result()
        except BaseException:
            self.close()
            raise

    @property
    def is_healthy(self) -> bool:
        """Whether every worker is there and ready."""
        return all(worker is not None and worker.is_ready for worker in self._workers)

    @property
    def num_waiting(self) -> int:
        """Number of photos that wait for a worker."""
        return self._jobs.qsize()

    async def answers(self, photos: list[bytes], with_heat: bool) -> list[WorkerAnswer]:
        """Return what the model says of each photo.

        Args:
            photos: Bytes of the photos' files.
            with_heat: Whether heat maps are wanted.

        Raises:
            Busy: Too many photos are waiting; none of these was taken.
            TimeoutError: It took longer than `request_s`.
        """
        if self.num_waiting + len(photos) > self.limits.waiting:
            raise Busy(1 + round(self.num_waiting * self._pace_s / len(self._threads)))
        loop = asyncio.get_running_loop()
        jobs = [PendingRequest(data, with_heat, loop.create_future(), loop) for data in photos]
        for job in jobs:
            self._jobs.put(job)
        async with asyncio.timeout(self.limits.request_s):
            return list(await asyncio.gather(*(job.answer for job in jobs)))

    def close(self) -> None:
        """Finish what waits, then end all workers, also those that are being started."""
        self._closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        for worker in self._workers:
            if worker is not None and not worker.is_ready:
                worker.kill()
        for thread in self._threads:
            thread.join(self.limits.photo_s)
        for worker in self._workers:
            if worker is not None:
                worker.end()
        self._model.close()

    def _live(self, number: int, started: Future[None]) -> None:
        """Start a worker in this thread, then take jobs and have it do them, until the pool is closed."""
        try:
            self._start(number)
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                self._look_after(number)
                continue
            if job is None:
                break
            self._serve(number, job)
        self._end(number)

    def _serve(self, number: int, job: PendingRequest) -> None:
        """Give the job an answer, whatever happens; then the thread goes on."""
        if job.answer.cancelled():
            return
        began = time.monotonic()
        self._busy.add(number)
        try:
            answer = self._do(number, job)
        except Exception:
            log.exception("a photo could not be handed to a worker")
            self._end(number)
            answer = {"error": GAVE_UP}
        self._busy.discard(number)
        job.done(answer)
        self._pace_s += 0.1 * (time.monotonic() - began - self._pace_s)

    def _do(self, number: int, job: PendingRequest) -> WorkerAnswer:
        """Return the answer of a worker; of a second one where the first was ended from outside."""
        for _ in range(2):
            worker = self._ready(number, job)
            if worker is None:
                break
            item = WorkItem(job.with_heat, is_alone=self._busy == {number} and self.num_waiting == 0)
            try:
                answer = worker.ask(job.data, item)
            except WorkerGone:  # of this photo, or of something else
                self._end(number)
                continue
            if answer is not None:
                return answer
            self._end(number)
            break
        return {"error": GAVE_UP}

    def _look_after(self, number: int) -> None:
        """Replace an idle worker that is gone, or does not answer."""
        worker = self._workers[number]
        if worker is not None and worker.is_ready and time.monotonic() - worker.heard_at > HEARTBEAT_S:
            if worker.answers_ping():
                return
            self._end(number)
        self._try(number)

    def _ready(self, number: int, job: PendingRequest) -> WorkerProcess | None:
        """Return the worker of a thread, a new one where it is dead; None once nobody waits for it."""
        while not self._try(number):
            if self._closing.is_set() or job.answer.cancelled():
                return None
        return self._workers[number]

    def _try(self, number: int) -> bool:
        """Return whether a thread has a worker; start one where it has none."""
        worker = self._workers[number]
        if worker is not None and worker.is_ready:
            return True
        try:
            self._start(number)
            return True
        except (RegraftError, OSError) as error:  # also where the system has no more processes or files to give
            log.error("no worker could be started: %s", error)
            self._closing.wait(PAUSE_S)
            return False

    def _start(self, number: int) -> None:
        """Start a worker; raise ServeError or OSError where that fails, and then there is none."""
        self._end(number)
        if self._closing.is_set():
            raise ServeError("The server is being stopped.")
        worker = self._workers[number] = WorkerProcess(self._model, self.limits)
        worker.wait_ready()

    def _end(self, number: int) -> None:
        worker = self._workers[number]
        self._workers[number] = None
        if worker is not None:
            worker.end()

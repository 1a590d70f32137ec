"""One worker: a process and the socket to it. Whatever it says, or fails to say, comes to an end within bounds."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict

from regraft.core.errors import ServeError
from regraft.serving.limits import Limits
from regraft.serving.messages import (
    Answered,
    Channel,
    Garbled,
    Message,
    NoModel,
    Ping,
    Pong,
    Ready,
    Start,
    WorkerAnswer,
    WorkItem,
    decode_message,
    encode,
)
from regraft.serving.model import SealedModel

START_S = 60.0  # for a worker to load its model
PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from regraft.serving.worker import main; main()"


class WorkerGone(Exception):
    """The worker has ended, or says what it should not: another is needed."""


class WorkerProcess:
    """A worker of this thread: it ends with the thread that made it.

    It is a program of its own and not a copy of the one that serves: it runs nothing of the user's script or notebook.

    Args:
        model: What it answers with.
        limits: Of the server.

    Attributes:
        heard_at: When it last sent a message, by `time.monotonic`.

    Raises:
        OSError: The system has no more processes or files to give.
    """

    def __init__(self, model: SealedModel, limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", PROGRAM, str(theirs.fileno()), *sys.path]
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this program and ours
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel, self._limits = Channel(ours), limits
        self._start = Start(str(model.folder), model.sha256, model.load_options, asdict(limits), os.getpid())
        self._has_begun = False
        self.heard_at = time.monotonic()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it has a model and runs."""
        return self._has_begun and self._process.poll() is None

    def wait_ready(self) -> None:
        """Wait until it has answered a photo of its own.

        Raises:
            ServeError: There is no model to be had.
        """
        try:
            self._channel.send(encode(self._start), START_S)
            message = self._heard(START_S)
        except WorkerGone as error:
            code = self.end()
            raise ServeError(f"A worker ended before it was ready, with code {code}: {error}.") from error
        except (TimeoutError, OSError) as error:
            code = self.end()
            raise ServeError(
                f"A worker did not start within {START_S:g} s, code {code}. Is there memory left?"
            ) from error
        if not isinstance(message, Ready):
            self.end()
            raise ServeError(message.reason if isinstance(message, NoModel) else "A worker answered nonsense.")
        self._has_begun = True

    def ask(self, data: bytes, item: WorkItem) -> WorkerAnswer | None:
        """Ask for the answer to a photo.

        Args:
            data: Bytes of the photo's file.
            item: What is wanted of it.

        Returns:
            The answer; None where it took too long.

        Raises:
            WorkerGone: The process has died or said nonsense.
        """
        try:
            self._channel.send(encode(item), self._limits.photo_s)
            self._channel.send(data, self._limits.photo_s)
            message = self._heard(self._limits.photo_s)
        except TimeoutError:
            return None
        except OSError as error:
            raise WorkerGone(str(error)) from error
        if not isinstance(message, Answered):
            raise WorkerGone(f"it answered with {type(message).__name__}")
        return message.answer

    def answers_ping(self) -> bool:
        """Return whether an idle worker is there, and not stopped or stuck."""
        try:
            self._channel.send(encode(Ping()), self._limits.photo_s)
            return isinstance(self._heard(self._limits.photo_s), Pong)
        except (WorkerGone, OSError):
            return False

    def kill(self) -> None:
        """Kill it at once; whoever waits for it finds it gone."""
        with suppress(OSError):
            self._process.kill()

    def end(self) -> int:
        """Kill it, leave nothing of it, and return its exit code."""
        self._has_begun = False
        self.kill()
        self._channel.close()
        return self._process.wait()

    def _heard(self, limit_s: float) -> Message:
        """Receive a message; raise TimeoutError where none comes, WorkerGone for what is none."""
        try:
            message = decode_message(self._channel.receive(limit_s))
        except (EOFError, Garbled) as error:
            raise WorkerGone(str(error)) from error
        self.heard_at = time.monotonic()
        return message

"""Progress on stderr: a bar with rate and time left on a terminal, one line a step elsewhere.

rich is imported only when there is something to draw: commands that say nothing do not pay for it.
"""

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

Advance = Callable[[int], None]
SILENT_S = 1.0  # seconds that a step may take before it is announced


@dataclass
class Progress:
    """Where messages and progress bars go: stderr, or nowhere.

    Attributes:
        quiet: Whether nothing is said.
        seconds: How long each step took, in seconds, filled as steps end; steps of one name are added up.
    """

    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    _bars: list[Any] = field(default_factory=list)
    _topics: set[str] = field(default_factory=set)

    def say_once(self, topic: str, message: str) -> None:
        """Print one line as `say` does, unless something was said on the same topic before."""
        if topic not in self._topics:
            self._topics.add(topic)
            self.say(message)

    def say(self, message: str) -> None:
        """Print one line to stderr, above the bar where one is drawn."""
        if self.quiet:
            return
        if self._bars:
            self._bars[-1].print(printable(message), markup=False, highlight=False, soft_wrap=True)
        else:
            talk(message)

    @contextmanager
    def step(self, name: str, total: int = 0, unit: str = "photos", *, is_announced: bool = True) -> Iterator[Advance]:
        """Time a step, and show how far it is.

        Args:
            name: What is done.
            total: How many things it is done with, which shows how far it is; 0 where that is not known.
            unit: What these things are.
            is_announced: Whether a step without a total is said when it takes longer than a second.

        Yields:
            `advance(count)`, to be called when so many more things are done.
        """
        start = time.perf_counter()
        on_terminal = total > 0 and not self.quiet and sys.stderr.isatty()
        done = 0

        def count(number: int) -> None:
            nonlocal done
            done += number
            advance(number)

        is_silent = self.quiet or total > 0 or not is_announced
        with (
            nullcontext() if is_silent else _announced(lambda: self.say(f"{name} ...")),
            _bar(self._bars, name, total, unit) if on_terminal else _nothing() as advance,
        ):
            yield count
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if total and seconds > 0.5:
            self.say(f"{name}: {done} {unit} in {seconds:.1f} s ({done / seconds:.0f}/s)")


QUIET = Progress(quiet=True)


def printable(text: str) -> str:
    """Return `text` in one line, control and direction-changing characters escaped.

    So file names cannot drive a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def talk(message: str) -> None:
    """Print one line to stderr. Where that is closed or full nothing can be said, and the work goes on."""
    with suppress(OSError):
        print(printable(message), file=sys.stderr or io.StringIO(), flush=True)


@contextmanager
def _announced(say: Callable[[], None]) -> Iterator[None]:
    """Say something unless the block has ended within SILENT_S seconds."""
    timer = threading.Timer(SILENT_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _nothing() -> Iterator[Advance]:
    yield lambda count: None


@contextmanager
def _bar(bars: list[Any], name: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.0f} {unit}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        bars.append(bar.console)
        try:
            yield lambda count: bar.advance(task, count)
        finally:
            bars.pop()

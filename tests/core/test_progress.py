"""Talk goes to stderr in one line that cannot drive a terminal; stdout is left to data."""

import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.core.progress import QUIET, Progress, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("not UTF-8 \udcff", r"not UTF-8 \udcff"),
        ("\x9b\u2028\u2066\x00\x7f", r"\x9b\u2028\u2066\x00\x7f"),
        ("Ünï 日本 🐝 'quoted' \\", "Ünï 日本 🐝 'quoted' \\"),
    ],
)
def test_names_are_escaped_where_they_would_drive_a_terminal(name, shown):
    assert printable(name) == shown


@given(st.text(st.characters(codec=None)))
@settings(deadline=None, database=None)
def test_whatever_is_printable_is_one_line_that_can_be_encoded(text):
    assert printable(text).isprintable()
    printable(text).encode()
    if text.isprintable():
        assert printable(text) == text


def test_talk_goes_to_stderr_line_by_line(capsys):
    Progress().say("left out: a\nb.jpg")
    assert capsys.readouterr() == ("", "left out: a\\nb.jpg\n")


@pytest.mark.parametrize("total", [0, 3])
def test_quiet_says_nothing_and_still_times(capsys, total):
    progress = Progress(quiet=True)
    progress.say("nobody hears this")
    with progress.step("work", total=total) as advance:
        advance(total)
    assert list(progress.seconds) == ["work"]
    assert capsys.readouterr() == ("", "")
    assert QUIET.quiet


def test_steps_are_timed_and_add_up():
    progress = Progress(quiet=True)
    for _ in range(2):
        with progress.step("work"):
            time.sleep(0.01)
    with progress.step("rest"):
        pass
    assert progress.seconds["work"] >= 0.02
    assert 0 <= progress.seconds["rest"] < progress.seconds["work"]


def test_a_long_step_is_said_with_its_rate(capsys, monkeypatch):
    now = iter([10.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    with Progress().step("work", total=100) as advance:
        advance(100)
    assert capsys.readouterr() == ("", "work: 100 photos in 2.0 s (50/s)\n")


def test_a_step_without_a_total_is_said_only_when_it_takes_long(capsys, monkeypatch):
    monkeypatch.setattr("regraft.core.progress.SILENT_S", 0.01)
    said = threading.Event()
    progress = Progress()
    monkeypatch.setattr(progress, "say", lambda message: (print(message), said.set()))
    with progress.step("solve head"):
        assert said.wait(5)
    with progress.step("total", is_announced=False):
        time.sleep(0.05)
    monkeypatch.setattr("regraft.core.progress.SILENT_S", 5.0)
    with progress.step("quick"):
        pass
    assert capsys.readouterr().out == "solve head ...\n"
    assert not [one for one in threading.enumerate() if isinstance(one, threading.Timer) and not one.finished.is_set()]


def test_a_step_that_fails_lets_the_error_through():
    with pytest.raises(ValueError, match="no"), Progress().step("work", total=3):
        raise ValueError("no")


def test_a_terminal_gets_a_bar_on_stderr(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress().step("work", total=3) as advance:
        advance(2)
        advance(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "work" in err


def test_rich_is_not_imported_where_there_is_no_bar():
    code = """if True:
        import sys
        from regraft.core.progress import Progress
        with Progress().step("work", total=3) as advance:
            advance(3)
        print("rich" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

"""A signal stops a program at a place where it can stop; a second one stops it at once."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from regraft.core import signals
from regraft.core.signals import Interrupted, held_back, install

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def installed(monkeypatch):
    """Handlers and what they remember, for one test."""
    monkeypatch.setattr(signals, "_pending", [])
    monkeypatch.setattr(signals, "_holders", [])
    before = {number: signal.getsignal(number) for number in BOTH}
    install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    lines = "import os, signal, sys, time\nfrom regraft.core.signals import *\ninstall()\nme = os.getpid()\n"
    return subprocess.run([sys.executable, "-c", lines + code], capture_output=True, text=True, timeout=20)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("number", BOTH)
def test_a_signal_raises_where_the_program_is_and_says_which_it_was(number):
    with pytest.raises(Interrupted) as caught:
        send(number)
    assert caught.value.signum == number


def test_no_handler_of_errors_takes_an_interruption_for_one():
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("number", BOTH)
def test_held_back_it_raises_only_when_the_block_ends(number):
    done = []

    def block():
        with held_back() as stop_asked:
            done.append(stop_asked())
            send(number)
            done.append(stop_asked())

    with pytest.raises(Interrupted) as caught:
        block()
    assert done == [False, True]
    assert caught.value.signum == number


@pytest.mark.usefixtures("installed")
def test_of_two_blocks_the_outer_one_raises():
    done = []

    def blocks():
        with held_back():
            with held_back() as stop_asked:
                send(signal.SIGTERM)
                done.append(stop_asked())
            done.append("after the inner block")

    with pytest.raises(Interrupted):
        blocks()
    assert done == [True, "after the inner block"]


@pytest.mark.usefixtures("installed")
def test_without_a_signal_a_block_is_as_if_it_were_not_there():
    with held_back() as stop_asked:
        assert not stop_asked()
    with pytest.raises(Interrupted):
        send(signal.SIGINT)


@pytest.mark.usefixtures("installed")
def test_an_error_within_a_block_stays_that_error_and_signals_work_afterwards():
    with pytest.raises(ZeroDivisionError), held_back():
        raise ZeroDivisionError
    with pytest.raises(Interrupted):
        send(signal.SIGTERM)


@pytest.mark.usefixtures("installed")
def test_an_error_after_a_signal_is_taken_for_its_consequence():
    def block():
        with held_back():
            send(signal.SIGTERM)
            raise RuntimeError("a helper that the same signal stopped")

    with pytest.raises(Interrupted) as caught:
        block()
    assert isinstance(caught.value.__context__, RuntimeError)


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_a_second_signal_stops_at_once_even_where_the_first_is_held_back(first, second):
    done = in_a_process(
        f"with held_back():\n    os.kill(me, {int(first)})\n    print('held back', flush=True)\n"
        f"    os.kill(me, {int(second)})\n    print('not reached', flush=True)\n"
    )
    assert (done.returncode, done.stdout) == (128 + second, "held back\n")


def test_a_second_signal_stops_a_program_that_is_cleaning_up_after_the_first():
    done = in_a_process(
        "try:\n    os.kill(me, signal.SIGTERM)\nfinally:\n    print('cleaning', flush=True)\n"
        "    os.kill(me, signal.SIGINT)\n    print('not reached', flush=True)\n"
    )
    assert (done.returncode, done.stdout) == (130, "cleaning\n")


def test_a_library_leaves_signals_alone():
    done = in_a_process(
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\nimport regraft, regraft.commands.train\n"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    )
    assert done.stdout == "True\n", done.stderr


def test_another_thread_than_the_main_one_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before

"""Signals are handled for a while, in the main thread, unless they are ignored."""

import os
import signal
import threading

import pytest

from fmkit.runs.signals import handled


@pytest.fixture
def before():
    """SIGTERM as a shell leaves it, and what the tests found."""
    found = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, found)


def test_a_signal_is_handled_and_its_handler_comes_back(before):
    numbers = []
    with handled("SIGTERM", "SIGNONE", by=lambda number, _: numbers.append(number)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert numbers == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_is_ignored_stays_ignored(before):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with handled("SIGTERM", by=lambda number, _: None):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_another_thread_changes_nothing(before):
    handlers = []

    def run():
        with handled("SIGTERM", by=lambda number, _: None):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]

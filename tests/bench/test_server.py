"""A server of one's own is stopped also when the benchmark is."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from raysgl.bench.server import sigterm_unwinds


def test_sigterm_leaves_as_an_exception_does():
    before, stopped = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as ended, sigterm_unwinds():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)
        finally:
            stopped.append(True)
    assert stopped and ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_change_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with sigterm_unwinds():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]

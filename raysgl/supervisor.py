"""A process around the launcher that takes its signals and leaves nothing behind. Imports little; knows nothing of Ray.

Ctrl-C in a terminal, `timeout` and make send their signal to a whole process group. Ray's processes would die of it while the
launcher still needs them to let answers finish. So the launcher runs in a session of its own, and only this process hears the
signal. It passes on the first; the second, later than `ONCE_S`, ends everything at once. Where Linux allows, processes that lose
their parent become children of this one, and whatever is left when the launcher has ended is killed; if this process is killed, the
launcher is told to stop.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import psutil

log = logging.getLogger(__name__)

ONCE_S = 1.0
"""Signals closer than this are one: make passes on what the whole group has got already."""
LEFTOVER_S = 2.0
"""How long Ray's helpers may take to end by themselves after the launcher has."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KILLED = 128
"""A shell's exit code for a process that a signal ended is this plus the signal."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def supervised(work: Callable[[], int]) -> int:
    """Run `work` in a child process and return its exit code. Call it before any thread is started."""
    me = os.getpid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    # A signal between fork and the handlers below would leave the child alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        _run(work, me)
    supervisor = _Supervisor(child)
    for signum in SIGNALS:
        signal.signal(signum, supervisor.heard)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    code = supervisor.wait()
    _kill_leftovers()
    return code


def _run(work: Callable[[], int], parent: int) -> NoReturn:
    """The child's life. It ends without Python's exit handlers: Ray's would wait for a Ray that may be dead."""
    code = 1
    try:
        os.setsid()
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent:
            for signum in SIGNALS:
                signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            code = work()
    except Exception:
        log.exception("the launcher failed")
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class _Supervisor:
    def __init__(self, child: int):
        self._child = child
        self._first: float | None = None

    def heard(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)
        elif now - self._first > ONCE_S:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            os._exit(KILLED + signum)

    def wait(self) -> int:
        """The child's exit code. Reaps orphans meanwhile."""
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == self._child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else KILLED - code


def _kill_leftovers() -> None:
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=LEFTOVER_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=LEFTOVER_S)


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere less is cleaned up after a crash."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(int(value)), 0, 0, 0)

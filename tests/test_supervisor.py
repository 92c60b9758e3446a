"""The process around the launcher: exit codes, signals, orphans."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

BEGIN = "import os, signal, subprocess, sys, time\nfrom raysgl.supervisor import supervised\n"


def start(work: str) -> subprocess.Popen:
    """A process that runs `work`, the body of a function, under a supervisor."""
    body = "".join(f"    {line}\n" for line in work.splitlines())
    script = f"{BEGIN}def work():\n{body}sys.exit(supervised(work))"
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize(
    "work, code",
    [
        ("return 0", 0),
        ("return 7", 7),
        ("raise ValueError('no')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_the_exit_code_is_the_works(work, code):
    assert start(work).wait(30) == code


WAITS = """
got = []
signal.signal(signal.SIGTERM, lambda signum, frame: got.append(signum))
print("up", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.2)
return len(got)
"""


def test_a_groups_signal_and_its_echo_are_one():
    process = start(WAITS)
    process.stdout.readline()
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 1


def test_an_impatient_user_ends_it():
    process = start("signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)\nreturn 0")
    process.stdout.readline()
    child = psutil.Process(process.pid).children()[0]
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(0.3)
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 128 + signal.SIGINT
    child.wait(10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's subreaper")
def test_orphans_are_ended():
    forget = "child = subprocess.Popen(['sh', '-c', 'sleep 600 & echo $!'], stdout=sys.stdout)\nchild.wait()\nreturn 0"
    process = start(forget)
    orphan = int(process.stdout.readline())
    assert process.wait(30) == 0
    assert not psutil.pid_exists(orphan)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's parent death signal")
def test_the_work_hears_that_its_supervisor_was_killed():
    process = start(WAITS)
    process.stdout.readline()
    child = psutil.Process(process.pid).children()[0]
    process.kill()
    process.wait(30)
    child.wait(10)

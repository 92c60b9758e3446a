"""The Makefile, with a stand-in for the installed environment: arguments, signals, set-up done once, a clear word about Python."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STAND_IN = """#!/usr/bin/env python3
import os, signal, sys, time

def stop(signum, frame):
    print("drained after", signal.Signals(signum).name, flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("ready", *sys.argv[1:], os.environ.get("RAY_USAGE_STATS_ENABLED"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def venv(tmp_path):
    """An environment that looks installed, whose raysgl says what it was called with."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    command = folder / "bin" / "raysgl"
    command.write_text(STAND_IN)
    command.chmod(0o755)
    for stamp in (".created", ".serve", ".dev"):
        (folder / stamp).touch()
    return folder


def make(*arguments: str, **options) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["make", *arguments], cwd=ROOT, env=environment, start_new_session=True, **pipes, **options)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda process: process.send_signal(signal.SIGTERM), "SIGTERM"),
        (lambda process: os.killpg(process.pid, signal.SIGINT), "SIGINT"),  # what Ctrl-C does
    ],
)
def test_serve_drains_when_make_is_stopped(venv, how, said):
    process = make(f"VENV={venv}", "serve", "CONFIG=some.yaml", "PORT=123", "HOST=h")
    try:
        assert process.stdout.readline().split() == ["ready", "serve", "some.yaml", "--host", "h", "--port", "123", "0"]
        how(process)
        output, _ = process.communicate(timeout=20)
        assert f"drained after {said}" in output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_set_up_is_not_repeated(venv):
    output, error = make("-n", f"VENV={venv}", "serve").communicate(timeout=20)
    assert not error and len(output.splitlines()) == 1
    assert output.strip() == f"exec {venv}/bin/raysgl serve serve_configs/llama.yaml"


def test_changed_dependencies_are_installed(venv):
    os.utime(venv / ".serve", (0, 0))
    output, _ = make("-n", f"VENV={venv}", "serve").communicate(timeout=20)
    assert "install -c constraints.txt -e" in output and "venv " not in output.replace(f"{venv}", "")


@pytest.mark.parametrize("python", ["", "/no/such/python"])
def test_no_python_that_is_new_enough(tmp_path, python):
    process = make(f"VENV={tmp_path / 'new'}", f"PYTHON={python}", "serve")
    _, error = process.communicate(timeout=20)
    assert process.returncode and "raysgl needs Python 3.11 or newer" in error
    assert not (tmp_path / "new").exists()


def test_gpu_machines_get_the_cuda_extra(tmp_path, venv):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA'\n")
    (tools / "nvidia-smi").chmod(0o755)
    os.utime(venv / ".serve", (0, 0))
    process = subprocess.run(
        ["make", "-n", f"VENV={venv}", "serve"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "-e '.[cuda]'" in process.stdout

"""The short form of `make test-cluster`: a node is lost, and a connection is cut, while a few streams run."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.cluster
@pytest.mark.slow
def test_a_node_and_a_connection_are_lost_and_no_stream_is():
    """In a process of its own: this one may have another Ray."""
    command = [sys.executable, "-m", "tests.cluster", "--streams", "12", "--tokens", "150", "--only", "connection", "node"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "| node |" in done.stdout and "| connection |" in done.stdout

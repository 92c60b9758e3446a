"""aiperf (NVIDIA's load generator) against chat and text completions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_streaming_profile(kind, url, model, tokenizer, tmp_path):
    command = [
        str(Path(sys.executable).parent / "aiperf"),
        *("profile", "--model", model, "--url", url, "--endpoint-type", kind, "--streaming"),
        *("--tokenizer", tokenizer, "--concurrency", "2", "--request-count", "6"),
        *("--synthetic-input-tokens-mean", "50", "--output-tokens-mean", "8"),
        *("--extra-inputs", "ignore_eos:true", "--artifact-dir", str(tmp_path), "--ui", "none"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}  # it would look in the cache
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = tmp_path.glob("**/profile_export_aiperf.json")
    found = json.loads(path.read_text())
    assert found["request_count"]["avg"] == 6
    assert found["output_sequence_length"]["avg"] >= 7
    assert found["time_to_first_token"]["avg"] > 0

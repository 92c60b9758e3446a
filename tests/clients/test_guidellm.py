"""guidellm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REQUESTS, INPUT, OUTPUT = 4, 32, 8


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_concurrent_streams(path, url, model, tokenizer, tmp_path):
    command = [
        *(str(Path(sys.executable).parent / "guidellm"), "run", "--disable-progress"),
        *("--backend", f"kind=openai_http,target={url},model={model},request_format={path}"),
        *("--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={INPUT},output_tokens={OUTPUT}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}", "--output", f"kind=json,path={tmp_path / 'found.json'}"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (found,) = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    # On a busy machine it stops with a worker's last result not taken in: neither successful, nor errored, nor incomplete.
    assert (totals["errored"], totals["incomplete"]) == (0, 0)
    assert totals["successful"] >= REQUESTS - 1
    assert found["metrics"]["output_token_count"]["successful"]["total_sum"] == totals["successful"] * OUTPUT

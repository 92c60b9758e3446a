"""lm-evaluation-harness over /v1/completions: log probabilities of choices, and generation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TASKS = Path(__file__).parent / "lm_eval"


def evaluate(task: str, url: str, model: str, tokenizer: str, folder: Path) -> dict:
    arguments = f"model={model},base_url={url}/v1/completions,tokenizer={tokenizer},num_concurrent=4,max_retries=1"
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments),
        *("--include_path", str(TASKS), "--tasks", task, "--output_path", str(folder), "--batch_size", "4"),
    ]
    environment = os.environ | {"HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, cwd=TASKS, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = folder.glob("**/results_*.json")
    return json.loads(results.read_text())["results"][task]


def test_choices_by_log_probability(url, model, tokenizer, tmp_path):
    found = evaluate("raysgl_choice", url, model, tokenizer, tmp_path)
    assert found["acc,none"] > 0.7  # 0.25 by chance


def test_generation(url, model, tokenizer, tmp_path):
    found = evaluate("raysgl_generate", url, model, tokenizer, tmp_path)
    assert found["exact_match,first-word"] > 0.2  # 0 by chance

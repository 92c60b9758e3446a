"""vLLM's serving benchmark (`vllm bench serve`)."""

from __future__ import annotations

import json
import urllib.parse

import pytest

from .wheels import Generator

UTILITIES = ("argparse_utils", "gc_utils", "import_utils", "mistral", "network_utils")
VLLM = Generator(
    "vllm",
    "0.24.0",
    (
        *("vllm.benchmarks", "vllm.tokenizers", "vllm.logger", "vllm.envs", "vllm.logging_utils"),
        *(f"vllm.utils.{name}" for name in UTILITIES),
    ),
    large=True,
)
REQUESTS, INPUT, OUTPUT = 6, 48, 8


@pytest.mark.parametrize(
    ("backend", "path"), [("vllm", "completions"), ("openai", "completions"), ("openai-chat", "chat/completions")]
)
def test_random_prompts(backend, path, url, model, tokenizer, tmp_path):
    place = urllib.parse.urlsplit(url)
    VLLM.run(
        tmp_path,
        *("--backend", backend, "--endpoint", f"/v1/{path}", "--host", place.hostname, "--port", str(place.port)),
        *("--model", model, "--tokenizer", tokenizer, "--tokenizer-mode", "hf", "--dataset-name", "random", "--ignore-eos"),
        *("--random-input-len", str(INPUT), "--random-output-len", str(OUTPUT), "--num-prompts", str(REQUESTS)),
        *("--max-concurrency", "3", "--save-result", "--result-dir", str(tmp_path), "--result-filename", "found.json"),
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["completed"], found["failed"]) == (REQUESTS, 0)
    assert found["total_output_tokens"] == REQUESTS * OUTPUT
    # It counts a chat's prompt as the server does, template included.
    assert found["total_input_tokens"] == REQUESTS * INPUT or (
        backend == "openai-chat" and found["total_input_tokens"] > REQUESTS * INPUT
    )
    assert found["median_ttft_ms"] > 0 and found["median_tpot_ms"] > 0

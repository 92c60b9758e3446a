"""SGLang's serving benchmark."""

from __future__ import annotations

import json
import urllib.parse

import pytest

from .wheels import Generator

SGLANG = Generator("sglang", "0.5.23", ("sglang.benchmark", "sglang.srt.utils.network"))
REQUESTS, INPUT, OUTPUT = 6, 48, 8


def measure(backend: str, url: str, model: str, tokenizer: str, folder, *more: str) -> dict:
    place = urllib.parse.urlsplit(url)
    SGLANG.run(
        folder,
        *(
            "--backend",
            backend,
            "--host",
            place.hostname,
            "--port",
            str(place.port),
            "--model",
            model,
            "--tokenizer",
            tokenizer,
        ),
        *(
            "--num-prompts",
            str(REQUESTS),
            "--max-concurrency",
            "3",
            "--flush-cache",
            "--output-file",
            str(folder / "found.jsonl"),
        ),
        *more,
    )
    return json.loads((folder / "found.jsonl").read_text())


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat"])
def test_random_prompts(backend, url, model, tokenizer, tmp_path):
    lengths = ("--random-input-len", str(INPUT), "--random-output-len", str(OUTPUT), "--random-range-ratio", "1")
    found = measure(backend, url, model, tokenizer, tmp_path, "--dataset-name", "random-ids", *lengths)
    assert found["completed"] == REQUESTS
    assert found["total_output_tokens"] == REQUESTS * OUTPUT
    assert found["total_input_tokens"] == REQUESTS * INPUT
    assert found["median_ttft_ms"] > 0 and found["median_tpot_ms"] > 0


def test_shared_prefixes(url, model, tokenizer, tmp_path):
    sizes = ("--gsp-num-groups", "2", "--gsp-prompts-per-group", "3", "--gsp-system-prompt-len", "96")
    sizes += ("--gsp-question-len", "16", "--gsp-output-len", "4")
    found = measure("sglang", url, model, tokenizer, tmp_path, "--dataset-name", "generated-shared-prefix", *sizes)
    assert (found["completed"], found["total_output_tokens"]) == (REQUESTS, REQUESTS * 4)


def test_conversations_of_a_file(url, model, tokenizer, tmp_path):
    said = [
        {"from": "human", "value": "What do bees make, and how?"},
        {"from": "gpt", "value": "They make honey of what they find."},
    ]
    (tmp_path / "chats.json").write_text(json.dumps([{"id": str(i), "conversations": said} for i in range(REQUESTS)]))
    more = ("--dataset-name", "sharegpt", "--dataset-path", str(tmp_path / "chats.json"), "--sharegpt-output-len", "5")
    found = measure("sglang-oai-chat", url, model, tokenizer, tmp_path, *more)
    assert (found["completed"], found["total_output_tokens"]) == (REQUESTS, REQUESTS * 5)

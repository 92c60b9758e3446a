"""Where the server is, and what it can do."""

from __future__ import annotations

import os

import httpx
import pytest

MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": WEATHER}}


@pytest.fixture(scope="session")
def url() -> str:
    return os.environ["RAYSGL_URL"]


@pytest.fixture(scope="session")
def model() -> str:
    return os.environ["RAYSGL_MODEL"]


@pytest.fixture(scope="session")
def tokenizer() -> str:
    """A folder with the model's tokenizer, for clients that count tokens themselves."""
    return os.environ["RAYSGL_TOKENIZER"]


@pytest.fixture(scope="session")
def structured(url: str) -> None:
    """Skips where the server has no structured output (grammar_backend: none)."""
    _need(url, "response_format", {"type": "json_object"})


def _need(url: str, field: str, value: object) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": MESSAGES, field: value, "max_tokens": 1}, timeout=60)
    if answer.status_code == 400 and answer.json()["error"]["param"] == field:
        pytest.skip(f"this server does not take {field}")

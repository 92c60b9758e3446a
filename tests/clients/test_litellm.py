"""litellm, through three of its providers."""

from __future__ import annotations

import json

import litellm
import pytest

from .conftest import FUNCTION, MESSAGES


@pytest.fixture
def settings(url, model):
    return {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none", "max_tokens": 20, "temperature": 0}


def test_chat(settings):
    whole = litellm.completion(messages=MESSAGES, **settings)
    assert "Paris" in whole.choices[0].message.content
    chunks = litellm.completion(messages=MESSAGES, stream=True, **settings)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert whole.usage.prompt_tokens > 5


def test_hosted_vllm(settings, model):
    answer = litellm.completion(messages=MESSAGES, **settings | {"model": f"hosted_vllm/{model}"})
    assert "Paris" in answer.choices[0].message.content


def test_text(settings, model):
    answer = litellm.text_completion(
        prompt="The capital of France is", **settings | {"model": f"text-completion-openai/{model}"}
    )
    assert answer.choices[0].text.strip().startswith("Paris")


def test_anthropic(settings, url, model):
    answer = litellm.completion(messages=MESSAGES, **settings | {"model": f"anthropic/{model}", "api_base": url})
    assert "Paris" in answer.choices[0].message.content


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "anthropic"])
def test_tools(settings, url, model, provider):
    base = url if provider == "anthropic" else f"{url}/v1"
    ask = settings | {"model": f"{provider}/{model}", "api_base": base, "messages": MESSAGES, "max_tokens": 60}
    ask |= {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
    (call,) = litellm.completion(**ask).choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    rebuilt = litellm.stream_chunk_builder(list(litellm.completion(**ask, stream=True)))
    (streamed,) = rebuilt.choices[0].message.tool_calls
    assert json.loads(streamed.function.arguments) == json.loads(call.function.arguments)


def test_responses(settings):
    arguments = {name: value for name, value in settings.items() if name != "max_tokens"}
    answer = litellm.responses(input="What is the capital of France?", max_output_tokens=20, **arguments)
    assert "Paris" in answer.output[0].content[0].text


def test_errors(settings, model):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=MESSAGES, **settings | {"model": "openai/nobody"})

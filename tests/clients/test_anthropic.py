"""The anthropic package."""

from __future__ import annotations

import anthropic
import pytest

from .conftest import MESSAGES, WEATHER

TOOL = {"name": "get_weather", "description": "The weather", "input_schema": WEATHER}


@pytest.fixture
def client(url):
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_whole_and_streamed(client, model):
    ask = {"model": model, "messages": MESSAGES, "max_tokens": 20, "extra_body": {"temperature": 0}, "system": "You are brief."}
    whole = client.messages.create(**ask)
    assert "Paris" in whole.content[0].text
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_count_tokens(client, model):
    counted = client.messages.count_tokens(model=model, messages=MESSAGES).input_tokens
    usage = client.messages.create(model=model, messages=MESSAGES, max_tokens=1).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_prefill_and_stop_sequence(client, model):
    messages = [*MESSAGES, {"role": "assistant", "content": "The capital of France is"}]
    answer = client.messages.create(
        model=model, messages=messages, max_tokens=30, extra_body={"temperature": 0}, stop_sequences=["."]
    )
    assert answer.content[0].text.startswith(" Paris")
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", ".")


async def test_async_stream_events(url, model):
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", timeout=120) as client:
        stream = await client.messages.create(model=model, messages=MESSAGES, max_tokens=5, stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[0] == "message_start"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_errors(client, model):
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        client.messages.create(model="nobody", messages=MESSAGES, max_tokens=5)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    with pytest.raises(anthropic.BadRequestError, match="images are not supported"):
        client.messages.create(model=model, messages=[{"role": "user", "content": [image]}], max_tokens=5)


def test_thinking(client, model):
    """The model does not think by itself, so its thought is begun for it."""
    thought = [*MESSAGES, {"role": "assistant", "content": "<think>\nThe capital of France is"}]
    answer = client.messages.create(model=model, messages=thought, max_tokens=12, extra_body={"temperature": 0})
    assert [block.type for block in answer.content] == ["thinking"]
    assert "Paris" in answer.content[0].thinking


def test_tools(client, model):
    choice = {"type": "any", "disable_parallel_tool_use": True}  # the model would call for ever
    ask = {"model": model, "messages": MESSAGES, "max_tokens": 60, "tools": [TOOL], "tool_choice": choice}
    answer = client.messages.create(**ask, extra_body={"temperature": 0})
    use = next(block for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason == "tool_use"
    assert use.input["city"] in ("Paris", "Rome")
    with client.messages.stream(**ask, extra_body={"temperature": 0}) as stream:
        streamed = next(block for block in stream.get_final_message().content if block.type == "tool_use")
    assert streamed.input == use.input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    history = [*MESSAGES, answer.to_param(), {"role": "user", "content": [result]}]
    assert client.messages.create(model=model, messages=history, max_tokens=5, tools=[TOOL]).content

"""The openai package."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from .conftest import FUNCTION, MESSAGES, WEATHER


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    big: bool


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_chat_whole_and_streamed(client, model):
    whole = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_completion_tokens=20)
    assert "Paris" in whole.choices[0].message.content
    chunks = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0,
        max_completion_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs_and_n(client, model):
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, n=2, logprobs=True, top_logprobs=3, max_tokens=5, seed=1, temperature=1
    )
    assert len(answer.choices) == 2
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert b"".join(bytes(token.bytes) for token in tokens).decode().startswith(choice.message.content)
        assert all(len(token.top_logprobs) == 3 for token in tokens)


def test_completions(client, model):
    answer = client.completions.create(
        model=model, prompt=["The capital of France is", "Red, green,"], max_tokens=4, temperature=0, logprobs=1
    )
    assert answer.choices[0].text.strip().startswith("Paris")
    assert len(answer.choices[1].logprobs.tokens) == 4


def test_parse_gives_a_pydantic_object(client, model, structured):
    answer = client.chat.completions.parse(model=model, messages=MESSAGES, response_format=City, max_completion_tokens=60)
    assert isinstance(answer.choices[0].message.parsed, City)
    parsed = client.responses.parse(model=model, input="Name a city.", text_format=City, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, City)


async def test_many_at_once(url, model):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as client:

        async def ask(number: int) -> str:
            messages = [{"role": "user", "content": f"Count from {number}."}]
            stream = await client.chat.completions.create(model=model, messages=messages, stream=True, max_tokens=12)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*map(ask, range(8)))
    assert all(answers)


def test_responses(client, model):
    first = client.responses.create(model=model, input="What is the capital of France?", temperature=0, max_output_tokens=20)
    assert "Paris" in first.output_text
    with client.responses.stream(
        model=model, input=[*MESSAGES, *first.output, *MESSAGES], max_output_tokens=60, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert final.output_text
    assert final.usage.input_tokens > first.usage.input_tokens


def test_errors(client, model):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=MESSAGES, temperature=-1)
    assert bad.value.param == "temperature"


def test_tools_whole_and_streamed(client, model):
    ask = {"model": model, "messages": MESSAGES, "tools": [FUNCTION], "tool_choice": "required", "temperature": 0}
    ask["parallel_tool_calls"] = False  # the model would call for ever
    answer = client.chat.completions.create(**ask, max_tokens=60)
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    with client.chat.completions.stream(**ask, max_tokens=60) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    history = [*MESSAGES, answer.choices[0].message.model_dump(exclude_none=True), result]
    assert client.chat.completions.create(model=model, messages=history, max_tokens=5).choices[0].message.content is not None


class GetWeather(BaseModel):
    city: Literal["Paris", "Rome"]


def test_tool_arguments_as_pydantic_objects(client, model):
    ask = {"model": model, "messages": MESSAGES, "tools": [openai.pydantic_function_tool(GetWeather)], "max_tokens": 60}
    choice = {"type": "function", "function": {"name": "GetWeather"}}
    (call,) = client.chat.completions.parse(**ask, tool_choice=choice).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, GetWeather)
    with client.chat.completions.stream(**ask, tool_choice=choice) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [type(event.parsed_arguments) for event in done] == [GetWeather]
    free = client.chat.completions.parse(**ask).choices[0]  # the tool is strict, and nobody says that it must be called
    assert free.message.content or free.message.tool_calls


def test_tools_and_a_format(client, model):
    """The answer is of the format, or calls."""
    answer = client.chat.completions.parse(
        model=model,
        messages=MESSAGES,
        tools=[openai.pydantic_function_tool(GetWeather)],
        response_format=City,
        parallel_tool_calls=False,
        max_tokens=80,
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, City) != bool(message.tool_calls)


def test_reasoning(client, model):
    """The model does not think by itself, so its thought is begun for it."""
    thought = [*MESSAGES, {"role": "assistant", "content": "<think>\nThe capital of France is"}]
    ask = {
        "model": model,
        "messages": thought,
        "max_tokens": 12,
        "extra_body": {"continue_final_message": True},
        "temperature": 0,
    }
    whole = client.chat.completions.create(**ask).choices[0].message
    assert whole.content is None
    assert "Paris" in whole.model_extra["reasoning_content"]
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**ask, stream=True)]
    streamed = "".join(delta.model_extra.get("reasoning_content") or "" for delta in deltas)
    assert streamed == whole.model_extra["reasoning_content"]


def test_tools_in_responses(client, model):
    tool = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}
    ask = {"model": model, "input": "Weather in Rome?", "tools": [tool], "tool_choice": "required", "max_output_tokens": 60}
    ask |= {"parallel_tool_calls": False, "temperature": 0}
    first = client.responses.create(**ask)
    (call,) = first.output
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    with client.responses.stream(**ask) as stream:
        done = [event for event in stream if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history = [{"role": "user", "content": "Weather in Rome?"}, *first.output, result]
    assert client.responses.create(model=model, input=history, tools=[tool], tool_choice="none", max_output_tokens=5).output

"""langchain-openai, and an agent on it."""

from __future__ import annotations

from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

QUESTION = "What is the capital of France? Answer briefly."


class City(BaseModel):
    name: Literal["Paris", "Rome"]


@pytest.fixture
def chat(url, model):
    return ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=80, max_retries=0)


def test_invoke_stream_batch(chat):
    whole = chat.invoke(QUESTION)
    assert "Paris" in whole.content
    assert whole.usage_metadata["input_tokens"] > 5
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == whole.content
    assert len(chat.batch([QUESTION] * 4)) == 4


def test_over_the_responses_api(url, model):
    chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, use_responses_api=True)
    answer = chat.invoke(QUESTION)
    assert "Paris" in answer.content[0]["text"]


def test_text(url, model):
    text = OpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=4).invoke(
        "The capital of France is"
    )
    assert text.strip().startswith("Paris")


def test_structured_output(chat, structured):
    assert isinstance(chat.with_structured_output(City, method="json_schema").invoke(QUESTION), City)


def test_structured_output_by_a_call(chat):
    assert isinstance(chat.with_structured_output(City, method="function_calling").invoke(QUESTION), City)


@wrap_model_call
def first_a_call_then_an_answer(request, handler):
    """The model is too small to decide by itself."""
    called = any(isinstance(message, ToolMessage) for message in request.messages)
    return handler(request.override(tool_choice="none" if called else "get_weather"))


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def test_streamed_calls(chat):
    calling = chat.bind_tools([get_weather], tool_choice="get_weather")
    whole = calling.invoke(QUESTION)
    assert whole.tool_calls[0]["args"]["city"] in ("Paris", "Rome")
    chunks = list(calling.stream(QUESTION))
    streamed = sum(chunks[1:], chunks[0])
    assert [call["args"] for call in streamed.tool_calls] == [call["args"] for call in whole.tool_calls]


def test_an_agent_calls_its_tool(chat):
    agent = create_agent(chat, [get_weather], middleware=[first_a_call_then_an_answer])
    messages = agent.invoke({"messages": [{"role": "user", "content": QUESTION}]})["messages"]
    assert [type(message) for message in messages] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert messages[2].content in ("sunny in Paris", "sunny in Rome")
    assert messages[3].content

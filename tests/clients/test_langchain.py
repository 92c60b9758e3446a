"""langchain-openai, and an agent on it."""

from __future__ import annotations

from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

QUESTION = "What is the capital of France? Answer briefly."


class City(BaseModel):
    name: Literal["Paris", "Rome"]


@pytest.fixture
def chat(url, model):
    return ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=40, max_retries=0)


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


def test_an_agent_calls_its_tool(chat, tools):
    asked = []

    @tool
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather in a city."""
        asked.append(city)
        return "sunny"

    calling = chat.bind_tools([get_weather], tool_choice="get_weather").invoke(QUESTION)
    assert calling.tool_calls[0]["args"]["city"] in ("Paris", "Rome")

    class Once:
        """The first turn must call, the second must answer: the model is too small to decide by itself."""

        turns = 0

    def choose(state, runtime=None):
        return "get_weather" if not any(isinstance(m, ToolMessage) for m in state["messages"]) else "none"

    from langchain.agents.middleware import wrap_model_call

    @wrap_model_call
    def force(request, handler):
        return handler(request.override(tool_choice=choose({"messages": request.messages})))

    state = create_agent(chat, [get_weather], middleware=[force]).invoke({"messages": [{"role": "user", "content": QUESTION}]})
    assert asked
    assert isinstance(state["messages"][-1], AIMessage)
    assert any(isinstance(message, ToolMessage) and message.content == "sunny" for message in state["messages"])

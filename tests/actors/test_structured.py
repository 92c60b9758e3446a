"""Constraints through HTTP, router, engine and two ranks."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import pytest

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def app(launch):
    return launch("structured", {"pair": {"tp_size": 2}, "off": {"grammar_backend": "none"}})


def ask(app, model: str, **fields) -> dict:
    """The choices; of an error, what it says."""
    body = {"model": model, "prompt": "Say it: ", "max_tokens": 64, "temperature": 1.0, **fields}
    url = f"{app.url}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}


def test_answers_follow_what_was_asked(app):
    answers = ask(app, "pair", regex=r"[a-c]{5}-\d{2}", n=4, seed=1)["choices"]
    assert all(re.fullmatch(r"[a-c]{5}-[0-9]{2}", choice["text"]) for choice in answers)
    assert [choice["finish_reason"] for choice in answers] == ["stop"] * 4
    schema = {"type": "json_schema", "json_schema": {"name": "colour", "schema": {"enum": ["red", "green", 7]}}}
    (choice,) = ask(app, "pair", response_format=schema, ignore_eos=True)["choices"]
    assert json.loads(choice["text"]) in ("red", "green", 7)
    (choice,) = ask(app, "pair", structured_outputs={"choice": ["left", "right"]}, logprobs=2)["choices"]
    assert choice["text"] in ("left", "right")


def test_tool_calls(app):
    """The model has random weights, no template for tools and no format of its own: what it says is held to a list of calls."""
    city = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bern"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": city}}]
    body = {
        "model": "pair",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": tools,
        "max_tokens": 200,
        "temperature": 1.0,
    }
    body |= {"tool_choice": "required", "parallel_tool_calls": False, "n": 3, "seed": 1}
    for choice in app.post("/v1/chat/completions", body)["choices"]:
        (call,) = choice["message"]["tool_calls"]
        assert (call["function"]["name"], choice["finish_reason"]) == ("weather", "tool_calls")
        assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Bern")


def test_what_cannot_be_followed_is_refused(app):
    answer = ask(app, "pair", json_schema={"type": "array", "minItems": 2, "uniqueItems": True})
    assert answer["status"] == 400
    assert answer["error"]["param"] == "json_schema"
    assert "uniqueItems" in answer["error"]["message"]


def test_a_model_without_grammars_says_so(app):
    answer = ask(app, "off", regex="a")
    assert answer["status"] == 400
    assert answer["error"]["param"] == "regex"
    assert "grammar_backend" in answer["error"]["message"]

"""Prompts from ShareGPT-style files."""

from __future__ import annotations

import asyncio
import json

import pytest

from raysgl.bench import serve, sharegpt
from raysgl.bench.client import Target
from raysgl.bench.dialects import Asking
from raysgl.bench.fleet import Traffic
from raysgl.bench.prompts import Lengths, Shape
from raysgl.bench.sharegpt import Choice

from .fake_server import FakeServer, words
from .test_serve import nothing

QUESTION, ANSWER = "how far is the lighthouse", "two miles over the water"


def record(*texts: str, key: str = "conversations") -> dict:
    names = ("human", "gpt") if key == "conversations" else ("user", "assistant")
    fields = ("from", "value") if key == "conversations" else ("role", "content")
    return {key: [dict(zip(fields, (names[i % 2], text), strict=True)) for i, text in enumerate(texts)]}


@pytest.mark.parametrize("lines", [False, True])
def test_forms_of_files(tmp_path, lines):
    records = [
        record(QUESTION, ANSWER, "and back", "the same"),
        record(QUESTION, ANSWER, key="messages"),
        {"conversations": [{"from": "system", "value": "be brief"}, *record(QUESTION, ANSWER)["conversations"]]},
        {"conversations": record(QUESTION, ANSWER)["conversations"][1:]},  # begins with an answer
        {"id": 3},
    ]
    path = tmp_path / "chats.json"
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records))
    pair = (QUESTION, ANSWER)
    assert sharegpt.read(path) == [[pair, ("and back", "the same")], [pair], [pair]]


@pytest.mark.parametrize(("text", "said"), [("{", "is no JSON"), ("[]", "no conversation"), ('[{"a": 1}]', "no conversation")])
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        sharegpt.read(path)


def chosen(records, choice: Choice, seed: str = "1"):
    return asyncio.run(sharegpt.choose(records, choice, sharegpt.by_words, seed))


def test_choice():
    numbered = [[(f"{QUESTION} {i}", f"{ANSWER} {'x ' * i}")] for i in range(40)]
    found = chosen(numbered, Choice(10))
    assert len(found) == 10 and found == chosen(numbered, Choice(10)) != chosen(numbered, Choice(10), "2")
    assert all(turn.output == 5 + int(turn.part.split()[-1]) for (turn,) in found), "as long as the real answer"
    assert {turn.output for (turn,) in chosen(numbered, Choice(10, output=Lengths(2, 3)))} == {2, 3}
    assert len(chosen(numbered, Choice(40, context=20))) == 10
    short = [[("too short", ANSWER)], [(QUESTION, "no")]]
    with pytest.raises(ValueError, match="no conversation of the file is left"):
        chosen(short, Choice(2))
    assert len(chosen(short, Choice(2, output=Lengths.exactly(2)))) == 1


def test_turns_up_to_the_limit():
    talk = [[(QUESTION, ANSWER)] * 5]
    assert [len(found) for found in chosen(talk, Choice(1, turns=3))] == [3]
    assert [len(found) for found in chosen(talk, Choice(1, turns=9, context=20))] == [2]


@pytest.mark.parametrize("counted_by", ["server", "nobody"])
def test_a_file_against_a_server(tmp_path, counted_by):
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([record(QUESTION, ANSWER, "and then where to", ANSWER)]))
    fail = () if counted_by == "server" else ("/tokenize",)
    with FakeServer(fail=fail) as server:
        settings = serve.Settings(
            Target.parse(server.url),
            Asking("fake", "openai-chat", answers=True),
            Shape(1, Lengths.exactly(1), Lengths.exactly(1), turns=2),
            [Traffic()],
            dataset=serve.Dataset(path),
            warm_up=0,
        )
        if fail:
            with pytest.raises(ValueError, match="give --tokenizer or --output-len"):
                serve.run(settings, nothing)
            return
        found = serve.run(settings, nothing).data
        first, second = (seen.body for seen in server.asked("/v1/chat/completions"))
    assert (found["requests"], found["output_tokens"]) == (2, 10)
    assert first["max_completion_tokens"] == second["max_completion_tokens"] == 5
    assert [m["content"] for m in second["messages"]] == [QUESTION, words(5), "and then where to"]

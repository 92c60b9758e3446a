"""Stop strings in requests: cut, counted, aborted at the engine; streamed and whole alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.api.generation import merge
from raysgl.api.sequence_text import SequenceText
from raysgl.messages import Finish, SequenceOutput
from raysgl.sampling.params import SamplingParams

from .fake_backend import FakeBackend, Script
from .test_shapes import events, post


def run(tokenizer, sampling: SamplingParams, groups: list[list[int]], finish: Finish):
    """Push groups of tokens; returns (text, entries' tokens, last piece, tokens counted)."""
    text, pieces = SequenceText(0, tokenizer, sampling), []
    for i, ids in enumerate(groups):
        logprobs = [FakeBackend.logprob(token, 0) for token in ids] if sampling.logprobs else None
        pieces.append(text.push(SequenceOutput(0, ids, finish if i + 1 == len(groups) else None, logprobs)))
        if text.done:
            break
    entries = [entry.logprob.token_id for piece in pieces for entry in piece.entries]
    return "".join(piece.text for piece in pieces), entries, pieces[-1], text.num_tokens


@given(
    text=st.text("ab é👩", min_size=1, max_size=15),
    stops=st.lists(st.text("ab é👩", min_size=1, max_size=3), max_size=2).map(tuple),
    cuts=st.sets(st.integers(0, 40)),
    logprobs=st.booleans(),
    keep=st.booleans(),
    minimum=st.sampled_from([0, 3]),
)
def test_grouping_tokens_changes_nothing(tokenizer, text, stops, cuts, logprobs, keep, minimum):
    ids = [*tokenizer.encode(text), 2]
    sampling = SamplingParams(stop=stops, logprobs=logprobs, no_stop_trim=keep, min_new_tokens=minimum)
    one_by_one = run(tokenizer, sampling, [[token] for token in ids], Finish("stop", 2))
    points = sorted(cut for cut in cuts if cut < len(ids))
    groups = [ids[a:b] for a, b in zip([0, *points], [*points, len(ids)], strict=True)]
    shown, entries, last, count = run(tokenizer, sampling, groups, Finish("stop", 2))
    assert (shown, entries, last.matched_stop, count) == (*one_by_one[:2], one_by_one[2].matched_stop, one_by_one[3])
    if not minimum and not keep:
        first = min([text.find(stop) + len(stop) for stop in stops if stop in text], default=None)
        assert (last.matched_stop == 2) == (first is None)
        assert not any(stop in shown for stop in stops)
    if logprobs and last.matched_stop == 2 and not keep:
        assert entries == ids[:-1]


async def test_usage_counts_to_the_token_that_completed_the_match(server, tokenizer):
    ids = [tokenizer.encode(char)[0] for char in "one END two"]
    for steps in ([[token] for token in ids], [ids]):
        fake = server(Script(steps, hang=True))
        answer = (await post(fake, "/v1/completions", {"prompt": "x", "stop": "END", "max_tokens": 50})).json()
        assert answer["choices"][0] | {"logprobs": None} == {
            "index": 0,
            "text": "one ",
            "logprobs": None,
            "finish_reason": "stop",
            "matched_stop": "END",
        }
        assert answer["usage"]["completion_tokens"] == 7
        assert fake.backend.last.aborted == {0}


async def test_a_stream_holds_back_what_may_be_a_stop_string(server, tokenizer):
    ids = [tokenizer.encode(char)[0] for char in "a EN EN"]
    fake = server(Script([[token] for token in ids], Finish("length")))
    chunks = events((await post(fake, "/v1/completions", {"prompt": "x", "stop": "END", "stream": True})).text)
    assert [c["choices"][0]["text"] for c in chunks] == ["a", " ", "EN ", "EN", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_one_sample_stops_while_the_other_goes_on(server, tokenizer):
    word = [tokenizer.encode(char)[0] for char in "a.b.c"]
    rest = [[token] for token in word]
    script = lambda ids, sampling, index: Script(rest if index else rest[2:])
    answer = (await post(server(script), "/v1/completions", {"prompt": "x", "n": 2, "stop": ["b."]})).json()
    assert [c["text"] for c in answer["choices"]] == ["", "a."]
    answer = (await post(server(script), "/v1/completions", {"prompt": "x", "n": 2, "stop": ["a"]})).json()
    assert [c["text"] for c in answer["choices"]] == ["b.c", ""]
    assert [c["finish_reason"] for c in answer["choices"]] == ["length", "stop"]


async def test_no_stop_trim_keeps_string_and_token(server, tokenizer):
    ids = [tokenizer.encode(char)[0] for char in "ab!c"]
    body = {"prompt": "x", "stop": ["!"], "no_stop_trim": True}
    assert (await post(server(Script([ids])), "/v1/completions", body)).json()["choices"][0]["text"] == "ab!"
    fake = server(Script([[*ids, 2]], Finish("stop", 2)))
    body = {"prompt": "x", "no_stop_trim": True, "skip_special_tokens": False}
    assert (await post(fake, "/v1/completions", body)).json()["choices"][0]["text"] == "ab!c<|im_end|>"


async def test_min_tokens_outlasts_stop_strings(server, tokenizer):
    ids = [tokenizer.encode(char)[0] for char in "a.b.c"]
    body = {"prompt": "x", "stop": ["."], "min_tokens": 2}
    assert (await post(server(Script([ids])), "/v1/completions", body)).json()["choices"][0]["text"] == "a.b"


@pytest.mark.parametrize("stream", [False, True])
async def test_half_a_character_at_the_end(server, tokenizer, stream):
    half = tokenizer._backend.token_to_id("Ã")
    fake = server(Script([[tokenizer.encode("a")[0]], [half]], Finish("length")))
    response = await post(fake, "/v1/completions", {"prompt": "x", "stream": stream})
    if stream:
        assert "".join(c["choices"][0]["text"] for c in events(response.text)) == "a\ufffd"
    else:
        assert response.json()["choices"][0]["text"] == "a\ufffd"


def test_merging_outputs_keeps_everything():
    a = SequenceOutput(1, [1], None, [FakeBackend.logprob(1, 0)], cached_tokens=3)
    b = SequenceOutput(1, [2], Finish("length"), [FakeBackend.logprob(2, 0)])
    ((index, merged),) = merge([(0, a), (0, b)])
    assert (index, merged.token_ids, merged.finish.reason, merged.cached_tokens) == (0, [1, 2], "length", 3)
    assert [logprob.token_id for logprob in merged.logprobs] == [1, 2]

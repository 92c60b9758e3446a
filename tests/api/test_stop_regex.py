"""Stop patterns: nothing of a match leaks, whatever the cuts; hostile patterns end the request, not the server."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.api.errors import ApiError
from raysgl.api.stop_regex import MAX_MATCH, RegexMatcher, matcher_of
from raysgl.sampling.params import SamplingParams

from .fake_backend import Script
from .test_errors import error_of
from .test_shapes import events, post


def fed(matcher, parts: list[str]) -> str:
    shown = ""
    for part in parts:
        shown += matcher.push(part)
        if matcher.matched is not None:
            return shown
    return shown + matcher.flush()


@given(
    text=st.text("ab1 \n", max_size=30),
    pattern=st.sampled_from(["a+b", r"\d\n", "ab?1", "(a|b){3}", r"1\s+a", "b$", "ba|1 1", r"(?<=b)a"]),
    cuts=st.lists(st.integers(0, 30)),
)
def test_the_shown_text_ends_where_the_first_match_begins(text, pattern, cuts):
    """As if the text so far were searched anew after each piece, but nothing of the match has been shown."""
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in itertools.pairwise(edges)]
    matcher = RegexMatcher((pattern,))
    shown = fed(matcher, parts)
    ends = (match.start() for edge in edges[1:] if (match := re.search(pattern, text[:edge])))
    expected = next(ends, None)
    if expected is None:
        assert (matcher.matched, shown) == (None, text)
    else:
        assert (matcher.matched, shown) == (pattern, text[:expected])


def test_the_match_can_be_kept():
    assert fed(RegexMatcher((r"\d+\.",), keep_stop=True), ["a 1", "2", ". b"]) == "a 12."


def test_strings_and_patterns_together():
    both = SamplingParams(stop=("END",), stop_regex=(r"\d{2}",))
    matcher = matcher_of(both)
    assert (fed(matcher, ["x1E", "N", "Dy"]), matcher.matched) == ("x1", "END")
    matcher = matcher_of(both)
    assert (fed(matcher, ["x1", "2EN"]), matcher.matched) == ("x", r"\d{2}")
    matcher = matcher_of(both)
    assert (fed(matcher, ["x1", "EN"]), matcher.matched) == ("x1EN", None)


def test_what_may_match_is_not_held_back_for_ever():
    matcher = RegexMatcher(("a.*z",))
    shown = matcher.push("a" * (MAX_MATCH + 10))
    assert len(shown) == 10


def test_a_pattern_that_takes_too_long_ends_the_request(monkeypatch):
    monkeypatch.setattr("raysgl.api.stop_regex.TIMEOUT_S", 1e-3)
    matcher = RegexMatcher((r"(?:(?:x|y|xy)+(?:y|x|yx)+)+(?:xz|yz|q)",))
    with pytest.raises(ApiError) as caught:
        matcher.push("xy" * 400)
    assert caught.value.param == "stop_regex"


@pytest.mark.parametrize("pattern", ["(", "x*", "", "a" * 257, "[z-a]", "(?P<x"])
async def test_bad_patterns_are_refused(server, pattern):
    response = await post(server(), "/v1/completions", {"prompt": "a", "stop_regex": [pattern]})
    assert response.status_code == 400 and error_of(response)["param"] == "stop_regex"


async def test_over_http(server, tokenizer):
    script = Script([[token] for token in tokenizer.encode("one 22 three")])
    served = server(script)
    whole = (await post(served, "/v1/completions", {"prompt": "a", "max_tokens": 50, "stop_regex": r"\d+\s"})).json()
    choice = whole["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["matched_stop"]) == ("one ", "stop", r"\d+\s")
    assert served.backend.last.aborted == {0}
    native = {"text": "a", "stream": True, "sampling_params": {"stop_regex": r"\d+\s", "no_stop_trim": True}}
    last = events((await post(served, "/generate", native)).text)[-1]
    assert last["text"] == "one 22 " and last["meta_info"]["finish_reason"] == {"type": "stop", "matched": r"\d+\s"}

"""`raysgl top` against the API with a made-up backend, behind a real socket."""

from __future__ import annotations

import json
from array import array

import msgspec
import pytest
from typer.testing import CliRunner

from raysgl import cli
from raysgl import top as top_view
from raysgl.messages import Load
from raysgl.overview import HotPrefix, ScalingDecision, ScalingFigures

LOAD = Load(running=3, waiting=2, queued_tokens=4096, free_pages=25, cached_pages=50, total_pages=100, hot_pages=10, prefill_rate=40000.0,
            decode_rate=1234.0, prompt_tokens=100, cached_tokens=75, max_running=256, ttft=0.042)  # fmt: skip


@pytest.fixture
def live(server, monkeypatch):
    """live(settings): an API whose one replica is busy; a context manager that gives the port."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make(hot=None, decisions=None, loads=None, **settings):
        made = server(**settings)
        made.backend.loads = lambda: {"tiny": {"app_Engine#abcdefgh": LOAD}} if loads is None else loads
        made.backend.hot, made.backend.decisions = hot or {}, decisions or {}
        return made.live()

    return make


HOT = [
    HotPrefix(0xABC, 512, 2.5, 3),
    HotPrefix(2**64 - 1, 32, 1.0, 1, array("i", [ord(c) for c in "\x1b[31m [bold]You are"]).tobytes()),
]
DECISIONS = [
    ScalingDecision(
        "tiny", 1_700_000_000.0, 2, 2, "fewer would do, but hot prefixes fill 130 pages", ScalingFigures(hot_use=0.6)
    ),
    ScalingDecision("tiny", 1_699_999_000.0, 1, 2, "80,000 uncached prompt tokens wait", ScalingFigures(80_000, 5.0, 0.2)),
]


def top(*arguments: str):
    return CliRunner().invoke(cli.app, ["top", *arguments])


def test_one_look(live):
    with live() as port:
        shown = top("--url", f"127.0.0.1:{port}/v1", "--once")
    assert shown.exit_code == 0, shown.output
    for text in (*top_view.COLUMNS, "abcdefgh", "3/256", "4,096", "25%", "50%", "10%", "75%", "1,234", "40,000", "42"):
        assert text in shown.output, text


def test_hot_prefixes_and_scaling_decisions(live, model):
    model.tokenizer.decode = lambda ids, skip_special_tokens: "".join(map(chr, ids))
    with live(hot={"tiny": HOT}, decisions={"tiny": DECISIONS}) as port:
        shown = top("--url", f"127.0.0.1:{port}", "--once").output
        body = json.loads(top("--url", f"127.0.0.1:{port}", "--json").output)
    for text in (
        "0000000000000abc",
        "512",
        "2.50",
        "1,280",
        "?[31m [bold]You are",
        "22:13:20  stays 2: fewer",
        "21:56:40  1 -> 2: 80,000",
    ):
        assert text in shown, shown
    assert "\x1b[31m" not in shown, "a prompt steers no terminal"
    first, second = body["hot_prefixes"]
    assert first == {"model": "tiny", "hash": "0000000000000abc", "tokens": 512, "replicas": 3, "hits_per_second": 2.5,
                     "saved_tokens_per_second": 1280.0}  # fmt: skip
    assert second["text"] == "\x1b[31m [bold]You are"
    kept, grown = body["scaling_decisions"]
    assert (kept["from"], kept["to"], kept["figures"]["hot_use"]) == (2, 2, 0.6)
    assert (grown["timestamp"], grown["reason"]) == ("2023-11-14T21:56:40+00:00", "80,000 uncached prompt tokens wait")
    assert grown["figures"]["queued_tokens"] == 80_000


def test_a_model_without_replicas_has_its_decisions(live):
    with live(decisions={"tiny": [msgspec.structs.replace(DECISIONS[0], after=0)]}, loads={}) as port:
        shown = top("--url", f"127.0.0.1:{port}", "--once").output
    assert "tiny: 0 replicas" in shown and "2 -> 0" in shown


def test_json_is_what_the_server_says(live):
    with live() as port:
        assert '"num_waiting_uncached_tokens": 4096' in top("--url", f"http://127.0.0.1:{port}", "--json").output


def test_problems_are_sentences(live):
    with live(api_key="secret") as port:
        url = f"http://127.0.0.1:{port}"
        refused = top("--url", url, "--once")
        assert refused.exit_code == 1 and "say --api-key" in refused.output
        assert top("--url", url, "--once", "--api-key", "secret").exit_code == 0
    gone = top("--url", url, "--once")
    assert gone.exit_code == 1 and "no raysgl server answers" in gone.output

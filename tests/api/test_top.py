"""`raysgl top` against the API with a made-up backend, behind a real socket."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from raysgl import cli
from raysgl.messages import Load

LOAD = Load(running=3, waiting=2, queued_tokens=4096, free_pages=25, cached_pages=50, total_pages=100, hot_pages=10, prefill_rate=40000.0,
            decode_rate=1234.0, prompt_tokens=100, cached_tokens=75, max_running=256, ttft=0.042)  # fmt: skip


@pytest.fixture
def live(server, monkeypatch):
    """live(settings): an API whose one replica is busy; a context manager that gives the port."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make(**settings):
        made = server(**settings)
        made.backend.loads = lambda: {"tiny": {"app_Engine#abc": LOAD}}
        return made.live()

    return make


def top(*arguments: str):
    return CliRunner().invoke(cli.app, ["top", *arguments])


def test_one_look(live):
    with live() as port:
        shown = top("--url", f"127.0.0.1:{port}/v1", "--once")
    assert shown.exit_code == 0, shown.output
    for text in ("abc", "3/256", "4,096", "25%", "50%", "10%", "75%", "1,234", "40,000", "42"):
        assert text in shown.output, text


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

"""`raysgl bench serve` against a server whose delays and answers are known."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from raysgl.bench import load, plot, serve
from raysgl.bench.cli import bench
from raysgl.bench.client import Target
from raysgl.bench.dialects import DIALECTS, Asking, Completion
from raysgl.bench.figures import Targets, figures
from raysgl.bench.fleet import Traffic, arrivals
from raysgl.bench.load import Run
from raysgl.bench.prompts import Lengths, Shape

from .fake_server import FakeServer, words

FIRST_S, GAP_S = 0.05, 0.01


def nothing(what: str, done: int = 0, total: int = 0) -> None:
    pass


def settings(server: FakeServer, backend: str = "openai", stream: bool = True, **more) -> serve.Settings:
    turns = more.pop("turns", 1)
    shape = Shape(6, Lengths(3, 9), Lengths.exactly(4), turns=turns)
    asking = Asking("fake", backend, stream, answers=turns > 1)
    given = {"shape": shape, "points": [Traffic(concurrency=3)], "processes": 2} | more
    return serve.Settings(Target.parse(server.url), asking, **given)


@pytest.mark.parametrize(("backend", "stream"), [("openai", True), ("openai-chat", True), ("sglang", True), ("sglang", False)])
def test_known_delays_and_counts(backend, stream):
    with FakeServer(FIRST_S, GAP_S) as server:
        found = serve.run(settings(server, backend, stream, targets=Targets(e2e=60_000)), nothing).data
        asked = server.asked(DIALECTS[backend].path)
    assert len(asked) == 7, "six, and one to warm up"
    assert all(bool(seen.body["stream"] if stream else not seen.body.get("stream")) for seen in asked)
    assert (found["requests"], found["errors"], found["short_answers"]) == (6, 0, 0)
    assert (found["prompt_tokens"], found["cached_tokens"], found["output_tokens"]) == (42, 24, 24)
    assert server.most == 3
    assert found["goodput"] == found["request_rate"] == pytest.approx(6 / found["seconds"])
    assert found["output_rate"] == pytest.approx(24 / found["seconds"])
    # Nothing arrives before it is sent; that it is not much later is for `docs/benchmarks.md`, not for a busy machine.
    assert found["e2e_p50_ms"] >= 1000 * (FIRST_S + 3 * GAP_S)
    assert 2 * (FIRST_S + 3 * GAP_S) <= found["seconds"] < 60
    if stream:
        assert 1000 * FIRST_S <= found["ttft_p50_ms"] <= found["ttft_p99_ms"] <= found["e2e_p99_ms"] < 60_000
        assert found["tpot_p50_ms"] <= found["e2e_p99_ms"] / 3
    else:
        assert "ttft_p50_ms" not in found


def test_arrivals_are_when_the_server_sent():
    with FakeServer(FIRST_S, GAP_S, newline="\r\n") as server:
        done = asyncio.run(load.complete(Target.parse(server.url), Asking("fake"), [1], 5))
        (seen,) = server.seen
    assert len(done.arrivals) == 5 and done.output_tokens == 5
    assert all(sent <= came < sent + 30 for sent, came in zip(seen.sent, done.arrivals, strict=True))


@pytest.mark.parametrize("backend", DIALECTS)
def test_a_conversation_resends_its_history(backend):
    with FakeServer() as server:
        serve.run(settings(server, backend, turns=2, warm_up=0, text=backend != "sglang"), nothing)
        bodies = [seen.body for seen in server.asked(DIALECTS[backend].path)]
    assert len(bodies) == 12
    if backend == "openai-chat":
        first, second = ([body["messages"] for body in bodies if len(body["messages"]) == n] for n in (1, 3))
        assert sorted(m[0]["content"] for m in second) == sorted(m[0]["content"] for m in first)
        assert {m[1]["content"] for m in second} == {words(4)}
    elif backend == "openai":
        second = [body["prompt"] for body in bodies if words(4) in body["prompt"]]
        assert len(second) == 6
        assert {text.partition(words(4))[0] for text in second} == {b["prompt"] for b in bodies if b["prompt"] not in second}
    else:
        second = [body["input_ids"] for body in bodies if 100 in body["input_ids"]]
        assert len(second) == 6
        assert all(ids[ids.index(100) :][:4] == [100, 101, 102, 103] for ids in second)


def test_incremental_events_of_generate():
    with FakeServer() as server:
        asking = Asking("fake", "sglang", answers=True, extra={"incremental": True, "sampling_params": {"top_k": 3}})
        done = asyncio.run(load.complete(Target.parse(server.url), asking, "hello", 3))
        assert server.seen[0].body["sampling_params"] == {"max_new_tokens": 3, "temperature": 0, "ignore_eos": True, "top_k": 3}
    assert (done.text, done.token_ids, done.output_tokens) == (words(3), [100, 101, 102], 3)


def test_failures_are_counted_or_said():
    with FakeServer(fail=("/v1/completions",)) as server, pytest.raises(ValueError, match="HTTP 500: .*as told"):
        serve.run(settings(server, warm_up=0), nothing)
    with FakeServer() as server:
        # /tokenize answers, but not as a completion does.
        wrong = asyncio.run(load.complete(Target.parse(server.url + "/tokenize?x="), Asking("fake"), "a", 2))
    assert wrong.error


def test_figures_of_known_times():
    completions = [
        Completion(10.0, [10.1, 10.2, 10.4], 10.5, asked=3, prompt_tokens=5, output_tokens=3),
        Completion(10.0, [10.3], 11.0, asked=2, prompt_tokens=5, cached_tokens=4, output_tokens=1),
        Completion(10.0, error="broke", ended=10.2, asked=2),
    ]
    found = figures(Run(completions, 2.0), Targets(ttft=150, tpot=160))
    assert (found["requests"], found["errors"], found["short_answers"]) == (3, 1, 1)
    assert (found["request_rate"], found["output_rate"], found["input_rate"]) == (1.0, 2.0, 5.0)
    assert found["in_flight"] == pytest.approx(0.75) and found["goodput"] == 0.5
    assert found["ttft_mean_ms"] == pytest.approx(200) and found["ttft_p99_ms"] == pytest.approx(300)
    assert found["tpot_mean_ms"] == found["tpot_p90_ms"] == pytest.approx(150), "an answer of one token has none"
    assert found["itl_mean_ms"] == pytest.approx(150) and found["itl_p99_ms"] == pytest.approx(200)
    assert found["e2e_p50_ms"] == pytest.approx(1000)
    assert figures(Run(completions, 2.0), Targets(tpot=140))["goodput"] == 0.5
    assert "goodput" not in figures(Run(completions, 2.0), Targets())


@given(st.floats(0.5, 500), st.sampled_from([0.3, 1.0, 4.0, math.inf]), st.integers(0, 2**32))
def test_arrivals_have_the_rate_and_the_burstiness(rate, burstiness, seed):
    found = arrivals(4000, Traffic(rate, burstiness), seed)
    gaps = [after - before for before, after in zip([0.0, *found], found, strict=False)]
    assert min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(1 / rate, rel=0.2)
    assert statistics.pvariance(gaps) * rate**2 == pytest.approx(1 / burstiness, rel=0.6, abs=1e-6)
    assert arrivals(3, Traffic(), seed) == [0.0] * 3


def test_the_command(tmp_path):
    with FakeServer() as server:
        common = ["--url", server.url, "--api-key", "s3cret", "--num-prompts", "4", "--output-len", "2:3", "--processes", "1"]
        out = tmp_path / "found.json"
        done = CliRunner().invoke(
            bench, ["serve", *common, "--concurrency", "1,2", "--flush-cache", "--output", str(out), "--json"]
        )
        assert done.exit_code == 0, done.output
        assert {seen.headers.get("authorization") for seen in server.seen} == {"Bearer s3cret"}
        assert len(server.asked("/flush_cache")) == 2
        prompts = [tuple(seen.body["prompt"]) for seen in server.asked("/v1/completions")]
        assert len(set(prompts)) == 9, "every point has prompts of its own"
    assert done.stderr == "", "no progress bar where there is no terminal"
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text()) and "s3cret" not in done.stdout
    assert [point["concurrency"] for point in found["figures"]["points"]] == [1, 2]
    assert [point["load"] for point in plot.points_of(out)] == ["1 at a time", "2 at a time"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--input-len", "9:3"], "9:3"),
        (["--rate", "0"], "--rate"),
        (["--concurrency", "a"], "--concurrency a"),
        (["--backend", "grpc"], "not one of openai, openai-chat, sglang"),
        (["--extra-body", "[1]"], "not a JSON object"),
        (["--plot", "x.bmp"], ".png, .svg"),
        (["--dataset", "/no/such.json"], "cannot be read"),
        (["--output", "/no/such/folder/x.json"], "no such folder"),
    ],
)
def test_what_cannot_be_done_is_said_first(options, said):
    with FakeServer() as server:
        done = CliRunner(env={"COLUMNS": "200"}).invoke(bench, ["serve", "--url", server.url, *options])
        assert not server.asked("/v1/completions") or "--dataset" in options
    assert done.exit_code != 0 and said in done.output
    assert "Traceback" not in done.output


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    point = {f"{key}_{label}_ms": 1.0 for key in ("ttft", "tpot", "e2e") for label in ("p50", "p99")} | {"output_rate": 5.0}
    results = {"a": [point | {"rate": 2.0}, point | {"output_rate": 9.0, "rate": 4.0}], "b": [point | {"concurrency": 3}]}
    plot.draw(results, tmp_path / "x.svg")
    drawn = (tmp_path / "x.svg").read_text()
    assert drawn.startswith("<?xml") and "time per output token" in drawn
    plot.draw(results, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with FakeServer() as server:
        done = CliRunner().invoke(bench, ["serve", "--url", server.url, "--plot", str(tmp_path / "x.svg")])
        assert not server.asked("/v1/completions")
    assert done.exit_code == 1 and "pip install 'raysgl[plot]'" in done.output

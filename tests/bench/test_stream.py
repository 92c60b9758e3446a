"""The benchmarks that start processes of their own, for a second or two."""

from __future__ import annotations

import pytest

from raysgl.bench import overload, server, stream, stream_peer


def test_a_short_run_loses_no_token():
    said: list[str] = []
    report = stream.run(streams=4, rate=50.0, seconds=1.5, stage=said.append)
    assert report.data["errors"] == 0
    assert report.data["tokens"] == 4 * 75
    assert {"added_p50_ms", "lag_p99_ms", "ingress_cpu_us"} <= set(report.data)
    assert report.data["added_p50_ms"] < 13_000  # no age is from the round of ids before
    assert said == ["starting", "4 streams of 50 tokens/s for 1.5 s"]


def test_a_short_overload_refuses_and_finishes():
    report = overload.run(factor=5.0, limit_s=0.5, seconds=5.0, stage=lambda said: None)
    figures = report.data
    assert figures["x1_errors"] == figures["x5_errors"] == 0
    assert figures["x5_refused"] > 50 and figures["x5_finished"] > 0
    assert figures["x5_retry_after"] >= 1


def test_ids_are_times():
    tokenizer = stream_peer.clock_tokenizer()
    assert tokenizer.decode([7, 65535]) == " 7 65535"
    now = stream_peer.ticks()
    assert 0 <= stream_peer.age_s(now) < 5
    assert stream_peer.age_s((now + stream_peer.VOCAB - 500) % stream_peer.VOCAB) >= 500 * stream_peer.TICK_S


def test_a_server_that_cannot_start_says_why():
    said = r"ended with 1:(.|\n)*'/no/such/model' does not exist"
    with pytest.raises(server.ServerFailed, match=said), server.running({"model_path": "/no/such/model"}):
        pass

"""The engine in this process: every request is answered in full, and counted."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from raysgl.bench.cli import bench
from raysgl.bench.local_engine import LocalEngine
from raysgl.config import EngineConfig

from .test_serve import nothing


@pytest.fixture(scope="module")
def settings(tiny_checkpoint):
    return [
        "--model-path",
        str(tiny_checkpoint()),
        *(part for name in ("device=cpu", "max_total_tokens=4096") for part in ("--engine", name)),
    ]


def run(*arguments: str):
    return CliRunner().invoke(bench, [*arguments, "--json"])


def test_a_batch(settings, tmp_path):
    options = [
        "--num-prompts",
        "70",
        "--input-len",
        "20:30",
        "--output-len",
        "3:5",
        "--shared-prefix-len",
        "32",
        "--groups",
        "2",
    ]
    done = run("offline", *settings, *options, "--output", str(tmp_path / "x.json"))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["figures"]
    assert 70 * 52 <= found["prompt_tokens"] <= 70 * 62 and 70 * 3 <= found["output_tokens"] <= 70 * 5
    assert found["cached_tokens"] >= 32 * 60, "nearly all find one of two prefixes"
    assert found["output_rate"] == pytest.approx(found["output_tokens"] / found["seconds"])
    assert json.loads((tmp_path / "x.json").read_text())["figures"] == found


def test_latencies(settings):
    done = run("latency", *settings, "--batch-size", "1,3", "--input-len", "8,40", "--output-len", "1,4", "--rounds", "1")
    assert done.exit_code == 0, done.output
    points = json.loads(done.stdout)["figures"]["points"]
    assert [(p["batch"], p["input_len"], p["output_len"]) for p in points] == [
        (b, i, o) for b in (1, 3) for i in (8, 40) for o in (1, 4)
    ]
    assert all(p["prefill_ms"] <= p["e2e_ms"] and (p["step_ms"] > 0) == (p["output_len"] > 1) for p in points)


def test_courses_of_sequences(tiny_checkpoint):
    engine = LocalEngine(EngineConfig(model_path=str(tiny_checkpoint()), device="cpu", max_total_tokens=1024), nothing)
    found, seconds = engine.run([([5] * 40, 3), ([5] * 40, 6), ([7] * 10, 1)])
    assert [one.output_tokens for one in found] == [3, 6, 1]
    assert all(0 < one.first <= one.last <= seconds for one in found) and found[2].first == found[2].last
    with pytest.raises(ValueError, match="600"):
        engine.run([([5] * 600, 3)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "pagesize=3"], "--engine pagesize: unknown setting; did you mean page_size?"),
        (["--engine", "page_size"], "NAME=VALUE"),
        (["--engine", "tp_size=2"], "one shard"),
        (["--input-len", "x"], "'x' is not a number"),
        (["--model-path", "/no/such"], "/no/such"),
        (["--dataset", "/no/such.json"], "tokenizer"),
    ],
)
def test_what_cannot_be_run_is_said(settings, options, said):
    done = run("offline", *settings, *options)
    assert done.exit_code != 0 and said in done.output and "Traceback" not in done.output

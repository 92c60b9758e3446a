"""What Ray costs: the arithmetic, and the side without Ray, which really serves."""

from __future__ import annotations

import asyncio

import pytest

from raysgl.bench import load, tax
from raysgl.bench.dialects import Asking
from raysgl.bench.report import Report
from raysgl.bench.tax import MADE_UP, Side
from raysgl.config import EngineConfig


def test_the_tax_is_what_the_stack_takes_more():
    report = Report("tax")
    one = Side([0.010, 0.020, 0.030], {64: [1000.0, 900.0, 2000.0]}, [])
    stack = Side([0.014, 0.022, 0.036], {64: [980.0, 970.0, 990.0]}, [])
    tax.compare(report, one, stack)
    assert report.data["ttft_p50_tax_ms"] == pytest.approx(2.0)
    assert (report.data["rate_64_one"], report.data["rate_64_stack"]) == (1000.0, 980.0)
    assert report.data["rate_64_tax"] == pytest.approx(2.0)


def test_a_request_that_failed_is_no_figure():
    with pytest.raises(ValueError, match="whole stack: HTTP 500"):
        tax.compare(Report("tax"), Side([0.1], {}, []), Side([0.1], {}, ["HTTP 500"]))


@pytest.mark.slow
def test_one_process_serves_the_made_up_model():
    engine = EngineConfig(model_path=MADE_UP, max_total_tokens=2048, device="cpu", grammar_backend="none")
    with tax.made_up(engine) as settings, tax.one_process(settings) as target:
        answers = [asyncio.run(load.complete(target, Asking("bench"), list(range(5, 40)), 9)) for _ in range(2)]
    assert [(answer.error, answer.output_tokens) for answer in answers] == [("", 9), ("", 9)]
    assert [answer.cached_tokens for answer in answers] == [0, 32]

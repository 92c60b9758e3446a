"""GET /metrics under each set of names, what its numbers are, and that the dashboard asks for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raysgl.api.app import create_app
from raysgl.config import ServerConfig
from raysgl.messages import Finish

from .conftest import Server
from .fake_backend import Script

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana_dashboard.json"


async def scrape(fake: Server) -> dict[tuple[str, tuple], float]:
    async with fake.client() as client:
        text = (await client.get("/metrics")).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}
    assert len(found) == len(samples)
    return found


async def asked(fake: Server) -> dict[tuple[str, tuple], float]:
    """The metrics after a request of two answers, one of them streamed, and a bad one."""
    async with fake.client() as client:
        assert (await client.post("/v1/completions", json={"prompt": "xyz", "n": 2})).status_code == 200
        assert (await client.post("/v1/completions", json={"prompt": "xyz", "stream": True})).status_code == 200
        assert (await client.post("/v1/completions", json={})).status_code == 400
        assert (await client.get("/nothing/here")).status_code == 404
    return await scrape(fake)


def script(tokenizer) -> Script:
    return Script(
        [tokenizer.encode("abc"), tokenizer.encode("d"), [2]], Finish("stop", 2), cached_tokens=1, timing=(0.003, 0.03)
    )


def of(metrics: dict, name: str, **labels: str) -> float:
    return metrics[name, tuple(sorted(labels.items()))]


async def test_sglangs_names(server, tokenizer):
    metrics = await asked(server(script(tokenizer)))
    assert of(metrics, "sglang:queue_time_seconds_count", model_name="tiny") == 3
    assert of(metrics, "sglang:queue_time_seconds_sum", model_name="tiny") == pytest.approx(0.009)
    assert of(metrics, "sglang:request_time_per_output_token_seconds_count", model_name="tiny") == 3
    assert of(metrics, "sglang:prompt_tokens_histogram_sum", model_name="tiny") == 6
    assert of(metrics, "sglang:uncached_prompt_tokens_histogram_sum", model_name="tiny") == 4
    assert of(metrics, "sglang:generation_tokens_histogram_sum", model_name="tiny") == 15
    assert of(metrics, "sglang:num_finished_sequences_total", model_name="tiny", finished_reason="stop") == 3
    http = {"endpoint": "/v1/completions", "method": "POST"}
    assert of(metrics, "sglang:http_requests_total", **http) == 3
    assert of(metrics, "sglang:http_responses_total", status_code="200", **http) == 2
    assert of(metrics, "sglang:http_responses_total", status_code="400", **http) == 1
    assert of(metrics, "sglang:http_responses_total", status_code="404", method="GET", endpoint="unknown") == 1
    replica = {"model_name": "tiny", "replica": "replica-0"}
    assert of(metrics, "sglang:realtime_tokens_total", mode="prefill_compute", **replica) == 300
    assert of(metrics, "sglang:realtime_tokens_total", mode="prefill_cache", **replica) == 100
    assert of(metrics, "sglang:kv_available_tokens", **replica) == 800
    assert not [name for name, _ in metrics if name.startswith("vllm:")]


async def test_vllms_names(server, tokenizer):
    metrics = await asked(server(script(tokenizer), metrics_names="vllm"))
    assert of(metrics, "vllm:request_success_total", model_name="tiny", finished_reason="stop") == 3
    assert of(metrics, "vllm:request_queue_time_seconds_count", model_name="tiny") == 3
    assert of(metrics, "vllm:request_prefill_time_seconds_sum", model_name="tiny") == pytest.approx(0.09)
    assert of(metrics, "vllm:request_inference_time_seconds_sum", model_name="tiny") >= 0.09
    assert of(metrics, "vllm:prefix_cache_queries_total", model_name="tiny", replica="replica-0") == 400
    assert of(metrics, "vllm:num_requests_running", model_name="tiny", replica="replica-0") == 3
    assert {name for name, _ in metrics if not name.startswith("vllm:")} == {
        "sglang:http_requests_active",
        "sglang:http_requests_total",
        "sglang:http_responses_total",
    }


async def test_both_names(server, tokenizer):
    both = await asked(server(script(tokenizer), metrics_names="both"))
    assert of(both, "vllm:prompt_tokens_total", model_name="tiny") == of(both, "sglang:prompt_tokens_total", model_name="tiny")


async def test_one_of_several_ingresses_says_which_it_is(server, tokenizer):
    fake = server(script(tokenizer))
    fake.app = create_app(fake.backend, ServerConfig(num_ingress=2), "ingress-a")
    metrics = await asked(fake)
    assert of(metrics, "sglang:num_requests_total", model_name="tiny", ingress="ingress-a") == 2
    assert of(metrics, "sglang:num_running_reqs", model_name="tiny", replica="replica-0") == 3


async def test_the_dashboard_asks_for_what_there_is(server, tokenizer):
    names = {name for name, _ in await asked(server(script(tokenizer)))}
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in dashboard["templating"]["list"]]
    used = {name for query in queries for name in re.findall(r"\w+:\w+", query)}
    assert len(used) > 20
    assert used <= names

"""OpenTelemetry: what a collector gets over OTLP, that traces join the client's, and that it all is off by default."""

from __future__ import annotations

import builtins
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from raysgl.api.tracing import MissingOtel
from raysgl.messages import Finish

from .fake_backend import Script

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list = []
        self.service = ""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.service = plain(resource.resource.attributes)["service.name"]
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"


def plain(attributes) -> dict[str, object]:
    found = {}
    for entry in attributes:
        kind = entry.value.WhichOneof("value")
        value = getattr(entry.value, kind)
        found[entry.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, daemon=True)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


async def traced(fake, *requests: dict) -> None:
    """The requests, and then the app's end, which sends all spans."""
    async with fake.app.router.lifespan_context(fake.app), fake.client() as client:
        for request in requests:
            await client.request(**({"method": "POST", "url": "/v1/completions"} | request))


async def test_a_request_and_its_stages(server, collector, tokenizer):
    script = Script(
        [tokenizer.encode("a"), tokenizer.encode("b"), [2]], Finish("stop", 2), cached_tokens=1, timing=(0.0, 0.001), delay=0.01
    )
    fake = server(script, otlp_traces_endpoint=collector.url, api_key="hush")
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "req-1", "authorization": "Bearer hush"}
    body = {"prompt": "xyz", "temperature": 0.5, "stream": True, "max_tokens": 9}
    await traced(fake, {"json": body, "headers": headers}, {"method": "GET", "url": "/health"})
    spans = {span.name: span for span in collector.spans}
    root = spans.pop("POST /v1/completions")
    assert list(spans) == ["tokenise", "route", "queue", "prefill", "decode"]
    assert collector.service == "raysgl"
    assert root.trace_id.hex() == TRACE
    assert root.parent_span_id.hex() == PARENT
    at = root.start_time_unix_nano
    for span in spans.values():
        assert span.parent_span_id == root.span_id
        assert span.trace_id == root.trace_id
        assert at <= span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
        at = span.start_time_unix_nano
    assert spans["prefill"].end_time_unix_nano == spans["decode"].start_time_unix_nano
    assert spans["decode"].end_time_unix_nano > spans["decode"].start_time_unix_nano
    said = plain(root.attributes)
    assert said["gen_ai.request.model"] == "tiny"
    assert said["gen_ai.operation.name"] == "text_completion"
    assert said["gen_ai.usage.input_tokens"] == 3
    assert said["gen_ai.usage.output_tokens"] == 3
    assert said["gen_ai.usage.cache_read.input_tokens"] == 1
    assert said["gen_ai.request.temperature"] == 0.5
    assert said["gen_ai.request.max_tokens"] == 9
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    assert said["http.response.status_code"] == 200
    assert said["raysgl.request_id"] == "req-1"
    assert said["raysgl.key"] == "api_key"
    assert "hush" not in str(collector.spans)
    assert "xyz" not in str(collector.spans)


async def test_errors_have_spans_too(server, collector):
    fake = server(Script([], error=RuntimeError("secret")), otlp_traces_endpoint=collector.url)
    await traced(fake, {"json": {"prompt": "x"}}, {"json": {}}, {"method": "GET", "url": "/nothing"})
    roots = [span for span in collector.spans if not span.parent_span_id]
    assert [(span.name, plain(span.attributes)["http.response.status_code"], span.status.code) for span in roots] == [
        ("POST /v1/completions", 500, 2),
        ("POST /v1/completions", 400, 0),
        ("GET unknown", 404, 0),
    ]


async def test_sampling(server, collector):
    fake = server(otlp_traces_endpoint=collector.url, otlp_traces_sample_ratio=0.0)
    asked = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    await traced(fake, {"json": {"prompt": "x"}}, {"json": {"prompt": "x"}, "headers": asked})
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}


def test_without_the_packages_it_says_what_to_install(server, monkeypatch):
    real = builtins.__import__

    def gone(name: str, *args: object, **kwargs: object):
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", gone)
    with pytest.raises(MissingOtel, match=r"pip install 'raysgl\[otel\]'"):
        server(otlp_traces_endpoint="http://127.0.0.1:1/v1/traces")


def test_off_it_is_not_even_imported():
    code = (
        "import sys; from raysgl.api.app import create_app; from tests.api.fake_backend import FakeBackend as F;"
        "from types import SimpleNamespace as S; create_app(F(S(name='m'), None));"
        "sys.exit(' '.join(m for m in sys.modules if m.startswith('opentelemetry.sdk')) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

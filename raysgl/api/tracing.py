"""OpenTelemetry traces (setting `otlp_traces_endpoint`): a span for each request, with children for its stages.

Spans are made when the request is over, from the times in its `Call`; a stream's tokens pay nothing for them. The engine says with the
first output how long a sequence waited and was prefilled, so no clock but the ingress's own is used. OpenTelemetry is an extra:
nothing here is imported unless traces are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import raysgl
from raysgl.api.call import Call

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/v1/embeddings": "embeddings",
}
REQUEST_ATTRIBUTES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "n": "choice.count",
    "seed": "seed",
}
"""Sampling parameter -> its name after gen_ai.request."""


class MissingOtel(ValueError):
    """The setting asks for traces, and the packages are not there."""


def otlp_exporter(endpoint: str) -> SpanExporter:
    """MissingOtel. Headers and the like come from OpenTelemetry's environment variables, such as OTEL_EXPORTER_OTLP_HEADERS."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise MissingOtel("otlp_traces_endpoint needs OpenTelemetry's exporter: pip install 'raysgl[otel]'") from None
    return OTLPSpanExporter(endpoint=endpoint)


class Traces:
    """Tells a collector of requests. `sample_ratio` of those that bring no decision of their own are traced."""

    def __init__(self, exporter: SpanExporter, sample_ratio: float = 1.0):
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "raysgl", "service.version": raysgl.__version__})
        self._provider: TracerProvider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(sample_ratio), resource=resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("raysgl", raysgl.__version__)
        self._parent_of: Callable[[dict[str, str]], Any] = TraceContextTextMapPropagator().extract

    def observe(self, call: Call) -> None:
        """A request is over."""
        if call.quiet:
            return
        from opentelemetry import trace

        parent = self._parent_of({name: call.headers.get(name, "") for name in ("traceparent", "tracestate")})
        name = f"{call.method} {call.path or 'unknown'}"
        kind = trace.SpanKind.SERVER
        span = self._tracer.start_span(name, parent, kind, dict(_attributes(call)), start_time=call.started_ns)
        if span.is_recording():
            inside = trace.set_span_in_context(span)
            for stage, (start, end) in _stages(call):
                child = self._tracer.start_span(stage, inside, start_time=_wall(call, start))
                child.end(_wall(call, end))
            if call.status >= 500 or call.status == 0:
                said = "the client went away" if call.status == 0 else None
                span.set_status(trace.Status(trace.StatusCode.ERROR, said))
        span.end(_wall(call, call.ended_at))

    def close(self) -> None:
        """Sends what has not been sent. Blocks."""
        self._provider.shutdown()


def _wall(call: Call, at: float) -> int:
    """time.perf_counter() as nanoseconds of the wall's clock."""
    return call.started_ns + round((at - call.started_at) * 1e9)


def _stages(call: Call) -> Iterator[tuple[str, tuple[float, float]]]:
    if call.tokenised is not None:
        yield "tokenise", call.tokenised
    if not call.routed_at:
        return
    yield "route", (call.submitted_at, call.routed_at)
    if not call.first_token_at:
        return
    if call.queued_s is not None:
        running_at = min(call.routed_at + call.queued_s, call.first_token_at)
        yield "queue", (call.routed_at, running_at)
        yield "prefill", (running_at, call.first_token_at)
    yield "decode", (call.first_token_at, call.generated_at)


def _attributes(call: Call) -> Iterator[tuple[str, Any]]:
    yield "http.request.method", call.method
    yield "http.route", call.path or "unknown"
    yield "http.response.status_code", call.status
    yield "raysgl.request_id", call.request_id
    if call.key is not None:
        yield "raysgl.key", call.key.name
    if call.job is None:
        return
    yield "gen_ai.provider.name", "raysgl"
    yield "gen_ai.operation.name", OPERATIONS.get(call.path, "text_completion")
    yield "gen_ai.request.model", call.model
    yield "gen_ai.response.model", call.model
    yield "gen_ai.response.id", call.request_id
    yield "gen_ai.usage.input_tokens", call.prompt_tokens
    yield "gen_ai.usage.output_tokens", call.completion_tokens
    yield "gen_ai.usage.cache_read.input_tokens", call.cached_tokens
    yield "gen_ai.response.finish_reasons", tuple(call.finish_reasons)
    sampling = call.job.prompts[0].sampling
    for name, shown in REQUEST_ATTRIBUTES.items():
        if (value := getattr(sampling, name)) is not None:
            yield f"gen_ai.request.{shown}", value
    if call.first_token_at:
        yield "gen_ai.server.time_to_first_token", call.first_token_at - call.started_at
    if call.queued_s is not None:
        yield "gen_ai.latency.time_in_queue", call.queued_s
    yield "gen_ai.latency.e2e", call.ended_at - call.started_at

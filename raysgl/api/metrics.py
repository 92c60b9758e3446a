"""GET /metrics: SGLang's names. Requests count into plain numbers; they become Prometheus families when somebody asks.

Nothing is observed per token: a chunk adds its inter-token latency once, weighted with its tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from raysgl.api.backend import Backend
from raysgl.messages import Load

PREFIX = "sglang:"
E2E_BUCKETS = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200, 1800, 2400)
TTFT_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *E2E_BUCKETS[:18])
"""SGLang's, and finer ones below 100 ms for small models."""
ITL_BUCKETS = (
    *(ms / 1000 for ms in (2, 4, 6, 8, 10, 15, 20, 25, 30, 35, 40, 60, 80, 100, 200, 400, 600, 800)),
    *(1, 2, 4, 6, 8),
)


class Histogram:
    """Counts by bucket; `add` takes a value many times at once."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, values up to it), as Prometheus wants them."""
        total, result = 0, []
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts):
            total += count
            result.append((bound, total))
        return result


class ModelStats:
    """One model's requests through this ingress."""

    def __init__(self) -> None:
        self.requests = self.aborted = 0
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0
        self.ttft = Histogram(TTFT_BUCKETS)
        self.itl = Histogram(ITL_BUCKETS)
        self.e2e = Histogram(E2E_BUCKETS)


COUNTERS = (
    ("prompt_tokens", "Prompt tokens of answered requests", "prompt_tokens"),
    ("generation_tokens", "Generated tokens", "generation_tokens"),
    ("cached_tokens", "Prompt tokens found in the prefix cache", "cached_tokens"),
    ("num_requests", "Requests submitted", "requests"),
    ("num_aborted_requests", "Requests that did not end by themselves", "aborted"),
)
HISTOGRAMS = (
    ("time_to_first_token_seconds", "Time to the first token of a sequence", "ttft"),
    ("inter_token_latency_seconds", "Time between tokens of a sequence", "itl"),
    ("e2e_request_latency_seconds", "Time to the end of a request", "e2e"),
)
GAUGES: tuple[tuple[str, str, Callable[[Load, int], float]], ...] = (
    ("num_running_reqs", "Sequences running", lambda load, page: load.running),
    ("num_queue_reqs", "Sequences waiting", lambda load, page: load.waiting),
    ("num_used_tokens", "KV tokens in use (cached ones that could be evicted are not)", lambda load, page: _used(load) * page),
    ("token_usage", "Share of the KV pool in use", lambda load, page: _used(load) / max(1, load.total_pages)),
    ("cache_hit_rate", "Share of prompt tokens found in the cache", lambda load, page: _hit_rate(load)),
    ("gen_throughput", "Generated tokens a second", lambda load, page: load.decode_rate),
    ("max_total_num_tokens", "Size of the KV pool in tokens", lambda load, page: load.total_pages * page),
    ("kv_available_tokens", "KV tokens that are free", lambda load, page: load.free_pages * page),
    ("kv_evictable_tokens", "KV tokens that are cached and not in use", lambda load, page: load.cached_pages * page),
    ("page_size", "Tokens of a KV page", lambda load, page: page),
)


def _used(load: Load) -> int:
    return load.total_pages - load.free_pages - load.cached_pages


def _hit_rate(load: Load) -> float:
    return load.cached_tokens / load.prompt_tokens if load.prompt_tokens else 0.0


class Metrics(Collector):
    """All metrics of one application, in a registry of its own. `open_requests` counts those in progress."""

    def __init__(self, backend: Backend, open_requests: Callable[[], int]):
        self._backend = backend
        self._open_requests = open_requests
        self._stats: dict[str, ModelStats] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def of(self, model: str) -> ModelStats:
        """The numbers that a model's requests count into."""
        stats = self._stats.get(model)
        if stats is None:
            stats = self._stats[model] = ModelStats()
        return stats

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would otherwise collect once to see the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        for model in self._backend.models:
            self.of(model)
        for name, help, attribute in COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, help, labels=["model_name"])
            for model, stats in self._stats.items():
                counter.add_metric([model], getattr(stats, attribute))
            yield counter
        for name, help, attribute in HISTOGRAMS:
            family = HistogramMetricFamily(PREFIX + name, help, labels=["model_name"])
            for model, stats in self._stats.items():
                histogram = getattr(stats, attribute)
                family.add_metric([model], histogram.buckets(), histogram.sum)
            yield family
        yield GaugeMetricFamily(PREFIX + "http_requests_active", "HTTP requests in progress", self._open_requests())
        yield from self._engines()

    def _engines(self) -> Iterator[Metric]:
        loads = [
            (model, replica, load, self._backend.models[model].page_size)
            for model, replicas in self._backend.loads().items()
            if model in self._backend.models
            for replica, load in replicas.items()
        ]
        for name, help, value in GAUGES:
            gauge = GaugeMetricFamily(PREFIX + name, help, labels=["model_name", "replica"])
            for model, replica, load, page in loads:
                gauge.add_metric([model, replica], value(load, page))
            yield gauge
        retracted = CounterMetricFamily(
            PREFIX + "num_retracted_requests", "Sequences retracted for lack of KV memory", labels=["model_name", "replica"]
        )
        for model, replica, load, _ in loads:
            retracted.add_metric([model, replica], load.retractions)
        yield retracted

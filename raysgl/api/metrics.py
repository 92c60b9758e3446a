"""GET /metrics. Requests count into plain numbers; they become Prometheus families when somebody asks.

Nothing is observed per token: a chunk adds its inter-token latency once, weighted with its tokens. The table of what there is, with
SGLang's and vLLM's names, is `metric_table.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from raysgl.api.backend import Backend
from raysgl.api.call import Call
from raysgl.api.metric_table import COUNTERS, HISTOGRAMS, MEASURES, ModelStats
from raysgl.config import MetricsNames


class Metrics(Collector):
    """All metrics of one application, in a registry of its own.

    open_requests: counts those in progress. ingress: whose numbers these are, where there are several ingresses.
    """

    def __init__(
        self, backend: Backend, open_requests: Callable[[], int], names: MetricsNames = "sglang", ingress: str | None = None
    ):
        self._backend = backend
        self._open_requests = open_requests
        self._styles = ("sglang", "vllm") if names == "both" else (names,)
        self._own_labels = {} if ingress is None else {"ingress": ingress}
        self._stats: dict[str, ModelStats] = {}
        self._http: Counter[tuple[str, str, int]] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def of(self, model: str) -> ModelStats:
        """The numbers that a model's requests count into."""
        stats = self._stats.get(model)
        if stats is None:
            stats = self._stats[model] = ModelStats()
        return stats

    def observe(self, call: Call) -> None:
        """A request is over. Paths are the table's, so that strangers cannot make up series."""
        self._http[call.path or "unknown", call.method, call.status] += 1

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would otherwise collect once to see the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        for model in self._backend.models:
            self.of(model)
        for style in self._styles:
            yield from self._requests(style)
            yield from self._replicas(style)
        yield from self._http_requests()

    def _requests(self, style: str) -> Iterator[Metric]:
        own = list(self._own_labels.values())
        labels = ["model_name", *self._own_labels]
        for row in COUNTERS:
            if name := getattr(row, style):
                counter = CounterMetricFamily(f"{style}:{name}", row.help, labels=labels)
                for model, stats in self._stats.items():
                    counter.add_metric([model, *own], getattr(stats, row.attribute))
                yield counter
        for row in HISTOGRAMS:
            if name := getattr(row, style):
                family = HistogramMetricFamily(f"{style}:{name}", row.help, labels=labels)
                for model, stats in self._stats.items():
                    histogram = getattr(stats, row.attribute)
                    family.add_metric([model, *own], histogram.buckets(), histogram.sum)
                yield family
        name = "request_success" if style == "vllm" else "num_finished_sequences"
        finished = CounterMetricFamily(f"{style}:{name}", "Finished sequences by reason", labels=[*labels, "finished_reason"])
        for model, stats in self._stats.items():
            for reason, count in stats.finished.items():
                finished.add_metric([model, *own, reason], count)
        yield finished

    def _replicas(self, style: str) -> Iterator[Metric]:
        models = self._backend.models
        loads = [
            (models[name], replica, load)
            for name, replicas in self._backend.loads().items()
            if name in models
            for replica, load in replicas.items()
        ]
        families: dict[str, Metric] = {}
        for row in MEASURES:
            if name := getattr(row, style):
                kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
                labels = ["model_name", "replica", *(label for label, _ in row.labels)]
                family = families.setdefault(name, kind(f"{style}:{name}", row.help, labels=labels))
                for model, replica, load in loads:
                    family.add_metric([model.name, replica, *(value for _, value in row.labels)], row.value(load, model))
        yield from families.values()

    def _http_requests(self) -> Iterator[Metric]:
        """SGLang's names alone; vLLM takes its from a library."""
        own = list(self._own_labels.values())
        active = GaugeMetricFamily("sglang:http_requests_active", "HTTP requests in progress", labels=list(self._own_labels))
        active.add_metric(own, self._open_requests())
        yield active
        labels = ["endpoint", "method", *self._own_labels]
        requests = CounterMetricFamily("sglang:http_requests", "HTTP requests that are over", labels=labels)
        answers = CounterMetricFamily(
            "sglang:http_responses", "HTTP answers by status; 0: the client went away before", labels=[*labels, "status_code"]
        )
        sums: Counter[tuple[str, str]] = Counter()
        for (path, method, status), count in self._http.items():
            answers.add_metric([path, method, *own, str(status)], count)
            sums[path, method] += count
        for (path, method), count in sums.items():
            requests.add_metric([path, method, *own], count)
        yield requests
        yield answers

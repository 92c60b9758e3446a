"""Which metrics there are: SGLang's name, vLLM's name for the same, and where the number comes from.

Three sources: a model's requests through this ingress (`ModelStats`), the load that a replica reports with its steps (`Load`), and
HTTP. Names are without prefix; counters get `_total`. An empty name: that server has no such metric.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from raysgl.api.histogram import E2E_BUCKETS, ITL_BUCKETS, TOKEN_BUCKETS, TTFT_BUCKETS, Histogram
from raysgl.api.served_model import ServedModel
from raysgl.messages import Load


class ModelStats:
    """One model's requests through this ingress."""

    def __init__(self) -> None:
        self.requests = self.aborted = 0
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0
        self.finished: Counter[str] = Counter()
        """Sequences by reason."""
        self.ttft = Histogram(TTFT_BUCKETS)
        self.itl = Histogram(ITL_BUCKETS)
        self.e2e = Histogram(E2E_BUCKETS)
        self.tpot = Histogram(ITL_BUCKETS)
        self.queue = Histogram(TTFT_BUCKETS)
        self.prefill = Histogram(TTFT_BUCKETS)
        self.decode = Histogram(E2E_BUCKETS)
        self.inference = Histogram(E2E_BUCKETS)
        self.prompt_lengths = Histogram(TOKEN_BUCKETS)
        self.uncached_lengths = Histogram(TOKEN_BUCKETS)
        self.answer_lengths = Histogram(TOKEN_BUCKETS)


@dataclass(frozen=True)
class Stat:
    """Of `ModelStats`: an attribute that is a number (a counter) or a histogram."""

    sglang: str
    vllm: str
    help: str
    attribute: str


COUNTERS = (
    Stat("prompt_tokens", "prompt_tokens", "Prompt tokens of answered requests", "prompt_tokens"),
    Stat("generation_tokens", "generation_tokens", "Generated tokens", "generation_tokens"),
    Stat("cached_tokens", "prompt_tokens_cached", "Prompt tokens found in the prefix cache", "cached_tokens"),
    Stat("num_requests", "", "Requests submitted", "requests"),
    Stat("num_aborted_requests", "", "Requests that did not end by themselves", "aborted"),
)
HISTOGRAMS = (
    Stat("time_to_first_token_seconds", "time_to_first_token_seconds", "Time to the first token of a sequence", "ttft"),
    Stat("inter_token_latency_seconds", "inter_token_latency_seconds", "Time between tokens of a sequence", "itl"),
    Stat("e2e_request_latency_seconds", "e2e_request_latency_seconds", "Time to the end of a request", "e2e"),
    Stat(
        "request_time_per_output_token_seconds",
        "request_time_per_output_token_seconds",
        "A sequence's average time between tokens",
        "tpot",
    ),
    Stat("queue_time_seconds", "request_queue_time_seconds", "Time that a prompt waited in the engine", "queue"),
    Stat("", "request_prefill_time_seconds", "Time from the queue to the first token", "prefill"),
    Stat("", "request_decode_time_seconds", "Time from the first token to the last", "decode"),
    Stat("", "request_inference_time_seconds", "Time from the queue to the last token", "inference"),
    Stat("prompt_tokens_histogram", "request_prompt_tokens", "Tokens of a prompt", "prompt_lengths"),
    Stat("uncached_prompt_tokens_histogram", "", "Tokens of a prompt that were not cached", "uncached_lengths"),
    Stat("generation_tokens_histogram", "request_generation_tokens", "Tokens of an answer", "answer_lengths"),
)


@dataclass(frozen=True)
class Measure:
    """Of a replica's `Load`. `labels` beside model_name and replica, and their values."""

    sglang: str
    vllm: str
    help: str
    value: Callable[[Load, ServedModel], float]
    kind: Literal["gauge", "counter"] = "gauge"
    labels: tuple[tuple[str, str], ...] = ()


def _used(load: Load) -> int:
    return load.total_pages - load.free_pages - load.cached_pages


def _mode(mode: str) -> tuple[tuple[str, str], ...]:
    return (("mode", mode),)


REALTIME = "Tokens computed, and found in the cache"
# fmt: off
MEASURES = (
    Measure("num_running_reqs", "num_requests_running", "Sequences running", lambda load, _: load.running),
    Measure("num_queue_reqs", "num_requests_waiting", "Sequences waiting", lambda load, _: load.waiting),
    Measure("queue_expected_wait_seconds", "", "How long a new request would wait for its turn", lambda load, _: load.queue_seconds),
    Measure("num_queue_tokens", "", "Prompt tokens not computed yet", lambda load, _: load.queued_tokens),
    Measure("token_usage", "kv_cache_usage_perc", "Share of the KV pool in use",
            lambda load, _: _used(load) / max(1, load.total_pages)),
    Measure("num_used_tokens", "", "KV tokens in use (cached ones that could be evicted are not)",
            lambda load, model: _used(load) * model.page_size),
    Measure("kv_used_tokens", "", "The same", lambda load, model: _used(load) * model.page_size),
    Measure("kv_available_tokens", "", "KV tokens that are free", lambda load, model: load.free_pages * model.page_size),
    Measure("kv_evictable_tokens", "", "KV tokens that are cached and not in use",
            lambda load, model: load.cached_pages * model.page_size),
    Measure("max_total_num_tokens", "", "Size of the KV pool in tokens", lambda load, model: load.total_pages * model.page_size),
    Measure("num_pages", "", "Size of the KV pool in pages", lambda load, _: load.total_pages),
    Measure("page_size", "", "Tokens of a KV page", lambda _, model: model.page_size),
    Measure("context_len", "", "Tokens that prompt and answer may have", lambda _, model: model.context_length),
    Measure("cache_hit_rate", "", "Share of prompt tokens found in the cache",
            lambda load, _: load.cached_tokens / load.prompt_tokens if load.prompt_tokens else 0.0),
    Measure("gen_throughput", "", "Generated tokens a second", lambda load, _: load.decode_rate),
    Measure("prefill_throughput", "", "Prompt tokens computed a second, while prompts are computed",
            lambda load, _: load.prefill_rate),
    Measure("step_seconds", "", "Time of a step, on average", lambda load, _: load.step_seconds),
    Measure("utilization", "", "Share of the sequences that may run at a time",
            lambda load, _: load.running / max(1, load.max_running)),
    Measure("num_retracted_requests", "num_preemptions", "Sequences retracted for lack of KV memory",
            lambda load, _: load.retractions, "counter"),
    Measure("num_grammar", "", "Constraints compiled, refused ones among them",
            lambda load, _: load.grammars_compiled, "counter"),
    Measure("num_grammar_aborted", "", "Constraints refused", lambda load, _: load.grammars_refused, "counter"),
    Measure("num_grammar_cache_hit", "", "Constraints that were compiled already", lambda load, _: load.grammar_hits, "counter"),
    Measure("grammar_compilation_seconds", "", "Time that compiling constraints took",
            lambda load, _: load.grammar_seconds, "counter"),
    Measure("num_steps", "", "Forward passes", lambda load, _: load.steps, "counter"),
    Measure("realtime_tokens", "", REALTIME, lambda load, _: load.prompt_tokens - load.cached_tokens, "counter",
            _mode("prefill_compute")),
    Measure("realtime_tokens", "", REALTIME, lambda load, _: load.cached_tokens, "counter", _mode("prefill_cache")),
    Measure("realtime_tokens", "", REALTIME, lambda load, _: load.generated_tokens, "counter", _mode("decode")),
    Measure("", "prefix_cache_queries", "Prompt tokens looked up in the cache", lambda load, _: load.prompt_tokens, "counter"),
    Measure("", "prefix_cache_hits", "Prompt tokens found in the cache", lambda load, _: load.cached_tokens, "counter"),
)
# fmt: on

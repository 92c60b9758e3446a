"""What travels between processes: msgspec structs, msgpack on the wire, never a pickle.

A leaf that every package may import; it imports only `raysgl.sampling.params`.

Token id lists travel as little-endian int32 bytes (`pack_ids` / `unpack_ids`): 20 times cheaper to encode than a list.
"""

from __future__ import annotations

from array import array
from typing import Literal, get_args

import msgspec

from raysgl.sampling.params import SamplingParams

Level = Literal["debug", "info", "warning", "error", "critical"]
"""How much is logged."""


def pack_ids(ids: list[int]) -> bytes:
    """Token ids as little-endian int32 bytes."""
    return array("i", ids).tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """The inverse of `pack_ids`."""
    ids = array("i")
    ids.frombytes(data)
    return ids.tolist()


# ------------------------------------------------------------------ ingress -> engine


class Submit(msgspec.Struct, array_like=True, tag=True):
    """Run `sampling.n` sequences of one prompt; their uids are `uid`, `uid + 1`, ...

    `ingress` names the ingress that the tokens go to, `address` the socket it pulls from and `address_key` that socket's
    CURVE public key. `page_hashes` is the prompt's chain (`raysgl.cache.hashing`), one for each full page.
    `output_ids` holds tokens that the client has already been sent when a request moves here from a replica that died:
    they count as output, and only new ones are sent. (Only with n == 1.)
    `first_segment`: for models that read two texts as one, how many tokens belong to the first (0: there is one text).
    `waited_s`: seconds since the ingress was asked. A request that moves here keeps its place in the queue.
    `accepted`: another replica had taken it, so it is not refused because the queue is full.
    `timeout_s`: seconds until nobody wants the answer any more; 0: never.
    """

    uid: int
    request_id: str
    ingress: str
    input_ids: bytes
    sampling: SamplingParams
    page_hashes: list[int]
    extra_key: str = ""
    priority: int = 0
    output_ids: bytes = b""
    first_segment: int = 0
    waited_s: float = 0.0
    accepted: bool = False
    timeout_s: float = 0.0


class Abort(msgspec.Struct, array_like=True, tag=True):
    """Forget these sequences; nothing more is sent about them."""

    ingress: str
    uids: list[int]


class AbortRequest(msgspec.Struct, array_like=True, tag=True):
    """End the request with exactly this id, or all (None), of other ingresses than this one, which hear of it."""

    ingress: str
    request_id: str | None


class Hello(msgspec.Struct, array_like=True, tag=True):
    """An ingress introduces itself: where its PULL socket is and that socket's CURVE public key (empty: no CURVE)."""

    ingress: str
    address: str
    public_key: bytes


class FlushCache(msgspec.Struct, array_like=True, tag=True):
    """Drop the cached prefixes (only when idle). Answered with a `Done`."""

    ingress: str
    uid: int


class ProfileRequest(msgspec.Struct, array_like=True):
    """What to record of the steps to come, and where: see `raysgl.engine.profiling`. activities: of CPU and GPU. num_steps: 0
    means until it is stopped. profile_id: the files' names begin with it."""

    folder: str
    profile_id: str
    activities: list[str]
    num_steps: int = 0
    with_stack: bool = False
    record_shapes: bool = False


class Profile(msgspec.Struct, array_like=True, tag=True):
    """Every shard begins to record its steps, or (None) stops and writes the trace. Answered with a `Done`."""

    ingress: str
    uid: int
    start: ProfileRequest | None


MemoryTag = Literal["weights", "kv_cache", "cuda_graph"]
MEMORY_TAGS: tuple[MemoryTag, ...] = get_args(MemoryTag)
"""Parts of a shard's memory that can be given back while it is idle."""


class MemoryChange(msgspec.Struct, array_like=True):
    """Give these parts of the memory back (release), or take them again."""

    release: bool
    tags: list[MemoryTag]


class ChangeMemory(msgspec.Struct, array_like=True, tag=True):
    """Every shard does so; to release is refused unless idle. Answered with a `Done`."""

    ingress: str
    uid: int
    change: MemoryChange


class WeightsUpdate(msgspec.Struct, array_like=True):
    """Weights of a checkpoint on every shard's disk, of the same architecture. version: what they are called; None: as before.

    abort_all: requests end; else what runs is waited for. flush_cache: drop the cached prefixes. recapture: CUDA graphs, which need
    it not. empty_cache: torch gives back the memory that it keeps.
    """

    model_path: str
    load_format: str = "auto"
    version: str | None = None
    abort_all: bool = False
    flush_cache: bool = True
    recapture: bool = False
    empty_cache: bool = False


class UpdateWeights(msgspec.Struct, array_like=True, tag=True):
    """Every shard loads these weights. Answered with a `Done`."""

    ingress: str
    uid: int
    update: WeightsUpdate


DEFAULT_VERSION = "default"
"""What weights are called that nobody has given a name (SGLang's word)."""


class LoadedWeights(msgspec.Struct, array_like=True, frozen=True):
    """What an update brought, instead of what the engine's config says (`EngineConfig.source`)."""

    model_path: str
    load_format: str
    version: str = DEFAULT_VERSION
    instead_of: str = ""


class LogSettings(msgspec.Struct, array_like=True):
    """How a process logs; None: as before. form: of a line. requests: whether requests are logged (`raysgl.api.request_log`),
    and in which detail. folder: where files go instead of stderr; only at the start."""

    level: Level | None = None
    form: Literal["text", "json"] | None = None
    requests: bool | None = None
    requests_level: int | None = None
    folder: str | None = None


class SetLogs(msgspec.Struct, array_like=True, tag=True):
    """Every shard, and every ingress that the engine knows, logs like this from now on. Answered with a `Done`."""

    ingress: str
    uid: int
    change: LogSettings


ShardCommand = Profile | SetLogs | ChangeMemory | UpdateWeights
"""What all shards of an engine carry out."""
Command = FlushCache | ShardCommand
ToEngine = Submit | Abort | AbortRequest | Hello | Command


# ------------------------------------------------------------------ engine -> ingress

FinishReason = Literal["stop", "length", "abort", "error"]


class Finish(msgspec.Struct, array_like=True):
    """Why a sequence ended. `matched` is the stop token id. `abort` and `error` carry a `message` and `status`
    (an HTTP status; 503, the replica is stopping, and 429, its queue is full, are retryable elsewhere), and `param`, the sampling parameter at fault, where it is one."""

    reason: FinishReason
    matched: int | None = None
    message: str = ""
    status: int = 0
    retractions: int = 0
    """How often the sequence had to give its memory back and start over."""
    param: str = ""
    retry_after: float = 0.0
    """With status 429: in how many seconds trying again makes sense."""


class TokenLogprob(msgspec.Struct, array_like=True):
    """Log probability of one token and its most probable alternatives, best first. `asked`: those of the tokens in the request's
    `token_ids_logprob`, in its order. `rank`: 1 for the most probable token; of prompt tokens only (0: not known)."""

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]] = []
    asked: list[float] = []
    rank: int = 0


class SequenceOutput(msgspec.Struct, array_like=True):
    """What is new about one sequence. `cached_tokens`, `prompt_logprobs` and `timing` come with the first output only.

    timing: seconds that the sequence waited in the engine, and from then to this output.

    The token that matched a stop id is in `token_ids` (it counts in usage; the ingress does not show it).

    numbers: what a model that generates no text made of it (a vector, or a number for each label), little-endian float32.
    """

    uid: int
    token_ids: list[int]
    finish: Finish | None = None
    logprobs: list[TokenLogprob] | None = None
    cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    timing: tuple[float, float] | None = None
    numbers: bytes = b""


class Done(msgspec.Struct, array_like=True, tag=True):
    """The answer to a `Command`."""

    uid: int
    ok: bool
    message: str


class Logs(msgspec.Struct, array_like=True, tag=True):
    """Log like this: a `SetLogs` that reached another ingress."""

    change: LogSettings


class Here(msgspec.Struct, array_like=True, tag=True):
    """The answer to a `Hello` of an ingress that the engine knows already."""


class StepOutput(msgspec.Struct, array_like=True, tag=True):
    """One message per step and ingress. `sent_at` is time.monotonic() of the engine process, for latency metrics on one host."""

    replica: str
    epoch: int
    step: int
    sent_at: float
    outputs: list[SequenceOutput]
    load: Load | None = None


ToIngress = StepOutput | Done | Logs | Here


# ------------------------------------------------------------------ engine -> coordinator -> ingress mirrors


class ReplicaFacts(msgspec.Struct, array_like=True):
    """What a replica turned out to be; travels in `ReplicaInfo.keys["facts"]`. Sizes in tokens. max_total_tokens: of the KV cache;
    0: there is none. task: what it does with a text.

    started_at: when it began to start, as time.time(). startup: seconds of each phase from then until it served, in order.
    """

    device: str
    tp_size: int
    max_total_tokens: int
    context_length: int
    max_running: int
    node: str = ""
    task: Literal["generate", "embed", "classify", "score"] = "generate"
    started_at: float = 0.0
    startup: dict[str, float] = {}


class Load(msgspec.Struct, array_like=True):
    """How busy a replica is, and how fast it has been found to be.

    Rates are tokens per second, measured over recent steps (0 until measured). `queued_tokens` counts the prompt tokens not
    yet computed of waiting and prefilling requests. `ttft` is the average time from a request's arrival at the engine to its first
    token, in seconds. `hot_pages` are cached and were found by a request in the last minutes. Constraints that were compiled took
    `grammar_seconds` together; `grammar_hits` were compiled already. `queue_seconds` is how long a request that comes now is expected to
    wait for its turn; if it is `full`, it is refused. While parts of its memory are `released`, every request is.
    """

    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    free_pages: int = 0
    cached_pages: int = 0
    total_pages: int = 0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    step_seconds: float = 0.0
    retractions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    max_running: int = 0
    steps: int = 0
    ttft: float = 0.0
    hot_pages: int = 0
    grammars_compiled: int = 0
    grammars_refused: int = 0
    grammar_hits: int = 0
    grammar_seconds: float = 0.0
    queue_seconds: float = 0.0
    full: bool = False
    released: tuple[MemoryTag, ...] = ()
    weights: LoadedWeights | None = None
    """None: those of the config."""
    changes: int = 0
    """How often memory or weights have changed: of two reports with as many steps, which one is newer."""


class PagesStored(msgspec.Struct, array_like=True, tag="s"):
    """These pages are now cached. `hashes` is a run of one chain; `parent` the hash before it (0 at the root)."""

    parent: int
    hashes: list[int]


class PagesRemoved(msgspec.Struct, array_like=True, tag="r"):
    """These pages are no longer cached."""

    hashes: list[int]


class CacheCleared(msgspec.Struct, array_like=True, tag="c"):
    """Nothing is cached any more."""


KVEvent = PagesStored | PagesRemoved | CacheCleared


class KVEvents(msgspec.Struct, array_like=True, tag=True):
    """A batch of cache events of one replica. `sequence` counts the batches of this `epoch` from 0 without gaps.

    shard: of the coordinator, whose part of the index it is for (`raysgl.cache.hashing.shard_of`); each is numbered on its own.
    mark: whoever applies it takes down what it then knows of the replica's cache, as a `CacheMark` (2: with the hashes), so that
    views which are never at the same place at the same time can be compared.
    """

    replica: str
    epoch: int
    sequence: int
    events: list[KVEvent]
    load: Load | None = None
    shard: int = 0
    mark: Literal[0, 1, 2] = 0


class CacheMark(msgspec.Struct, array_like=True):
    """What a replica has cached, of one coordinator shard's part, after batch `sequence` of its `epoch`, as somebody sees it.
    digest: all page hashes XORed. hashes: packed as uint64, sorted, where they were asked for."""

    replica: str
    epoch: int
    shard: int
    sequence: int
    pages: int
    digest: int
    hashes: bytes | None = None


class CacheReport(msgspec.Struct, array_like=True):
    """A replica's own marks, one for each coordinator shard, from a walk of its radix tree, and the pages of its pool at that moment.
    in_use: of running sequences, not in the tree."""

    marks: list[CacheMark]
    free: int
    in_use: int
    pool: int

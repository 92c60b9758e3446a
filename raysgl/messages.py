"""What travels between processes: msgspec structs, msgpack on the wire, never a pickle.

A leaf that every package may import; it imports only `raysgl.sampling.params`.

Token id lists travel as little-endian int32 bytes (`pack_ids` / `unpack_ids`): 20 times cheaper to encode than a list.
"""

from __future__ import annotations

from array import array
from typing import Literal

import msgspec

from raysgl.sampling.params import SamplingParams


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


class Abort(msgspec.Struct, array_like=True, tag=True):
    """Forget these sequences; nothing more is sent about them."""

    ingress: str
    uids: list[int]


class Hello(msgspec.Struct, array_like=True, tag=True):
    """An ingress introduces itself: where its PULL socket is and that socket's CURVE public key (empty: no CURVE)."""

    ingress: str
    address: str
    public_key: bytes


class FlushCache(msgspec.Struct, array_like=True, tag=True):
    """Drop the cached prefixes (only when idle). Answered with a `Flushed`."""

    ingress: str
    uid: int


ToEngine = Submit | Abort | Hello | FlushCache


# ------------------------------------------------------------------ engine -> ingress

FinishReason = Literal["stop", "length", "abort", "error"]


class Finish(msgspec.Struct, array_like=True):
    """Why a sequence ended. `matched` is the stop token id. `abort` and `error` carry a `message` and `status`
    (an HTTP status: 503 is retryable elsewhere), and `param`, the sampling parameter at fault, where it is one."""

    reason: FinishReason
    matched: int | None = None
    message: str = ""
    status: int = 0
    retractions: int = 0
    """How often the sequence had to give its memory back and start over."""
    param: str = ""


class TokenLogprob(msgspec.Struct, array_like=True):
    """Log probability of one token and its most probable alternatives, best first. `asked`: those of the tokens in the request's
    `token_ids_logprob`, in its order. `rank`: 1 for the most probable token; of prompt tokens only (0: not known)."""

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]] = []
    asked: list[float] = []
    rank: int = 0


class SequenceOutput(msgspec.Struct, array_like=True):
    """What is new about one sequence. `cached_tokens` and `prompt_logprobs` come with the first output only.

    The token that matched a stop id is in `token_ids` (it counts in usage; the ingress does not show it).
    """

    uid: int
    token_ids: list[int]
    finish: Finish | None = None
    logprobs: list[TokenLogprob] | None = None
    cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


class Flushed(msgspec.Struct, array_like=True, tag=True):
    """The answer to `FlushCache`."""

    uid: int
    ok: bool
    message: str


class StepOutput(msgspec.Struct, array_like=True, tag=True):
    """One message per step and ingress. `sent_at` is time.monotonic() of the engine process, for latency metrics on one host."""

    replica: str
    epoch: int
    step: int
    sent_at: float
    outputs: list[SequenceOutput]
    load: Load | None = None


ToIngress = StepOutput | Flushed


# ------------------------------------------------------------------ engine -> coordinator -> ingress mirrors


class Load(msgspec.Struct, array_like=True):
    """How busy a replica is, and how fast it has been found to be.

    Rates are tokens per second, measured over recent steps (0 until measured). `queued_tokens` counts the prompt tokens not
    yet computed of waiting and prefilling requests. `ttft` is the average time from a request's arrival at the engine to its first
    token, in seconds. `hot_pages` are cached and were found by a request in the last minutes.
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
    """A batch of cache events of one replica. `sequence` counts the batches of this `epoch` from 0 without gaps."""

    replica: str
    epoch: int
    sequence: int
    events: list[KVEvent]
    load: Load | None = None

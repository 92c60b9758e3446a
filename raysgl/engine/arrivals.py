"""A request becomes sequences, or is refused because it can never run. No torch, no Ray."""

from __future__ import annotations

import math
from collections.abc import Iterator

from raysgl.cache.hashing import page_hashes as chain_of
from raysgl.engine.sequence import Sequence
from raysgl.engine.think_budget import ThinkBudget
from raysgl.engine.waiting import turn_of
from raysgl.messages import Finish, Submit, unpack_ids


def refusal(submit: Submit, context_length: int, pool_tokens: int, constrained: bool) -> Finish | None:
    """Why it can never run here. constrained: constraints can be followed."""
    limit = min(context_length, pool_tokens)
    length, sampling = len(submit.input_ids) // 4, submit.sampling
    if not length:
        return Finish("error", message="the prompt is empty", status=400)
    if length + (1 if sampling.max_new_tokens != 0 else 0) > limit:
        what = "context length" if limit == context_length else "KV cache (max_total_tokens)"
        return Finish("error", message=f"the prompt has {length} tokens, but the {what} holds {limit}", status=400)
    if sampling.constraint is not None and not constrained:
        return Finish("error", message="grammar_backend is none", status=400, param="constraint")
    return None


def sequences(
    submit: Submit, limit: int, page_size: int, eos_token_ids: tuple[int, ...], arrivals: Iterator[int], now: float
) -> list[Sequence]:
    """Its `n` sequences. limit: tokens that one may have. arrivals: numbers them. now: time.monotonic()."""
    prompt, sent = unpack_ids(submit.input_ids), unpack_ids(submit.output_ids)
    sampling = submit.sampling
    room = limit - len(prompt)
    asked = room if sampling.max_new_tokens is None else min(sampling.max_new_tokens, room)
    stop_ids = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stop_ids.update(eos_token_ids)
    hashes = submit.page_hashes
    if len(hashes) != len(prompt) // page_size:  # it was hashed for a replica of before an update
        hashes = chain_of(submit.input_ids, page_size, submit.extra_key)
    return [
        Sequence(
            uid=submit.uid + i,
            ingress=submit.ingress,
            request_id=submit.request_id,
            sampling=sampling,
            seed=sampling.seed_of(i),
            stop_ids=frozenset(stop_ids),
            tokens=prompt + sent,
            num_prompt=len(prompt),
            max_tokens=len(prompt) + asked,
            page_hashes=hashes,
            extra_key=submit.extra_key,
            priority=submit.priority,
            accepted=submit.accepted,
            deadline=now + submit.timeout_s if submit.timeout_s else math.inf,
            budget=ThinkBudget.of(sampling, sent),
            arrival=next(arrivals),
            added_at=now,
            turn=turn_of(now - submit.waited_s, submit.priority),
        )
        for i in range(sampling.n)
    ]

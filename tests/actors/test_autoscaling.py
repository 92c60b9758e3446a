"""Replicas come and go with the load, on a real local Ray."""

from __future__ import annotations

import json
import math
import threading
import time

import pytest

from raysgl.routing.hot_prefixes import HALF_LIFE_S

pytestmark = pytest.mark.cluster


def prompt(first: int, length: int) -> list[int]:
    return [(first * 31 + i * 7) % 200 + 3 for i in range(length)]


def test_to_zero_and_back_with_the_first_request_waiting(launch):
    scaling = {"min_replicas": 0, "max_replicas": 2, "downscale_delay_s": 1.0}
    app = launch("sleepy", {"tiny": {"autoscaling": scaling}}, show_hot_prefix_text=True)
    text = app.complete(prompt(1, 20), 8)["choices"][0]["text"]
    wait_for(app, 0)
    assert app.ready(), "asleep is ready"
    assert app.complete(prompt(1, 20), 8)["choices"][0]["text"] == text
    wait_for(app, 1)
    # What is asked for again and again keeps the replica.
    for _ in range(3):
        app.complete(prompt(1, 20), 8)
    (hot,) = loads(app)["hot_prefixes"]
    assert (hot["tokens"], hot["replicas"]) == (16, 1) and hot["text"]
    assert 0 < hot["hits_per_second"] <= 3 * math.log(2) / HALF_LIFE_S * (1 + 1e-9)
    wait_for_decision(app, (1, 1))
    kept, woken, slept, *_ = loads(app)["scaling_decisions"]
    assert "hot prefixes" in kept["reason"] and kept["figures"]["hot_use"] > 0
    assert (woken["from"], woken["to"], slept["from"], slept["to"]) == (0, 1, 1, 0)


def test_more_replicas_while_prompt_tokens_wait(launch):
    scaling = {"max_replicas": 2, "target_queue_s": 0.05, "upscale_delay_s": 0.5, "downscale_delay_s": 2.0}
    settings = {"autoscaling": scaling, "max_queued_requests": 1000, "chunked_prefill_size": 64, "context_length": 1024}
    app = launch("busy", {"tiny": settings})
    stop = threading.Event()

    def ask(first: int) -> None:
        while not stop.is_set():
            first += 100
            app.complete(prompt(first, 900), 2)

    askers = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for asker in askers:
        asker.start()
    try:
        wait_for(app, 2)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    wait_for(app, 1)
    shrunk, grown = (made for made in loads(app)["scaling_decisions"] if made["from"] != made["to"])
    assert (grown["from"], grown["to"], shrunk["from"], shrunk["to"]) == (1, 2, 2, 1)
    assert "uncached prompt tokens wait" in grown["reason"] and grown["figures"]["queued_tokens"] > 0


def loads(app) -> dict:
    return json.loads(app.get("/v1/loads")[1])


def wait_for_decision(app, change: tuple[int, int], seconds: float = 60) -> None:
    """Until the newest decision is this one."""
    limit = time.monotonic() + seconds
    while not (made := loads(app)["scaling_decisions"]) or (made[0]["from"], made[0]["to"]) != change:
        assert time.monotonic() < limit, made
        time.sleep(0.1)


def wait_for(app, replicas: int, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while len(app.status().serving.get("tiny", ())) != replicas:
        assert time.monotonic() < limit, app.status()
        time.sleep(0.1)

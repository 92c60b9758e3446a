"""Replicas come and go with the load, on a real local Ray."""

from __future__ import annotations

import threading
import time

import pytest

pytestmark = pytest.mark.cluster


def prompt(first: int, length: int) -> list[int]:
    return [(first * 31 + i * 7) % 200 + 3 for i in range(length)]


def test_to_zero_and_back_with_the_first_request_waiting(launch):
    scaling = {"min_replicas": 0, "max_replicas": 2, "downscale_delay_s": 1.0}
    app = launch("sleepy", {"tiny": {"autoscaling": scaling}})
    text = app.complete(prompt(1, 20), 8)["choices"][0]["text"]
    wait_for(app, 0)
    assert app.ready(), "asleep is ready"
    assert app.complete(prompt(1, 20), 8)["choices"][0]["text"] == text
    wait_for(app, 1)


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


def wait_for(app, replicas: int, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while len(app.status().serving.get("tiny", ())) != replicas:
        assert time.monotonic() < limit, app.status()
        time.sleep(0.1)

"""A new replica of a model whose files are gone: it gets weights, config and tokenizer from a live one, on a real local Ray."""

from __future__ import annotations

import shutil
import threading

import pytest

from tests.actors.conftest import processes
from tests.actors.test_autoscaling import prompt, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_scaling_up_without_a_disk(launch, served_checkpoint, tmp_path):
    folder = shutil.copytree(served_checkpoint, tmp_path / "tiny-llama")
    scaling = {"max_replicas": 2, "target_queue_s": 0.05, "upscale_delay_s": 0.5, "downscale_delay_s": 600.0}
    settings = {"autoscaling": scaling, "max_queued_requests": 1000, "chunked_prefill_size": 64, "context_length": 1024}
    app = launch("lent", {"tiny": {"model_path": str(folder), "tp_size": 2, **settings}})
    ask = prompt(3, 40)
    text = app.complete(ask, 200)["choices"][0]["text"]
    lenders = processes("ray::ModelShard")
    shutil.rmtree(folder)
    stop = threading.Event()

    def press(first: int) -> None:
        while not stop.is_set():
            first += 100
            app.complete(prompt(first, 900), 2)

    pressing = [threading.Thread(target=press, args=(i,)) for i in range(16)]
    for thread in pressing:
        thread.start()
    try:
        wait_for(app, 2)
    finally:
        stop.set()
        for thread in pressing:
            thread.join()
    # Only the one that borrowed is left; and what is started in the other's place borrows from it.
    lenders[0].kill()
    assert app.complete(ask, 200)["choices"][0]["text"] == text
    app.wait_serving(2)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    said = app.complete(ask, 40, ignore_eos=False, json_schema=schema)
    assert said["choices"][0]["text"].lstrip().startswith("{"), "constraints need the tokenizer that came along"

"""New weights for a model while it serves, and for replicas of it that start later; on a real local Ray. (`test_tensor_parallel` has
shards.)"""

from __future__ import annotations

import json
import time
import urllib.error

import pytest

from tests.actors.conftest import processes

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROMPT = [(i * 11) % 200 + 3 for i in range(60)]


def test_new_weights_everywhere(launch, served_checkpoint, other_checkpoint):
    app = launch("renewed", {"tiny": {"num_replicas": 2}})
    app.wait_serving(2)

    def texts() -> list[str]:
        """So many that both replicas are asked."""
        return [app.complete([7 * i, *PROMPT], 24)["choices"][0]["text"] for i in range(8)]

    def info() -> tuple[str, str]:
        found = json.loads(app.get("/model_info")[1])
        return found["model_path"], found["weight_version"]

    before = texts()
    whole = app.stream(PROMPT, 400).read().texts[0]
    stream = app.stream(PROMPT, 400).read(3)
    answer = app.post("/update_weights_from_disk", {"model_path": str(other_checkpoint), "weight_version": "step-1"})
    assert answer["success"] and len(answer["replicas"]) == 2
    assert stream.read().texts[0] == whole, "what ran has ended with the weights that it began with"
    assert info() == (str(other_checkpoint), "step-1")
    after = texts()
    assert not set(after) & set(before)
    assert app.idle() and app.index_is_exact(views=2)

    for path in ("/nowhere", str(served_checkpoint.parent)):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            app.post("/update_weights_from_disk", {"model_path": path})
        assert refusal.value.code == 400 and path in refusal.value.read().decode()
    assert info() == (str(other_checkpoint), "step-1") and texts() == after

    # Who replaces a lost replica has what the other one has.
    started = {facts.started_at for facts in app.status().serving["tiny"]}
    processes("ray::ModelShard")[0].kill()
    limit = time.monotonic() + 60
    while len(serving := app.status().serving.get("tiny", [])) != 2 or {facts.started_at for facts in serving} == started:
        assert time.monotonic() < limit, serving
        time.sleep(0.1)
    app.wait_ready()
    assert texts() == after and info() == (str(other_checkpoint), "step-1")

"""Two models behind one ingress, one of them in two shards: the followers execute the first one's plans, and the text is the same."""

import json
import urllib.error

import pytest

from tests.actors.conftest import processes

pytestmark = pytest.mark.cluster

PROMPT = [(i * 11) % 200 + 3 for i in range(300)]


@pytest.fixture(scope="module")
def app(launch):
    return launch("models", {"one": {}, "two": {"tp_size": 2}})


def test_two_shards_say_what_one_says_and_die_together(app):
    expected = app.complete(PROMPT, 64, model="one")["choices"][0]["text"]
    assert app.complete(PROMPT, 64, model="two")["choices"][0]["text"] == expected
    shards = processes("ray::ModelShard")
    assert len(shards) == 3
    for shard in shards[:2]:  # one of them, at least, is half of a replica
        streams = [app.stream(PROMPT, 64, model=model).read(3) for model in ("one", "two")]
        shard.kill()
        assert [stream.read().texts[0] for stream in streams] == [expected] * 2
        app.wait_serving(1, "one")
        app.wait_serving(1, "two")


def test_memory_is_released_and_comes_back(app):
    expected = app.complete(PROMPT, 32, model="two")["choices"][0]["text"]
    assert app.complete(PROMPT, 32, model="one")["choices"][0]["text"] == expected
    assert app.idle() and app.index_is_exact(views=2)
    released = app.post("/release_memory_occupation", {})["replicas"]
    assert len(released) == 2 and {said["message"] for said in released.values()} == {"released: weights, kv_cache, cuda_graph"}
    for model in ("one", "two"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            app.complete(PROMPT, 4, model=model)
        assert refusal.value.code == 503 and refusal.value.headers["Retry-After"]
        assert "/resume_memory_occupation" in refusal.value.read().decode()
    assert app.get("/ready")[0] == 200 and app.get("/health_generate", 30)[0] == 200
    assert app.index_is_exact(views=2)
    shown = json.loads(app.get("/v1/loads")[1])["loads"]
    assert [load["memory"]["released"] for load in shown] == [["weights", "kv_cache", "cuda_graph"]] * 2
    app.post("/resume_memory_occupation", {"model": "two", "tags": ["weights", "kv_cache"]})
    app.post("/resume_memory_occupation", {})
    for model in ("one", "two"):
        for _ in range(2):
            assert app.complete(PROMPT, 32, model=model)["choices"][0]["text"] == expected
    assert app.idle() and app.index_is_exact(views=2)


def test_new_weights_for_all_shards(app, served_checkpoint, other_checkpoint):
    def text(model):
        return app.complete(PROMPT, 32, model=model)["choices"][0]["text"]

    before = text("two")
    for folder in (other_checkpoint, served_checkpoint):
        for model in ("one", "two"):
            assert app.post("/update_weights_from_disk", {"model": model, "model_path": str(folder)})["success"]
        assert text("one") == text("two")
        assert (text("two") == before) == (folder == served_checkpoint)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        app.post("/update_weights_from_disk", {"model": "two", "model_path": "/nowhere"})
    assert refusal.value.code == 400 and "'/nowhere' does not exist" in refusal.value.read().decode()
    assert text("two") == before


def test_models_are_chosen_by_name(app):
    names = [model["id"] for model in json.loads(app.get("/v1/models")[1])["data"]]
    assert names == ["one", "two"]
    with pytest.raises(urllib.error.HTTPError) as refusal:
        app.complete(PROMPT, 4, model="three")
    assert refusal.value.code == 404

"""The whole stack on a real local Ray: two replicas of a tiny model behind two ingresses that share a port, and what happens when
parts of it die."""

from __future__ import annotations

import http.client
import time

import pytest

from tests.actors.conftest import processes

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def app(launch):
    app = launch("pair", {"tiny": {"num_replicas": 2}}, num_ingress=2)
    app.wait_serving(2)
    return app


def prompt(first: int, length: int = 40) -> list[int]:
    return [(first * 31 + i * 7) % 200 + 3 for i in range(length)]


def test_chat_through_both_doors(app):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "temperature": 0}
    direct = app.post("/v1/chat/completions", body)
    through_serve = app.post("/v1/chat/completions", body, url=app.proxy_url)
    assert direct["usage"]["completion_tokens"] >= 1
    assert direct["choices"][0]["message"] == through_serve["choices"][0]["message"]


def test_streaming_through_both_doors(app):
    whole = app.complete(prompt(1), 24)["choices"][0]["text"]
    assert app.stream(prompt(1), 24).read().texts == {0: whole}
    assert app.stream(prompt(1), 24, url=app.proxy_url).read().texts == {0: whole}


def test_the_ingress_imports_no_torch(app):
    ingresses = processes("ray::ServeReplica:pair:Ingress")
    assert len(ingresses) == 2
    assert not [m.path for ingress in ingresses for m in ingress.memory_maps() if "libtorch" in m.path]


def test_a_long_prefix_is_found_again_whichever_replica_has_it(app):
    shared = prompt(2, 1200)
    app.complete(shared, 4)
    time.sleep(0.3)
    for i in range(4):
        usage = app.complete([*shared, i + 3, i + 4], 4)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 1200


def test_a_client_that_goes_away_frees_its_pages(app):
    stream = app.stream(prompt(3), 1900)
    stream.read(5)
    while app.running() != 1:
        stream.read(1)
    stream.close()
    assert app.idle()
    _give_up(app)
    assert app.idle()


def _give_up(app):
    try:
        app.post(
            "/v1/completions",
            {"model": "tiny", "prompt": prompt(4), "max_tokens": 1900, "ignore_eos": True, "temperature": 0},
            timeout=0.3,
        )
    except OSError:
        return
    raise AssertionError("1,900 tokens in 0.3 s")


def test_a_shard_killed_mid_stream_is_not_noticed(app):
    whole = [app.complete(prompt(5 + i), 600)["choices"][0]["text"] for i in range(4)]
    streams = [app.stream(prompt(5 + i), 600) for i in range(4)]
    for stream in streams:
        stream.read(10)
    processes("ray::ModelShard")[0].kill()
    assert [stream.read().texts[0] for stream in streams] == whole
    app.wait_serving(2)
    assert app.index_is_exact()


def test_all_shards_killed_mid_stream_is_a_pause(app):
    whole = app.complete(prompt(9), 600)["choices"][0]["text"]
    stream = app.stream(prompt(9), 600)
    stream.read(10)
    for shard in processes("ray::ModelShard"):
        shard.kill()
    assert stream.read().texts[0] == whole
    app.wait_serving(2)


def test_an_ingress_that_dies_takes_only_its_own_streams_along(app):
    streams = [app.stream(prompt(20 + i), 1900) for i in range(8)]
    for stream in streams:
        stream.read(1)
    victim, other = processes("ray::ServeReplica:pair:Ingress")
    victim.kill()
    cut = 0
    for stream in streams:
        try:
            stream.read()
        except (OSError, AssertionError, http.client.HTTPException):
            cut += 1
    assert other.is_running() and sum(bool(stream.finish) for stream in streams) == len(streams) - cut
    assert app.idle(), "the dead ingress's sequences still run"
    app.wait_ready()


def test_serving_goes_on_without_the_coordinator_and_it_recovers(app):
    stream = app.stream(prompt(10), 400)
    stream.read(2)
    (coordinator,) = processes("ray::CacheCoordinator")
    coordinator.kill()
    assert app.complete(prompt(11), 8)["usage"]["completion_tokens"] == 8
    stream.read()
    assert stream.finish == {0: "length"}
    app.wait_serving(2)
    shared = prompt(12, 1200)
    app.complete(shared, 4)
    time.sleep(0.3)
    assert app.complete([*shared, 9], 4)["usage"]["prompt_tokens_details"]["cached_tokens"] == 1200
    assert app.index_is_exact()


def test_the_index_is_exact_while_streams_run(app):
    streams = [app.stream(prompt(30 + i, 300 + i), 400) for i in range(6)]
    for stream in streams:
        stream.read(3)
    assert app.index_is_exact()
    assert app.running(), "it was to be compared under load"
    for stream in streams:
        stream.close()


def test_n_continuations_and_logprobs(app):
    answer = app.complete(prompt(13), 6, n=3, temperature=1.0, seed=4, logprobs=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["text"] for choice in answer["choices"]}) > 1


def test_deleting_the_application_lets_streams_finish(app):
    """Last: it takes the application down."""
    from ray import serve

    whole = app.complete(prompt(14), 1200)["choices"][0]["text"]
    stream = app.stream(prompt(14), 1200)
    stream.read(3)
    serve.delete("pair", _blocking=False)
    assert stream.read().texts[0] == whole

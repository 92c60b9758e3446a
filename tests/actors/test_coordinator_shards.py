"""A coordinator of several actors on a real local Ray: each has a part of the index, and any of them may die."""

from __future__ import annotations

import random
import time

import pytest

from tests.actors.conftest import processes

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def app(launch):
    app = launch("sharded", {"tiny": {"num_replicas": 2}}, coordinator_shards=3)
    app.wait_serving(2)
    return app


def prompts(seed: int) -> list[list[int]]:
    """Enough, for some to begin in each shard."""
    choose = random.Random(seed)
    return [[choose.randrange(3, 200) for _ in range(160)] for _ in range(12)]


def ask_twice(app, seed: int) -> None:
    for prompt in prompts(seed):
        app.complete(prompt, 2)
    time.sleep(0.3)
    for prompt in prompts(seed):
        assert app.complete([*prompt, 7, 8], 2)["usage"]["prompt_tokens_details"]["cached_tokens"] == 160


def test_every_part_is_known_everywhere(app):
    assert len(processes("ray::CacheCoordinator")) == 3
    ask_twice(app, 1)
    assert app.index_is_exact(views=2)


@pytest.mark.parametrize("which", [0, 2])
def test_a_shard_that_dies_is_whole_again_soon(app, which):
    coordinators = sorted(processes("ray::CacheCoordinator"), key=lambda process: process.create_time())
    coordinators[which].kill()
    app.complete(prompts(9)[0], 2)
    limit = time.monotonic() + 30
    while len(processes("ray::CacheCoordinator")) < 3:
        assert time.monotonic() < limit
        time.sleep(0.1)
    app.wait_serving(2)
    assert app.index_is_exact(views=2)
    ask_twice(app, 10 + which)

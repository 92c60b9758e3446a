"""A replica of two shards: the followers execute the first one's plans, and the text is the same."""

import pytest

from tests.actors.conftest import processes

pytestmark = pytest.mark.cluster


def test_two_shards_say_what_one_says_and_die_together(launch):
    one = launch("one")
    two = launch("two", engine={"tp_size": 2})
    prompt = [(i * 11) % 200 + 3 for i in range(300)]
    expected = one.complete(prompt, 64)["choices"][0]["text"]
    assert two.complete(prompt, 64)["choices"][0]["text"] == expected
    shards = processes("ray::ModelShard")
    assert len(shards) == 3
    stream = two.stream(prompt, 64)
    stream.read(3)
    newest = max(shards, key=lambda process: process.create_time())  # the follower
    newest.kill()
    assert stream.read().texts[0] == expected
    two.wait_serving(1)

"""Memory is given back and taken again: it is really gone meanwhile, requests are refused, and answers afterwards are the same."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raysgl.engine.occupation import OTHER
from raysgl.kernels.attention import kv_cache
from raysgl.messages import MEMORY_TAGS, CacheCleared, ChangeMemory, MemoryChange
from raysgl.models import ModelError, resolve
from raysgl.models.checkpoint import PeerLost
from raysgl.models.lending import lender_of
from tests.engine.replica import Replica

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13]
ALL = list(MEMORY_TAGS)


def release(*tags) -> ChangeMemory:
    return ChangeMemory("i", 1, MemoryChange(True, list(tags) or ALL))


def resume(*tags) -> ChangeMemory:
    return ChangeMemory("i", 1, MemoryChange(False, list(tags) or ALL))


@pytest.fixture
def pools(monkeypatch):
    """Weak references to the memory of each KV cache: dead when no tensor is left on it."""
    made = []

    def zeros(*args):
        array = np.zeros(*args)
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr(kv_cache, "np", SimpleNamespace(zeros=zeros, uint8=np.uint8))
    return made


def test_memory_goes_and_comes_back_and_answers_are_the_same(tiny_checkpoint, pools):
    replica = Replica(tiny_checkpoint("llama"))
    expected = replica.greedy(PROMPT)
    (first,) = pools
    weights = {name: parameter.clone() for name, parameter in replica.runner.model.named_parameters()}
    replica.events.clear()

    done = replica.tell(release())
    assert (done.ok, done.message) == (True, "released: weights, kv_cache, cuda_graph")
    assert replica.events == [CacheCleared()], "the global index must not send anybody here for what is gone"
    assert first() is None
    assert all(parameter.untyped_storage().nbytes() == 0 for parameter in replica.runner.model.parameters())
    assert replica.loop.load().released == MEMORY_TAGS
    refusal = replica.refusal(PROMPT)
    assert refusal.status == 503 and "POST /resume_memory_occupation" in refusal.message and "weights" in refusal.message
    assert replica.tell(release("kv_cache")).message == "nothing to do: kv_cache released already"

    done = replica.tell(resume("weights"))
    assert (done.ok, done.message) == (True, "resumed: weights")
    assert replica.refusal(PROMPT).status == 503
    assert replica.tell(resume()).message == "resumed: kv_cache, cuda_graph"
    assert replica.tell(resume()).message == "nothing to do: weights, kv_cache, cuda_graph not released"
    assert replica.loop.load().released == ()
    assert all(torch.equal(parameter, weights[name]) for name, parameter in replica.runner.model.named_parameters())
    assert len(pools) == 2 and pools[1]() is not None
    assert replica.greedy(PROMPT) == expected
    assert replica.greedy(PROMPT) == expected, "with a prefix hit"


@pytest.mark.parametrize("tag", ["weights", "cuda_graph"])
def test_what_is_cached_stays_while_its_memory_does(tiny_checkpoint, tag):
    replica = Replica(tiny_checkpoint("llama"))
    expected = replica.greedy(PROMPT)
    assert replica.tell(release(tag)).ok and replica.refusal(PROMPT).status == 503
    assert replica.tell(resume()).message == f"resumed: {tag}"
    assert replica.scheduler.tree.total_pages > 0 and replica.greedy(PROMPT) == expected


def test_who_is_busy_says_with_how_many(tiny_checkpoint):
    replica = Replica(tiny_checkpoint("llama"))
    replica.submit(PROMPT, uid=1)
    replica.submit(PROMPT[1:], uid=2)
    done = replica.tell(release("weights"))
    assert not done.ok and done.message.startswith("2 sequences are running or waiting")
    assert replica.loop.load().released == ()
    assert sum(len(output.token_ids) for output in replica.run()) == 24, "they go on"


def test_a_step_of_a_sequence_that_has_just_ended_is_no_work(tiny_checkpoint):
    """It is taken in before the memory that it writes to goes."""
    replica = Replica(tiny_checkpoint("llama"))
    expected = replica.greedy(PROMPT)
    replica.submit(PROMPT, 12)
    while not replica.loop._launched:
        replica.loop.run_once()
    replica.scheduler.abort("i", [1])
    assert replica.loop._launched
    assert replica.tell(release()).ok and not replica.loop._launched
    assert replica.tell(resume()).ok and replica.greedy(PROMPT) == expected


def test_where_memory_is_short_everything_stays_released(tiny_checkpoint, monkeypatch):
    replica = Replica(tiny_checkpoint("llama"))
    expected = replica.greedy(PROMPT)
    assert replica.tell(release()).ok

    def short(num_pages):
        raise ModelError("out of memory while allocating the KV cache")

    monkeypatch.setattr(replica.runner, "_new_cache", short)
    done = replica.tell(resume())
    assert (done.ok, done.message) == (False, "not resumed: out of memory while allocating the KV cache")
    assert replica.loop.load().released == MEMORY_TAGS and replica.refusal(PROMPT).status == 503
    assert all(parameter.untyped_storage().nbytes() == 0 for parameter in replica.runner.model.parameters())
    monkeypatch.undo()
    assert replica.tell(resume()).ok and replica.greedy(PROMPT) == expected


class Disagreeing:
    """A group in which another rank never can."""

    def agree(self, yes, device):
        return False


def test_all_ranks_do_it_or_none(tiny_checkpoint):
    replica = Replica(tiny_checkpoint("llama"))
    expected = replica.greedy(PROMPT)
    replica.use(Disagreeing())
    done = replica.tell(release())
    assert (done.ok, done.message) == (False, f"not released: {OTHER}")
    assert replica.greedy(PROMPT) == expected


def test_released_weights_are_not_lent(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    replica = Replica(folder)
    lender = lender_of(replica.runner.model, replica.config, resolve(str(folder)), 0)
    replica.use(replica.group, lender)
    part = bytes(lender.read(0, 0, 100))
    assert replica.tell(release()).ok and not lender.able
    with pytest.raises(PeerLost):
        lender.read(0, 0, 100)
    assert replica.tell(resume()).ok and lender.able
    assert bytes(lender.read(0, 0, 100)) == part


@pytest.mark.gpu
def test_a_gpu_gets_its_memory_back(tiny_checkpoint):
    replica = Replica(tiny_checkpoint("llama", head_dim=64), "cuda:0", dtype="bfloat16", page_size=16, max_total_tokens=1 << 18)
    expected = replica.greedy(PROMPT)
    memory = replica.runner.memory
    before = torch.cuda.memory_allocated()
    assert replica.tell(release()).ok
    assert before - torch.cuda.memory_allocated() >= memory.weights + memory.kv_cache
    assert replica.runner._graphs is None
    assert replica.tell(resume("kv_cache")).ok and replica.runner._graphs is None
    assert replica.tell(resume()).ok and replica.runner._graphs is not None
    assert replica.greedy(PROMPT) == expected and replica.greedy(PROMPT) == expected

"""New weights while it serves: answers are those of one model or of the other, never of both, and what fails changes nothing."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysgl.engine.occupation import OTHER
from raysgl.messages import (
    Abort,
    CacheCleared,
    ChangeMemory,
    LoadedWeights,
    MemoryChange,
    UpdateWeights,
    WeightsUpdate,
)
from raysgl.models import ModelError, resolve, safetensors_files
from raysgl.models.checkpoint import PeerLost
from raysgl.models.lending import lender_of
from tests.engine.replica import Replica
from tests.engine.simulated import Engine, expected

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13]
OTHER_PROMPT = [50, 51, 52, 53, 54]


def update(path, **settings) -> UpdateWeights:
    return UpdateWeights("i", 1, WeightsUpdate(str(path), **settings))


@pytest.fixture
def folders(tiny_checkpoint, tmp_path):
    """Two checkpoints of one architecture."""
    first = shutil.copytree(tiny_checkpoint("llama", initializer_range=0.2), tmp_path / "first")
    second = shutil.copytree(first, tmp_path / "second")
    tensors = load_file(second / "model.safetensors")
    save_file({name: tensor.flip(0).contiguous() for name, tensor in tensors.items()}, second / "model.safetensors")
    return first, second


@pytest.fixture
def answers(folders):
    """Of both, to both prompts."""
    return [[Replica(folder).greedy(prompt) for prompt in (PROMPT, OTHER_PROMPT)] for folder in folders]


def places(replica) -> list[int]:
    return [parameter.data_ptr() for parameter in replica.runner.model.parameters()]


def test_it_answers_as_the_other_does_and_as_before_when_it_is_taken_back(folders, answers):
    first, second = folders
    assert answers[0] != answers[1]
    replica = Replica(first)
    assert [replica.greedy(PROMPT), replica.greedy(OTHER_PROMPT)] == answers[0]
    before, replica.events[:] = places(replica), []
    done = replica.tell(update(second, version="step-1"))
    assert (done.ok, done.message) == (True, f"the weights are those of {second}")
    assert places(replica) == before, "CUDA graphs have these addresses"
    assert replica.events == [CacheCleared()] and replica.scheduler.tree.total_pages == 0
    assert replica.loop.load().weights == LoadedWeights(str(second), "auto", "step-1", replica.config.source)
    assert [replica.greedy(PROMPT), replica.greedy(OTHER_PROMPT)] == answers[1]
    assert replica.tell(update(first, empty_cache=True, recapture=True)).ok
    assert replica.loop.load().weights.version == "step-1", "nobody has said another one"
    assert [replica.greedy(PROMPT), replica.greedy(OTHER_PROMPT)] == answers[0]


def test_what_is_cached_stays_where_that_is_asked(folders):
    replica = Replica(folders[0])
    replica.greedy(PROMPT)
    pages = replica.scheduler.tree.total_pages
    assert replica.tell(update(folders[1], flush_cache=False)).ok
    assert replica.scheduler.tree.total_pages == pages > 0
    assert replica.tell(update(folders[0])).ok and replica.scheduler.tree.total_pages == 0


def test_it_waits_for_what_runs_and_what_comes_waits_for_it(folders, answers):
    replica = Replica(folders[0])
    replica.submit(PROMPT, uid=1)
    replica.loop.run_once()
    replica.inbox.append(update(folders[1]))
    replica.submit(OTHER_PROMPT, uid=2)
    replica.submit(OTHER_PROMPT, uid=3)
    replica.inbox.append(update(folders[0]))
    replica.loop.run_once()
    (second,) = replica.answers
    assert (second.ok, second.message) == (False, "another update of the weights is waiting")
    replica.inbox.append(Abort("i", [3]))
    tokens: dict[int, list[int]] = {}
    for output in replica.run():
        tokens.setdefault(output.uid, []).extend(output.token_ids)
    assert tokens == {1: answers[0][0], 2: answers[1][1]}
    assert replica.answers[1].ok


def test_or_ends_it_all(folders, answers):
    replica = Replica(folders[0])
    for uid in (1, 2):
        replica.submit(PROMPT, uid=uid)
    replica.loop.run_once()
    done = replica.tell(update(folders[1], abort_all=True))
    assert done.ok
    ends = {output.uid: output.finish for output in replica.run() if output.finish}
    assert {uid: (finish.reason, finish.message) for uid, finish in ends.items()} == dict.fromkeys(
        (1, 2), ("abort", "the request was aborted")
    )
    assert replica.greedy(PROMPT) == answers[1][0]


def broken(folder, how: str) -> None:
    """Make a checkpoint unfit."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors, settings = load_file(weights), json.loads(config.read_text())
    if how == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no file":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "a list":
        config.write_text("[]")
    elif how == "another norm":
        config.write_text(json.dumps(settings | {"rms_norm_eps": 0.1}))
    elif how == "another kind":
        config.write_text(json.dumps(settings | {"architectures": ["Qwen3ForCausalLM"]}))
    elif how == "a tensor less":
        save_file({name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}, weights)
    elif how == "another shape":
        save_file(tensors | {"model.norm.weight": torch.ones(65)}, weights)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut off", "it is not complete"),
        ("no file", "has no model.safetensors"),
        ("no config", "has no config.json"),
        ("a list", "AttributeError"),
        ("another norm", "rms_norm_eps (0.1 instead of 1e-06)"),
        ("another kind", "architecture (Qwen3ForCausalLM instead of LlamaForCausalLM)"),
        ("a tensor less", "lacks 1 tensor: model.norm.weight"),
        ("another shape", "model.norm.weight [65] instead of [64]"),
    ],
)
def test_what_does_not_fit_changes_nothing(folders, how, reason):
    replica = Replica(folders[0])
    expected_tokens = replica.greedy(PROMPT)
    pages = replica.scheduler.tree.total_pages
    broken(folders[1], how)
    done = replica.tell(update(folders[1]))
    assert not done.ok and done.message.startswith("the weights are those of before: ") and reason in done.message
    assert replica.loop.load().weights is None and replica.scheduler.tree.total_pages == pages
    replica.scheduler.drop_cached()
    assert replica.greedy(PROMPT) == expected_tokens


@pytest.mark.parametrize("path", ["/nowhere", "gguf"])
def test_a_path_that_is_none(folders, path):
    replica = Replica(folders[0])
    done = replica.tell(update(path if path != "gguf" else folders[1], load_format="auto" if path != "gguf" else "gguf"))
    assert not done.ok and ("does not exist" in done.message or "is a folder" in done.message)


@pytest.fixture
def failing(folders, monkeypatch):
    """The new checkpoint's file can be read so often, then no more."""
    reads, whole = [], safetensors_files._read_range

    def read(path, begin, into_B):
        if path.parent == folders[1]:
            reads.append(begin)
            if len(reads) > 8:
                raise OSError(5, "Input/output error")
        whole(path, begin, into_B)

    monkeypatch.setattr(safetensors_files, "_read_range", read)
    return reads


def test_a_disk_that_fails_midway_leaves_the_old_weights(folders, failing):
    replica = Replica(folders[0])
    weights = [parameter.clone() for parameter in replica.runner.model.parameters()]
    expected_tokens = replica.greedy(PROMPT)
    done = replica.tell(update(folders[1]))
    assert not done.ok and "Input/output error" in done.message and len(failing) > 8
    assert all(map(torch.equal, weights, replica.runner.model.parameters()))
    replica.scheduler.drop_cached()
    assert replica.greedy(PROMPT) == expected_tokens


def test_half_a_model_does_not_live_on(folders, failing):
    replica = Replica(folders[0])
    replica.use(replica.group, lender_of(replica.runner.model, replica.config, resolve(str(folders[0])), 0))
    shutil.copy(folders[1] / "model.safetensors", folders[0] / "model.safetensors")  # a training's next step, in the same place
    with pytest.raises(ModelError, match="failed midway"):
        replica.tell(update(folders[1]))


class Disagreeing:
    def agree(self, yes, device):
        return False


def test_all_ranks_take_them_or_none(folders):
    replica = Replica(folders[0])
    expected_tokens = replica.greedy(PROMPT)
    replica.use(Disagreeing())
    done = replica.tell(update(folders[1]))
    assert (done.ok, done.message) == (False, f"the weights are those of before: {OTHER}")
    assert replica.greedy(PROMPT) == expected_tokens


def test_beside_released_memory(folders, answers):
    """What reinforcement learning does: weights back, new ones in, then the rest."""
    replica = Replica(folders[0])
    assert replica.tell(ChangeMemory("i", 1, MemoryChange(True, ["weights", "kv_cache", "cuda_graph"]))).ok
    done = replica.tell(update(folders[1]))
    assert not done.ok and "POST /resume_memory_occupation first" in done.message
    assert replica.tell(ChangeMemory("i", 1, MemoryChange(False, ["weights"]))).ok
    assert replica.tell(update(folders[1], recapture=True)).ok
    assert replica.tell(ChangeMemory("i", 1, MemoryChange(False, ["kv_cache", "cuda_graph"]))).ok
    assert replica.greedy(PROMPT) == answers[1][0]


def test_what_is_not_known_is_not_lent(folders):
    """Random weights have no name, and get none by being released and resumed."""
    replica = Replica(folders[0])
    lender = lender_of(replica.runner.model, replica.config, resolve(str(folders[0])), 0)
    replica.use(replica.group, lender)
    assert replica.tell(update(folders[0], load_format="dummy")).ok and not lender.able
    for release in (True, False):
        assert replica.tell(ChangeMemory("i", 1, MemoryChange(release, ["weights"]))).ok and not lender.able
    assert replica.tell(update(folders[0])).ok and lender.able


def test_a_lender_lends_what_is_there_now(folders):
    replica = Replica(folders[0])
    lender = lender_of(replica.runner.model, replica.config, resolve(str(folders[0])), 0)
    replica.use(replica.group, lender)
    old = lender.offer
    assert bytes(lender.read(1, 0, 64, old.identity))
    assert replica.tell(update(folders[1])).ok
    with pytest.raises(PeerLost, match="other weights"):
        lender.read(1, 0, 64, old.identity)
    fresh = lender_of(replica.runner.model, replica.config.model_copy(update={"model_path": str(folders[1])}), resolve(str(folders[1])), 0)  # fmt: skip
    assert lender.offer == fresh.offer != old
    assert bytes(lender.read(1, 0, 64, fresh.offer.identity)) == bytes(fresh.read(1, 0, 64))


def test_what_was_retracted_ends_before():
    """It has begun with the old weights."""
    engine = Engine(num_pages=14, max_running=4, conservativeness=0.0)
    finished: list[set[int]] = []

    def carry_out(message):
        finished.append({uid for uid, outputs in engine.outputs.items() if outputs[-1].finish})
        return True, ""

    engine.loop._new_weights._carry_out = carry_out
    for uid in range(1, 5):
        engine.submit(uid, [uid] * 5, max_new=24)
    for _ in range(100):
        engine.loop.run_once()
        if engine.scheduler.load().retractions:
            break
    assert engine.scheduler.waiting.begun()
    engine.inbox.append(update("/new"))
    engine.submit(9, [9] * 5, max_new=24, priority=300)
    engine.run()
    begun = {1, 2, 3, 4}
    assert finished == [begun]
    assert all(engine.tokens(uid) == expected([uid] * 5, 24) for uid in (*begun, 9))


@pytest.mark.gpu
def test_graphs_serve_the_new_weights(folders):
    settings = {"dtype": "bfloat16", "page_size": 16, "attention_backend": "triton"}
    expected_tokens = [Replica(folder, "cuda:0", **settings).greedy(PROMPT) for folder in folders]
    replica = Replica(folders[0], "cuda:0", **settings)
    assert replica.greedy(PROMPT) == expected_tokens[0]
    graphs = replica.runner._graphs
    assert replica.tell(update(folders[1])).ok and replica.runner._graphs is graphs is not None
    assert replica.greedy(PROMPT) == expected_tokens[1] != expected_tokens[0]
    assert replica.tell(update(folders[0], recapture=True, empty_cache=True)).ok and replica.runner._graphs is not graphs
    assert replica.greedy(PROMPT) == expected_tokens[0]

"""Which of disk and live replica a shard's weights come from. Ray's part is played by futures; the real one: test_weights_peer."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from types import SimpleNamespace

import msgspec
import pytest
import torch
from ray.exceptions import RayActorError
from safetensors.torch import load_file, save_file

from raysgl.actors.replica import EngineReplica
from raysgl.actors.weights_peer import find_checkpoint
from raysgl.config import EngineConfig, ModelConfig
from raysgl.distributed import TPGroup
from raysgl.messages import LoadedWeights
from raysgl.models import ModelError, resolve
from raysgl.models.lending import lender_of
from raysgl.models.loader import load_model


def method(answer):
    """Like an actor's: .remote(...).future().result(timeout)."""

    def remote(*arguments):
        future: Future = Future()
        try:
            future.set_result(answer(*arguments))
        except Exception as error:  # noqa: BLE001  (it belongs to the caller)
            future.set_exception(error)
        return SimpleNamespace(future=lambda: future)

    return SimpleNamespace(remote=remote)


class Replica:
    """A live replica of the checkpoint in `folder`, as `config` says. asked: how often it was."""

    def __init__(self, config, folder, tp_size=1):
        self.asked = 0
        checkpoint = resolve(str(folder))
        self.models = [load(checkpoint, rank, tp_size) for rank in range(tp_size)]
        self.shards = [self.shard(lender_of(model, config, checkpoint, rank)) for rank, model in enumerate(self.models)]

    def shard(self, lender):
        def offer():
            self.asked += 1
            return msgspec.msgpack.encode(lender.offer)

        return SimpleNamespace(
            rank=method(lambda rank: self.shards[rank]),
            weights_offer=method(offer),
            lend=method(lender.read),
            small_files=method(lambda: lender.small_files),
        )


def load(checkpoint, rank=0, size=1):
    return load_model(EngineConfig(model_path="m", tp_size=size), checkpoint, TPGroup(rank, size), "cpu", torch.float32)


def find(config, replicas, rank=0):
    coordinator = SimpleNamespace(lenders=method(lambda model: [replica.shards[0] for replica in replicas]))
    return find_checkpoint(config, rank, coordinator, lambda done, text: None)


@pytest.fixture
def folder(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSGL_CACHE_DIR", str(tmp_path / "cache"))
    return shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")


def config(folder, weights_from, tp_size=1):
    return EngineConfig(model_path=str(folder), weights_from=weights_from, tp_size=tp_size)


@pytest.mark.parametrize(("weights_from", "borrows"), [("disk", False), ("auto", False), ("peer", True)])
def test_with_files_here(folder, weights_from, borrows):
    settings = config(folder, weights_from)
    replica = Replica(settings, folder)
    found = find(settings, [replica])
    assert (found.peer is not None, replica.asked) == (borrows, int(borrows))
    assert found.folder == folder and found.files
    assert find(settings, []).peer is None


@pytest.mark.parametrize("rank", [0, 1])
def test_without_files_every_rank_asks_its_own(folder, rank):
    settings = config(folder, "auto", tp_size=2)
    replica = Replica(settings, folder, tp_size=2)
    shutil.rmtree(folder)
    model = load(find(settings, [replica], rank), rank, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), replica.models[rank].parameters(), strict=True))
    with pytest.raises(ModelError, match="does not exist"):
        find(config(folder, "disk", tp_size=2), [replica], rank)


def test_another_model_another_split_and_the_dead_lend_nothing(folder, tmp_path):
    """After an update of the config the old model still lives under the same name."""
    settings = config(folder, "auto")
    other = Replica(config(tmp_path / "other", "auto"), folder)
    halves = Replica(config(folder, "auto", tp_size=2), folder, tp_size=2)
    dead = Replica(settings, folder)

    def die():
        raise RayActorError

    dead.shards[0].weights_offer = method(die)
    live = Replica(settings, folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="does not exist"):
        find(settings, [other, halves, dead])
    assert find(settings, [other, halves, dead, live]).peer is not None


def test_files_that_are_newer_than_what_lives_are_read(folder, tmp_path):
    settings = config(folder, "peer")
    replica = Replica(settings, folder)
    path = folder / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)
    assert find(settings, [replica]).peer is None


def test_a_lender_that_dies_while_it_lends(folder):
    settings = config(folder, "peer")
    replica = Replica(settings, folder)
    found = find(settings, [replica])

    def die(*chunk):
        raise RayActorError

    replica.shards[0].lend = method(die)
    expected = load(resolve(str(folder)))
    assert all(torch.equal(a, b) for a, b in zip(load(found).parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (None, "/a"),
        (LoadedWeights("/step-7", "auto", "7", "/a@"), "/step-7"),
        (LoadedWeights("/step-7", "auto", "7", "/before@"), "/a"),  # the config has changed since
    ],
)
async def test_who_starts_later_has_what_the_others_were_given(theirs, mine):
    async def weights(model):
        assert model == "a"
        return msgspec.msgpack.encode(theirs)

    replica = object.__new__(EngineReplica)
    replica._model, replica._name = ModelConfig(engine=EngineConfig(model_path="/a", dtype="bfloat16")), "a#1"
    replica._coordinator = SimpleNamespace(weights=SimpleNamespace(remote=weights))
    engine, loaded = await replica._others_weights()
    assert (engine.model_path, engine.name, engine.dtype) == (mine, "a", "bfloat16")
    assert loaded == (theirs if mine == "/step-7" else None)

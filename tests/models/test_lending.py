"""Weights from a live replica: equal to the disk's, for every rank; and the disk where the replica goes away."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysgl.config import EngineConfig
from raysgl.distributed import TPGroup
from raysgl.models import Checkpoint, ModelError, lending, resolve
from raysgl.models.checkpoint import PeerLost
from raysgl.models.lending import Lender, Loan, identity, keep_small_files, lender_of
from raysgl.models.loader import load_model


@pytest.fixture
def folder(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSGL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(lending, "CHUNK_BYTES", 1000)
    return shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")


def load(checkpoint: Checkpoint, rank=0, size=1, dtype=torch.bfloat16):
    return load_model(EngineConfig(model_path="m"), checkpoint, TPGroup(rank, size), "cpu", dtype)


def config(tp_size=1) -> EngineConfig:
    return EngineConfig(model_path="m", tp_size=tp_size)


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def gone() -> Checkpoint:
    raise ModelError("the disk has nothing either")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loan_is_what_the_disk_has_even_where_there_is_none(folder, rank):
    checkpoint = resolve(str(folder))
    first = load(checkpoint, rank, 2)
    first.kv_scales = {(1, 0): 0.5}
    lender = lender_of(first, config(2), checkpoint, rank)
    files = lender_of(load(checkpoint), config(), checkpoint, 0).small_files
    assert "config.json" in files and "model.safetensors" not in files
    shutil.rmtree(folder)
    loan = Loan(lender.offer, "a replica", lender.read, gone)
    second = load(Checkpoint(keep_small_files(files), "peer", peer=loan), rank, 2)
    assert equal(first, second) and second.kv_scales == {(1, 0): 0.5}
    third = lender_of(second, config(2), Checkpoint(keep_small_files(files), "peer", peer=loan), rank)
    assert third.offer == lender.offer, "what was lent can be lent again"


def test_a_lender_that_dies_midway_leaves_it_to_the_disk(folder, caplog):
    checkpoint = resolve(str(folder))
    expected = load(checkpoint)
    lender = lender_of(expected, config(), checkpoint, 0)
    calls = []

    def fetch(*chunk):
        calls.append(chunk)
        if len(calls) > 20:
            raise PeerLost("the replica is gone")
        return lender.read(*chunk)

    loan = Loan(lender.offer, "a replica", fetch, lambda: resolve(str(folder)))
    with caplog.at_level(logging.WARNING):
        assert equal(expected, load(replace(checkpoint, peer=loan)))
    assert "the replica is gone; its weights come from the disk instead" in caplog.text
    with pytest.raises(ModelError, match="the disk has nothing either"):
        load(Checkpoint(folder, "peer", peer=Loan(lender.offer, "a replica", fetch, gone)))


@pytest.mark.parametrize("other", [{"size": 2}, {"dtype": torch.float32}])
def test_another_layout_is_not_taken(folder, other, caplog):
    checkpoint = resolve(str(folder))
    lender = lender_of(load(checkpoint, **other), config(), checkpoint, 0)
    loan = Loan(lender.offer, "a replica", lender.read, lambda: checkpoint)
    with caplog.at_level(logging.WARNING):
        assert equal(load(checkpoint), load(replace(checkpoint, peer=loan)))
    assert "has other parameters" in caplog.text


def test_half_an_answer_is_none(folder):
    checkpoint = resolve(str(folder))
    lender = lender_of(load(checkpoint), config(), checkpoint, 0)
    loan = Loan(lender.offer, "a replica", lambda *chunk: lender.read(*chunk)[:-1], gone)
    with pytest.raises(PeerLost, match="instead of"):
        loan.fill(load(checkpoint), None)


def test_fine_tuned_weights_are_another_checkpoint(folder, tmp_path):
    name = identity(resolve(str(folder)))
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert identity(resolve(str(copy))) == name
    path = copy / "model.safetensors"
    tensors = {key: tensor + 0.001 for key, tensor in load_file(path).items()}
    save_file(tensors, path)
    assert identity(resolve(str(copy))) != name
    path.unlink()
    assert lender_of(load(resolve(str(folder))), config(), replace(resolve(str(folder)), files=(path,)), 0) is None


def test_files_keep_their_names(folder):
    with pytest.raises(ModelError, match="a replica sent a file"):
        keep_small_files({"../config.json": b""})
    kept = keep_small_files({"config.json": b"{}", "tokenizer.json": b"x"})
    assert (kept / "tokenizer.json").read_bytes() == b"x"
    assert kept == keep_small_files({"tokenizer.json": b"x", "config.json": b"{}"})


@pytest.mark.gpu
def test_a_gpu_lends_while_it_computes(folder):
    checkpoint = resolve(str(folder))
    engine = EngineConfig(model_path="m")
    first = load_model(engine, checkpoint, TPGroup(), "cuda:0", torch.bfloat16)
    lender = Lender(first, "m@", "x", folder, 0, 1)
    loan = Loan(lender.offer, "a replica", lender.read, gone)
    second = load_model(engine, Checkpoint(folder, "peer", peer=loan), TPGroup(), "cuda:0", torch.bfloat16)
    assert equal(first, second)

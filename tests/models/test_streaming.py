"""Weights from safetensors: equal to what the library reads, whatever the chunks; and no rank reads what is another's."""

from __future__ import annotations

import os
import shutil

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from raysgl.config import EngineConfig
from raysgl.distributed import TPGroup
from raysgl.models import ModelError, resolve, safetensors_files, streaming
from raysgl.models.layers import Piece, checkpoint_table
from raysgl.models.loader import load_model

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def load(folder, rank=0, size=1, dtype=torch.float32):
    return load_model(EngineConfig(model_path=str(folder)), resolve(str(folder)), TPGroup(rank, size), "cpu", dtype)


@st.composite
def slices(draw):
    """(shape, dim, start, length, whether the target has room beside it)."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    dim = draw(st.integers(0, min(1, len(shape) - 1)))
    start = draw(st.integers(0, shape[dim] - 1))
    return shape, dim, start, draw(st.integers(1, shape[dim] - start)), draw(st.booleans())


@settings(max_examples=150)
@given(st.lists(slices(), min_size=1, max_size=5), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(1, 300))
def test_any_slices_in_any_chunks_equal_the_library(tmp_path_factory, wanted, stored, kept, chunk_bytes):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    tensors = {str(i): torch.randn(shape).to(stored) for i, (shape, *_) in enumerate(wanted)}
    save_file(tensors, path)
    chunks, targets = [], []
    source = safetensors_files.SafetensorsSource([path])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_files, "CHUNK_BYTES", chunk_bytes)
        for i, (shape, dim, start, length, beside) in enumerate(wanted):
            size = [*shape[:dim], length, *shape[dim + 1 :]]
            target = torch.full([*size[:-1], size[-1] + beside], torch.nan, dtype=kept)[..., : size[-1]]
            targets.append(target)
            chunks += source.chunks(Piece(str(i), shape, target, dim, start, length))
    streaming.fill(chunks, CPU, lambda chunk: None)
    with safe_open(path, framework="pt") as file:
        for i, (_, dim, start, length, _) in enumerate(wanted):
            assert torch.equal(targets[i], file.get_tensor(str(i)).narrow(dim, start, length).to(kept))


@pytest.mark.parametrize("stored", DTYPES)
def test_a_rank_reads_its_part_and_no_more(tiny_checkpoint, tmp_path, monkeypatch, stored):
    """What other ranks hold is spoilt; and the bytes that are read are counted."""
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    path = folder / "model.safetensors"
    whole = {name: tensor.to(stored) for name, tensor in load_file(path).items()}
    save_file(whole, path)
    expected = load(folder, 1, 2)
    own = {}
    read, real = [], os.preadv

    def counted(file, buffers, begin):
        read.append(real(file, buffers, begin))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    rows = columns = 0
    for name, piece in checkpoint_table(expected).items():
        own[name] = torch.full_like(whole[name], torch.nan)
        own[name].narrow(piece.dim, piece.start, piece.length).copy_(whole[name].narrow(piece.dim, piece.start, piece.length))
        rows += piece.target.numel() * stored.itemsize * (piece.dim == 0)
        columns += piece.target.numel() * stored.itemsize * (piece.dim == 1)
    save_file(own, path)
    loaded = load(folder, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), loaded.parameters(), strict=True))
    assert sum(read) == rows
    assert 0.45 < (rows + columns) / sum(tensor.nbytes for tensor in whole.values()) < 0.6


def test_files_that_are_not_whole_are_named(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for broken, sentence in (
        (content[:-1], "it is not complete"),
        (b"\0" * 100, "is not a safetensors file"),
        (b"\x10" + b"\0" * 7 + b"{'no': 'JSON'}  ", "is not a safetensors file"),
        (b"", "is not a safetensors file"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=sentence):
            load(folder)


def test_a_file_that_shrinks_while_it_is_read(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    path = folder / "model.safetensors"
    source = safetensors_files.SafetensorsSource([path])
    piece = checkpoint_table(load(folder))["lm_head.weight"]
    os.truncate(path, 4096)
    with pytest.raises(ModelError, match="ends after 4096 bytes"):
        streaming.fill(list(source.chunks(piece)), CPU, lambda chunk: None)


@pytest.mark.gpu
@pytest.mark.parametrize("kept", DTYPES)
def test_a_gpu_gets_the_same(tiny_checkpoint, kept, monkeypatch):
    monkeypatch.setattr(safetensors_files, "CHUNK_BYTES", 1000)  # many more chunks than buffers
    folder = tiny_checkpoint("llama")
    engine = EngineConfig(model_path=str(folder))
    loaded = load_model(engine, resolve(str(folder)), TPGroup(0, 2), "cuda:0", kept)
    for name, value in load(folder, 0, 2, kept).state_dict().items():
        assert torch.equal(loaded.state_dict()[name].cpu(), value)

"""Tensor parallel on gloo: two processes together say what one says."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from raysgl.config import EngineConfig
from raysgl.distributed import TPGroup, single, start
from raysgl.models import ModelError, resolve
from raysgl.models.loader import load_model
from tests.models.driver import Driver, Row

PROMPT = list(range(3, 60))
NEW = 64
CASES = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True, "vocab_size": 251}),
    "mistral": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


def run(folder: Path, tp: TPGroup) -> dict[str, torch.Tensor | list[int]]:
    model = load_model(EngineConfig(model_path=str(folder)), resolve(str(folder)), tp, "cpu", torch.float32)
    logits_TV = Driver(model, tp_size=tp.size).prefill(Row(PROMPT), 20)
    tokens = Driver(model, tp_size=tp.size).greedy(PROMPT, NEW)
    hidden_LD = torch.randn(50, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    best = model.head.argmax(model.head.logits_part(hidden_LD)), model.logits(hidden_LD).argmax(-1)
    return {"logits": logits_TV.clone(), "tokens": tokens, "argmax": [x.tolist() for x in best]}


def worker(rank: int, size: int, port: int, folders: dict[str, Path], out: Path) -> None:
    torch.set_num_threads(1)
    tp = start(rank, size, torch.device("cpu"), f"tcp://127.0.0.1:{port}", timeout_s=60)
    said = {name: run(folder, tp) for name, folder in folders.items()}
    number = torch.tensor([rank + 1.0])
    said["broadcast"] = {"logits": tp.broadcast(number.clone(), 1), "tokens": tp.all_reduce(number).tolist()}
    torch.save(said, out / f"{rank}.pt")
    tp.barrier()
    tp.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def outputs(tiny_checkpoint, tmp_path_factory):
    """What both ranks said for every case; all cases in one pair of processes, since importing torch takes seconds."""
    folders = {name: tiny_checkpoint(family, initializer_range=0.2, **config) for name, (family, config) in CASES.items()}
    out = tmp_path_factory.mktemp("tp")
    torch.multiprocessing.spawn(worker, (2, free_port(), folders, out), nprocs=2)
    return folders, [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one(outputs, name):
    folders, said = outputs
    expected = run(folders[name], single())
    for rank in said:  # the logits are complete on every rank
        torch.testing.assert_close(rank[name]["logits"], expected["logits"], atol=1e-4, rtol=1e-4)
        assert rank[name]["tokens"] == expected["tokens"]
        assert rank[name]["argmax"][0] == rank[name]["argmax"][1] == expected["argmax"][0]


def test_collectives(outputs):
    for rank in outputs[1]:
        assert rank["broadcast"]["logits"].item() == 2.0
        assert rank["broadcast"]["tokens"] == [3.0]


def test_sizes_that_cannot_be_are_refused(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    with pytest.raises(ModelError, match="tp_size is 3, but must divide the model's 4 attention heads"):
        load_model(EngineConfig(model_path=str(folder)), resolve(str(folder)), TPGroup(0, 3), "cpu", torch.float32)
    with pytest.raises(ValueError, match="rank is 2"):
        start(2, 2, torch.device("cpu"), "tcp://127.0.0.1:1")

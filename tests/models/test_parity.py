"""Our models against transformers' on tiny random checkpoints: logits within 1e-4, greedy tokens equal, in float32."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import torch

from raysgl.config import EngineConfig
from raysgl.distributed import single
from raysgl.models import resolve
from raysgl.models.loader import load_model
from tests.models.driver import Driver, Row

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}

FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}),
    "llama-dynamic-rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 2.0}}),
    "llama-yarn-rope": ("llama", {"rope_parameters": YARN_ROPE}),
    "mistral": ("mistral", {"sliding_window": 40, "num_hidden_layers": 3}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
}
PROMPT = [random.Random(1).randrange(3, 256) for _ in range(90)]
CHUNKS = [1, 7, 16, 33]
NEW = 64


class Reference:
    """What transformers says: logits at every prompt token, and the greedy continuation."""

    def __init__(self, folder: Path, prompt: list[int]):
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            self.logits_TV = model(ids).logits[0]
            out = model.generate(
                ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        self.tokens = out[0, len(prompt) :].tolist()


@cache
def reference(folder: Path) -> Reference:
    return Reference(folder, PROMPT)


def load(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    return load_model(EngineConfig(model_path=str(folder)), resolve(str(folder)), single(), device, dtype)


@pytest.fixture(params=FAMILIES)
def folder(request, tiny_checkpoint) -> Path:
    family, overrides = FAMILIES[request.param]
    # A wide initialisation: with the usual one the logits of a tiny model are so alike that errors could hide.
    return tiny_checkpoint(family, initializer_range=0.2, **overrides)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("page_size", [1, 16])
def test_whole_prefill_and_decode(folder, page_size, device):
    expected = reference(folder)
    driver = Driver(load(folder, device=device), page_size, num_pages=400)
    torch.testing.assert_close(driver.prefill(Row(PROMPT)).cpu(), expected.logits_TV, atol=1e-4, rtol=1e-4)
    assert driver.greedy(PROMPT, NEW) == expected.tokens


@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunked_prefill(folder, chunk):
    expected = reference(folder)
    driver = Driver(load(folder))
    torch.testing.assert_close(driver.prefill(Row(PROMPT), chunk), expected.logits_TV, atol=1e-4, rtol=1e-4)
    assert driver.greedy(PROMPT, NEW, chunk) == expected.tokens


@pytest.mark.parametrize("page_size", [1, 16])
def test_prefix_hit_shares_pages(folder, page_size):
    expected = reference(folder)
    driver = Driver(load(folder), page_size, num_pages=400)
    owner = Row(PROMPT[:64] + [5, 6, 7])
    driver.prefill(owner)
    shared = owner.pages[: 64 // page_size]
    row = Row(list(PROMPT), cached=64, pages=list(shared))
    assert driver.greedy(PROMPT, NEW, row=row) == expected.tokens
    assert row.pages[: len(shared)] == shared
    # The owner's pages are unharmed: going on from them gives what it gives alone.
    again = Row(list(owner.tokens), cached=len(owner.tokens), pages=list(owner.pages))
    again.tokens.append(9)
    alone = Driver(driver.model, page_size, num_pages=400).prefill(Row(owner.tokens + [9]))[-1:]
    torch.testing.assert_close(driver.step([(again, 1)]), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_mixed_batches(folder, device):
    """Decode rows of different lengths run while another prompt is prefilled in chunks; each equals itself alone."""
    model = load(folder, device=device)
    lengths = [3, 50, 90, 17]
    prompts = [PROMPT[:n] for n in lengths]
    alone = [Driver(model).greedy(prompt, NEW) for prompt in prompts]
    driver = Driver(model)
    rows = [Row(list(prompt)) for prompt in prompts]
    for row in rows[:-1]:
        row.tokens.append(int(driver.prefill(row)[-1].argmax()))
    late = rows[-1]
    for count in (8, 8, 1):  # the late prompt's chunks, beside decode rows
        logits_SV = driver.step([*((row, 1) for row in rows[:-1]), (late, count)])
        for row, logits_V in zip(rows[:-1], logits_SV, strict=False):
            row.tokens.append(int(logits_V.argmax()))
    late.tokens.append(int(logits_SV[-1].argmax()))
    while len(late.tokens) < lengths[-1] + NEW:
        for row, logits_V in zip(rows, driver.step([(row, 1) for row in rows]), strict=True):
            row.tokens.append(int(logits_V.argmax()))
    for row, length, tokens in zip(rows, lengths, alone, strict=True):
        assert row.tokens[length : length + NEW] == tokens
    assert reference(folder).tokens[:NEW] == rows[2].tokens[90 : 90 + NEW]


def test_bfloat16_stays_near_float32(folder):
    expected = reference(folder).logits_TV
    got = Driver(load(folder, torch.bfloat16)).prefill(Row(PROMPT), 40)
    assert got.dtype == torch.float32
    near = torch.nn.functional.cosine_similarity(got, expected, dim=-1)
    assert near.min() > 0.99


def test_float64_is_float64_all_the_way(tiny_checkpoint):
    folder = tiny_checkpoint("llama", initializer_range=0.2)
    model = load(folder, torch.float64)
    whole = Driver(model).prefill(Row(PROMPT))
    chunked = Driver(model, page_size=4).prefill(Row(PROMPT), 11)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole, chunked, atol=1e-12, rtol=1e-12)

"""What the largest steps need in device memory, found by running them on a cache of one page. Legend: `raysgl.kernels.batch`."""

from __future__ import annotations

import numpy as np
import torch

from raysgl.engine.defaults import EngineLimits
from raysgl.kernels.attention import AttentionBackend
from raysgl.kernels.batch import ForwardBatch
from raysgl.sampling.params import SamplingParams
from raysgl.sampling.sampler import Sampler

DECODE_TOKENS = 1024
"""Length of the decode rows that are tried: backends bound what they gather, so longer ones need no more."""


def largest_step(
    model: torch.nn.Module, attention: AttentionBackend, limits: EngineLimits, page_size: int, device: torch.device
) -> int:
    """Bytes beyond those of the weights: the most of the last chunk of a longest prompt, and of a full decode step."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _run(model, attention, [limits.largest_prefill], [limits.context_length], 0, page_size, device)
    rows = limits.max_running
    lengths = [limits.context_length] + [min(DECODE_TOKENS, limits.context_length)] * (rows - 1)
    _run(model, attention, [1] * rows, lengths, rows, page_size, device)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@torch.inference_mode()
def _run(
    model: torch.nn.Module,
    attention: AttentionBackend,
    query_lens: list[int],
    kv_lens: list[int],
    num_decode: int,
    page_size: int,
    device: torch.device,
) -> None:
    """A step whose every page is the padding page."""
    tokens, rows = sum(query_lens), len(query_lens)
    positions = np.concatenate([np.arange(kv - query, kv) for query, kv in zip(query_lens, kv_lens)])
    batch = ForwardBatch(
        token_ids_T=torch.zeros(tokens, dtype=torch.int64, device=device),
        positions_T=torch.from_numpy(positions).to(device),
        write_slots_T=torch.from_numpy(positions % page_size).to(device),
        page_table_SP=torch.zeros(rows, -(-max(kv_lens) // page_size), dtype=torch.int32, device=device),
        query_lens=query_lens,
        kv_lens=kv_lens,
        query_lens_S=torch.tensor(query_lens, dtype=torch.int32, device=device),
        kv_lens_S=torch.tensor(kv_lens, dtype=torch.int32, device=device),
        num_decode=num_decode,
        logits_L=torch.tensor(np.cumsum(query_lens) - 1, device=device),
        page_size=page_size,
    )
    attention.plan(batch)
    logits_LV = model.logits(model(batch, attention).index_select(0, batch.logits_L))
    sampler = Sampler(rows, logits_LV.shape[1], device)
    for bias in (None, {0: 1.0}):  # biased logits are float32: another kernel than the model's own dtype takes
        for slot in range(rows):
            sampler.init_slot(slot, SamplingParams(top_p=0.9, logprobs=True, top_logprobs=1, logit_bias=bias), seed=slot)
        sampler.sample(logits_LV, np.arange(rows))

"""Drives a model with ForwardBatch directly: pages, chunks and batches as a test wants them, no engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from raysgl.kernels.attention import KVCache, create_backend
from raysgl.kernels.batch import ForwardBatch


@dataclass
class Row:
    """A sequence: its tokens, how many of them are in the cache, and its pages in order."""

    tokens: list[int]
    cached: int = 0
    pages: list[int] = field(default_factory=list)


class Driver:
    """A model with a KV pool whose pages are handed out in a shuffled order, so that none are neighbours by luck."""

    def __init__(self, model, page_size: int = 16, num_pages: int = 256, tp_size: int = 1):
        config = model.config
        parameter = next(model.parameters())
        self.model, self.page_size, self.device = model, page_size, parameter.device
        cache = KVCache(
            config.num_layers,
            num_pages,
            page_size,
            config.kv_heads_per_rank(tp_size),
            config.head_dim,
            parameter.dtype,
            parameter.device,
        )
        self.attention = create_backend("torch", cache, config.num_heads // tp_size, config.windows)
        order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(0)) + 1
        self.free = order.tolist()

    def step(self, work: list[tuple[Row, int]]) -> torch.Tensor:
        """Compute so many more tokens of each row; decode rows must come first. Logits after each row's last: [S, V]."""
        return self.all_logits(work, [sum(c for _, c in work[: i + 1]) - 1 for i in range(len(work))])

    def all_logits(self, work: list[tuple[Row, int]], wanted: list[int] | None = None) -> torch.Tensor:
        """The same, with logits at the `wanted` indices into the step's tokens (None: all)."""
        batch = self.batch(work, wanted)
        self.attention.plan(batch)
        hidden_TD = self.model(batch, self.attention)
        for row, count in work:
            row.cached += count
        return self.model.logits(hidden_TD[batch.logits_L]).to(torch.promote_types(hidden_TD.dtype, torch.float32))

    def batch(self, work: list[tuple[Row, int]], wanted: list[int] | None = None) -> ForwardBatch:
        size = self.page_size
        ids, positions, slots = [], [], []
        decode = [count == 1 and row.cached > 0 for row, count in work]
        num_decode = decode.index(False) if False in decode else len(decode)
        for row, count in work:
            end = row.cached + count
            while len(row.pages) * size < end:
                row.pages.append(self.free.pop())
            span = range(row.cached, end)
            ids += row.tokens[row.cached : end]
            positions += span
            slots += [row.pages[p // size] * size + p % size for p in span]
        counts = [count for _, count in work]
        lens = [row.cached + count for row, count in work]
        table = torch.zeros(len(work), max(len(row.pages) for row, _ in work) + 1, dtype=torch.int32)
        for index, (row, _) in enumerate(work):
            table[index, : len(row.pages)] = torch.tensor(row.pages)

        def tensor(values, dtype=torch.int64):
            return torch.tensor(values, dtype=dtype, device=self.device)

        return ForwardBatch(
            token_ids_T=tensor(ids),
            positions_T=tensor(positions),
            write_slots_T=tensor(slots),
            page_table_SP=table.to(self.device),
            query_lens=counts,
            kv_lens=lens,
            query_lens_S=tensor(counts, torch.int32),
            kv_lens_S=tensor(lens, torch.int32),
            num_decode=num_decode,
            logits_L=tensor(list(range(len(ids))) if wanted is None else wanted),
            page_size=size,
        )

    def prefill(self, row: Row, chunk: int | None = None) -> torch.Tensor:
        """Compute what the row lacks, `chunk` tokens a step. Logits at every token computed: [T, V]."""
        parts = []
        while row.cached < len(row.tokens):
            count = min(chunk or len(row.tokens), len(row.tokens) - row.cached)
            parts.append(self.all_logits([(row, count)]))
        return torch.cat(parts)

    def greedy(self, prompt: list[int], count: int, chunk: int | None = None, row: Row | None = None) -> list[int]:
        """`count` greedy tokens after the prompt; `row` may hold a cached prefix of it."""
        row = row or Row(list(prompt))
        logits_TV = self.prefill(row, chunk)
        for _ in range(count - 1):
            row.tokens.append(int(logits_TV[-1].argmax()))
            logits_TV = self.step([(row, 1)])
        row.tokens.append(int(logits_TV[-1].argmax()))
        return row.tokens[len(prompt) :]

"""Attention with torch's scaled_dot_product_attention over gathered pages: the reference, and what serves CPUs.

Decode rows go in a few padded groups; prefill rows one by one. Legend: `raysgl.kernels.batch`; also G query heads per
key/value head, B tokens of a group's longest row.

Pages are copied to a scratch buffer first, since torch has no paged attention. Measured on 2 cores (float32, K=3, H=64): the copy
costs as much as the attention itself, and the sum is the time to read the pages from memory, so batching beyond 16 MB of
scratch gains nothing and below it a row costs the same in any group; what counts is to copy few tokens of padding and to
reuse the scratch (fresh memory costs 3 to 5 times the copy in page faults).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from raysgl.kernels.attention.interface import AttentionLayer
from raysgl.kernels.attention.kv_cache import KVCache
from raysgl.kernels.batch import ForwardBatch

SCRATCH_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
"""Keys and values gathered at a time, by device type."""

MAX_PADDING = 1.25
"""A group's longest row has at most so many times the pages of its shortest."""

FREE_PADDING_PAGES = {"cpu": 4, "cuda": 1 << 30}
"""...or at most so many pages more: padding that costs less than another call would."""


class Gather:
    """Pages that are copied side by side before they are attended.

    pages: indices into KVCache.pages, keys then values, of `rows` rows. `keys` and `values`, [rows, K, B, H], are views of the
    scratch: they hold a layer's pages after `run`, until another Gather runs. All views are made here, once per step:
    for a small model the layers' work is hardly more than the making of views.
    """

    def __init__(self, pages: torch.Tensor, rows: int, cache: KVCache, scratch: torch.Tensor):
        self._pages = pages
        elements = cache.pages[0].shape[1]
        self._target = scratch[: pages.numel() * elements].view(-1, elements)
        both = self._target.view(cache.data.dtype).view(2, rows, -1, cache.num_kv_heads, cache.head_dim).transpose(2, 3)
        self.keys, self.values = both.unbind(0)

    def run(self, source: torch.Tensor) -> None:
        torch.index_select(source, 0, self._pages, out=self._target)


@dataclass
class DecodeGroup:
    """Decode rows that attend in one call.

    rows_S: which (None: all decode rows, in order). mask: [S, 1, 1, B], 0 or -inf (None: nothing to mask).
    """

    rows_S: torch.Tensor | None
    num_rows: int
    gather: Gather
    mask: torch.Tensor | None


@dataclass
class PrefillRow:
    """One row that computes a chunk: tokens [begin, end) of T.

    Without `gather` all its keys are in this step, and `mask` is None for plain causal attention. With it, mask is
    [1, 1, end - begin, B].
    """

    begin: int
    end: int
    gather: Gather | None
    mask: torch.Tensor | None


class TorchBackend:
    """See `AttentionBackend`."""

    has_attend = False
    capturable = False

    def __init__(self, cache: KVCache, num_heads: int, windows: Iterable[int | None] = (None,)):
        self._cache = cache
        self._num_heads = num_heads
        self._group = num_heads // cache.num_kv_heads
        self._windows = set(windows)
        self._scratch = cache.pages[0].new_empty(0)
        self._work: dict[int | None, tuple[list[DecodeGroup], list[PrefillRow]]] = {}
        self._write_slots_T = torch.empty(0)
        page_bytes = cache.pages[0].shape[1] * cache.data.element_size()
        self._group_pages = max(1, SCRATCH_BYTES[cache.device.type] // (2 * page_bytes))
        self._free_padding = FREE_PADDING_PAGES[cache.device.type]

    # ------------------------------------------------------------------ once per step

    def plan(self, batch: ForwardBatch) -> None:
        self._write_slots_T = batch.write_slots_T
        longest = max(batch.kv_lens, default=0)
        whole: tuple[list[DecodeGroup], list[PrefillRow]] | None = None
        for window in self._windows:
            if window is not None and window < longest:
                self._work[window] = (self._plan_decode(batch, window), self._plan_prefill(batch, window))
                continue
            if whole is None:  # a window that nothing exceeds needs no plan of its own
                whole = (self._plan_decode(batch, None), self._plan_prefill(batch, None))
            self._work[window] = whole

    def _plan_decode(self, batch: ForwardBatch, window: int | None) -> list[DecodeGroup]:
        size = self._cache.page_size
        spans = [(first_visible(n, 1, window) // size, -(-n // size)) for n in batch.kv_lens[: batch.num_decode]]
        counts = [last - first for first, last in spans]
        groups = []
        for rows in self._split(counts):
            width = max(counts[row] for row in rows)
            groups.append(self._decode_group(batch, rows, [spans[row][0] for row in rows], width, window))
        return groups

    def _split(self, counts: list[int]) -> list[list[int]]:
        """Rows in groups of similar page counts that fit the scratch. One group keeps the rows' order."""
        if not counts:
            return []

        def fits(least: int, most: int, rows: int) -> bool:
            return rows * most <= self._group_pages and (most <= MAX_PADDING * least or most - least <= self._free_padding)

        if fits(min(counts), max(counts), len(counts)):
            return [list(range(len(counts)))]
        groups: list[list[int]] = []
        for row in sorted(range(len(counts)), key=counts.__getitem__):
            if groups and fits(counts[groups[-1][0]], counts[row], len(groups[-1]) + 1):
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _decode_group(
        self, batch: ForwardBatch, rows: list[int], first_pages: list[int], width: int, window: int | None
    ) -> DecodeGroup:
        device = self._cache.device
        size = self._cache.page_size
        lens = [batch.kv_lens[row] for row in rows]
        in_order = len(rows) == batch.num_decode and rows == list(range(len(rows)))
        rows_S = None if in_order else torch.tensor(rows, device=device)
        table_SP = batch.page_table_SP[: len(rows)] if rows_S is None else batch.page_table_SP.index_select(0, rows_S)
        if any(first_pages):
            columns = torch.tensor(first_pages, device=device).unsqueeze(1) + torch.arange(width, device=device)
            pages_SP = table_SP.gather(1, columns.clamp_(max=table_SP.shape[1] - 1))
        else:
            pages_SP = table_SP[:, :width]
        mask = None
        if window is not None or any(n != width * size for n in lens):
            positions_SB = torch.tensor([page * size for page in first_pages], device=device).unsqueeze(1)
            positions_SB = positions_SB + torch.arange(width * size, device=device)
            lens_S1 = torch.tensor(lens, device=device).unsqueeze(1)
            hidden = positions_SB >= lens_S1
            if window is not None:
                hidden |= positions_SB < lens_S1 - window
            mask = self._bias(hidden).view(len(rows), 1, 1, -1)
        return DecodeGroup(rows_S, len(rows), self._gather(pages_SP, len(rows)), mask)

    def _plan_prefill(self, batch: ForwardBatch, window: int | None) -> list[PrefillRow]:
        device = self._cache.device
        size = self._cache.page_size
        work = []
        begin = batch.num_decode
        for row in range(batch.num_decode, len(batch.query_lens)):
            count, length = batch.query_lens[row], batch.kv_lens[row]
            end = begin + count
            windowed = window is not None and window < length
            gather = mask = None
            if count < length or windowed:
                first = first_visible(length, count, window) // size if count < length else 0
                keys = torch.arange(first * size, length, device=device)
                if count < length:
                    gather = self._gather(batch.page_table_SP[row, first : -(-length // size)], 1)
                    # The whole pages are attended: what lies past the row's end is hidden by causality.
                    keys = torch.arange(first * size, -(-length // size) * size, device=device)
                queries = torch.arange(length - count, length, device=device).unsqueeze(1)
                hidden = keys > queries
                if windowed:
                    hidden |= keys <= queries - window
                mask = self._bias(hidden).view(1, 1, count, -1)
            work.append(PrefillRow(begin, end, gather, mask))
            begin = end
        return work

    def _gather(self, pages: torch.Tensor, rows: int) -> Gather:
        flat = pages.reshape(-1)
        both = torch.cat((flat, flat + (1 + self._cache.num_pages)))
        elements = both.numel() * self._cache.pages[0].shape[1]
        if self._scratch.numel() < elements:  # gathers planned before keep the smaller one; they need no more
            self._scratch = self._cache.pages[0].new_empty(elements)
        return Gather(both, rows, self._cache, self._scratch)

    def _bias(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(hidden.shape, dtype=self._cache.dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))

    # ------------------------------------------------------------------ once per layer

    def forward(self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        self._cache.write(layer.index, self._write_slots_T, k_TKH, v_TKH)
        groups, prefills = self._work[layer.window]
        if len(groups) == 1 and not prefills:  # the common step: nothing to put together
            return self._decode(q_TNH, groups[0], layer)
        out_TNH = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        for group in groups:
            if group.rows_S is None:
                out_TNH[: group.num_rows] = self._decode(q_TNH[: group.num_rows], group, layer)
            else:
                out_TNH.index_copy_(0, group.rows_S, self._decode(q_TNH.index_select(0, group.rows_S), group, layer))
        for row in prefills:
            part = slice(row.begin, row.end)
            out_TNH[part] = self._prefill(q_TNH[part], k_TKH[part], v_TKH[part], row, layer)
        return out_TNH

    def _decode(self, q_SNH: torch.Tensor, group: DecodeGroup, layer: AttentionLayer) -> torch.Tensor:
        # The queries that share a key head stand in for query positions, so that keys need no copy for each of them.
        rows, heads, dim = q_SNH.shape
        keys, values = self._read(group.gather, layer)
        q_SKGH = q_SNH.reshape(rows, self._cache.num_kv_heads, self._group, dim)
        out = _attend(q_SKGH, keys, values, group.mask, False, layer)
        return out.reshape(rows, heads, dim)

    def _read(self, gather: Gather, layer: AttentionLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, [rows, K, B, H], in the model's dtype."""
        gather.run(self._cache.pages[layer.index])
        scales = self._cache.layer_scales(layer.index)
        if scales is None:
            return gather.keys, gather.values
        k_scale, v_scale = (scale_K.view(-1, 1, 1).to(self._cache.dtype) for scale_K in scales)
        return gather.keys.to(self._cache.dtype) * k_scale, gather.values.to(self._cache.dtype) * v_scale

    def _prefill(
        self, q_tNH: torch.Tensor, k_tKH: torch.Tensor, v_tKH: torch.Tensor, row: PrefillRow, layer: AttentionLayer
    ) -> torch.Tensor:
        if row.gather is not None:
            keys, values = self._read(row.gather, layer)
        else:
            keys, values = k_tKH.transpose(0, 1).unsqueeze(0), v_tKH.transpose(0, 1).unsqueeze(0)
        return _attend(q_tNH.transpose(0, 1).unsqueeze(0), keys, values, row.mask, row.mask is None, layer)[0].transpose(0, 1)


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, causal: bool, layer: AttentionLayer
) -> torch.Tensor:
    """[.., heads, queries, H] over [.., key heads, B, H]. The mask is added; causal: query i sees the first i + 1 keys."""
    grouped = q.shape[1] > keys.shape[1]
    if layer.soft_cap is None:
        return F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, is_causal=causal, scale=layer.scale, enable_gqa=grouped
        )
    if grouped:
        keys, values = (tensor.repeat_interleave(q.shape[1] // keys.shape[1], 1) for tensor in (keys, values))
    scores = (q @ keys.transpose(-1, -2)).float() * layer.scale
    scores = torch.tanh_(scores / layer.soft_cap) * layer.soft_cap
    if mask is not None:
        scores += mask
    if causal:
        queries, length = scores.shape[-2:]
        scores.masked_fill_(torch.ones(queries, length, dtype=torch.bool, device=q.device).triu(1), float("-inf"))
    return scores.softmax(-1).to(values.dtype) @ values


def first_visible(length: int, count: int, window: int | None) -> int:
    """The first position that the earliest of the row's last `count` tokens sees."""
    return 0 if window is None else max(0, length - count - window + 1)

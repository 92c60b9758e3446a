"""FlashInfer over the paged cache: its FA3 kernels for prompts on Hopper (FA2 elsewhere), its split-KV FA2 kernels for decode rows.

FlashInfer plans on the host, with lengths that the host knows. Decode rows and prompt rows go in launches of their own, since its FA3
kernels do not put the query heads of a key head into one tile. Kernels are compiled when a (type, head dim, window or not, soft cap
or not) is first used, unless the package brings them. After Ye et al. 2025, "FlashInfer: efficient and customizable attention engine".
Legend: `raysgl.kernels.batch`; S1 = S + 1.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raysgl.kernels.attention.interface import AttentionLayer, UnsupportedAttention
from raysgl.kernels.attention.kv_cache import KVCache
from raysgl.kernels.batch import ForwardBatch
from raysgl.kernels.triton.pages import join_pages
from raysgl.kernels.triton.runtime import workspace

logger = logging.getLogger(__name__)

WORKSPACE_BYTES = 128 << 20
"""For partial results of split rows. 512 decode rows of 32 heads of 128 take 38 MB."""
TENSOR_CORES_FROM = 4
"""Query heads a key head from which decode runs on tensor cores, as FlashInfer advises; with fewer they would mostly multiply padding."""


def refuses(device: torch.device, head_dim: int, dtype: torch.dtype, quantised: bool) -> str | None:
    """Why FlashInfer cannot serve such a model here, or None."""
    if device.type != "cuda":
        return f"needs a GPU, but the device is {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or later"
    if importlib.util.find_spec("flashinfer") is None:
        return "needs the package flashinfer-python"
    return refuses_model(head_dim, dtype, quantised)


def refuses_model(head_dim: int, dtype: torch.dtype, quantised: bool) -> str | None:
    """The part of `refuses` that no machine changes."""
    if quantised:
        return "does not take kv_cache_dtype fp8_e4m3 here (its kernels know no scale for each head); choose triton"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16, but the model's dtype is {str(dtype).removeprefix('torch.')}"
    if head_dim not in (64, 128, 256):
        return f"takes head dims 64, 128 and 256, but the model's is {head_dim}"
    return None


def compiled(cache: KVCache, num_heads: int, windows: Iterable[int | None]) -> bool:
    """Whether the kernels for such a model's layers are there, soft caps aside; else their first use compiles them, for minutes."""
    dtype, dim = cache.dtype, cache.head_dim
    try:
        jit = importlib.import_module("flashinfer.jit")
        # The variants that the wrappers use, which is no public knowledge (0.7.2).
        modules = importlib.import_module("flashinfer.jit.attention.modules")
        specs = []
        for window in set(windows):
            types = (dtype, dtype, dtype, torch.int32, dim, dim, 0, window is not None, False)
            cores = modules._gen_batch_prefill_primary_module("fa2", *types, False)
            hopper = torch.cuda.get_device_capability(cache.device)[0] == 9
            specs.append(jit.gen_batch_prefill_module("fa3", *types, False) if hopper else cores)
            specs.append(cores if on_tensor_cores(num_heads, cache.num_kv_heads) else jit.gen_batch_decode_module(*types))
        return all(spec.is_compiled for spec in specs)
    except Exception as error:  # noqa: BLE001 - another version of FlashInfer: who wants it can set it
        logger.info("cannot tell whether flashinfer's kernels are compiled: %s", error)
        return False


def on_tensor_cores(num_heads: int, num_kv_heads: int) -> bool:
    """Whether decode runs on tensor cores."""
    return num_heads // num_kv_heads >= TENSOR_CORES_FROM


@dataclass(frozen=True)
class Kind:
    """What a plan of FlashInfer's depends on besides the rows: layers of one kind share it."""

    scale: float
    window: int | None
    soft_cap: float | None

    @staticmethod
    def of(layer: AttentionLayer) -> Kind:
        return Kind(layer.scale, layer.window, layer.soft_cap)

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """Of `plan`. FlashInfer counts the keys before the query's own."""
        return {
            "sm_scale": self.scale,
            "window_left": -1 if self.window is None else self.window - 1,
            "logits_soft_cap": self.soft_cap,
            "q_data_type": dtype,
            "kv_data_type": dtype,
        }


@dataclass
class Rows:
    """Some rows of a step. starts_S1: where their queries begin. first_S1: where their pages begin in `pages`, on the device.

    last_S: tokens in each row's last page. starts, first and last are int32 on the host.
    """

    starts_S1: torch.Tensor
    first_S1: torch.Tensor
    last_S: torch.Tensor
    pages: torch.Tensor


def page_starts(kv_lens_S: np.ndarray, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(first_S1, last_S) of `Rows` for rows of these lengths."""
    counts_S = -(-kv_lens_S // page_size)
    first_S1 = np.zeros(len(kv_lens_S) + 1, dtype=np.int32)
    np.cumsum(counts_S, out=first_S1[1:])
    return torch.from_numpy(first_S1), torch.from_numpy((kv_lens_S - (counts_S - 1) * page_size).astype(np.int32))


@dataclass
class Wrappers:
    """FlashInfer's wrappers of one sort, one for each kind of layer that has been met; they are planned together."""

    make: Callable[[], Any]
    plan: Callable[[Any, Kind, Rows], None]
    _made: dict[Kind, Any] = field(default_factory=dict)
    _copied: dict[Kind, torch.cuda.Event] = field(default_factory=dict)
    _rows: Rows | None = None
    _planned: set[Kind] = field(default_factory=set)

    def start(self, rows: Rows) -> None:
        """Plan a step of these rows, for the kinds that are known."""
        self._rows = rows
        self._planned.clear()
        for kind in self._made:
            self._plan(kind)

    def _plan(self, kind: Kind) -> None:
        assert self._rows is not None, "attend comes after plan"
        if kind not in self._made:
            logger.info("flashinfer: a plan for %s; kernels that the package does not bring are compiled now", kind)
            self._made[kind] = self.make()
        on_gpu = self._rows.pages.is_cuda
        if on_gpu:
            # The plan before lies in pinned memory that this one overwrites; the device must have read it.
            self._copied.setdefault(kind, torch.cuda.Event()).synchronize()
        self.plan(self._made[kind], kind, self._rows)
        if on_gpu:
            self._copied[kind].record()
        self._planned.add(kind)

    def run(
        self, q_TNH: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], layer: AttentionLayer, out_TNH: torch.Tensor
    ) -> None:
        kind = Kind.of(layer)
        if kind not in self._planned:  # the first step that meets it; never while a graph is captured
            self._plan(kind)
        self._made[kind].run(q_TNH, kv, out=out_TNH)


class FlashInferBackend:
    """See `AttentionBackend` and `HostPlanned`."""

    has_attend = True
    capturable = False

    def __init__(self, cache: KVCache, num_heads: int, windows: Iterable[int | None] = (None,)):
        if reason := refuses(cache.device, cache.head_dim, cache.dtype, cache.quantised):
            raise UnsupportedAttention(f"attention_backend flashinfer {reason}")
        self.cache = cache
        self._shape = (num_heads, cache.num_kv_heads, cache.head_dim, cache.page_size)
        self.layers = [(layer[0], layer[1]) for layer in cache.data]
        """Keys and values of each layer, [pages, page_size, K, H]."""
        self._library = importlib.import_module("flashinfer")
        # Not one for both: they may run side by side.
        self._decode_memory = workspace("flashinfer decode", WORKSPACE_BYTES, torch.uint8, cache.device)
        self._prefill_memory = workspace("flashinfer prefill", WORKSPACE_BYTES, torch.uint8, cache.device)
        self._decode = Wrappers(self._new_decode, self._plan_decode)
        self._prefill = Wrappers(self._new_prefill, self._plan_prefill)
        self._graph_pages = torch.empty(0, dtype=torch.int32, device=cache.device)

    def plan(self, batch: ForwardBatch) -> None:
        self.write_slots_T = batch.write_slots_T
        self._num_decode, rows = batch.num_decode, len(batch.query_lens)
        self._has_prefill = rows > batch.num_decode
        starts = np.zeros(rows + 1, dtype=np.int32)
        np.cumsum(batch.query_lens, out=starts[1:])
        kv_lens = np.asarray(batch.kv_lens)
        if self._num_decode:
            self._decode.start(self._rows(starts, kv_lens, batch.page_table_SP, 0, self._num_decode))
        if self._has_prefill:
            self._prefill.start(self._rows(starts, kv_lens, batch.page_table_SP, self._num_decode, rows))

    def _rows(self, starts: np.ndarray, kv_lens: np.ndarray, table_SP: torch.Tensor, begin: int, end: int) -> Rows:
        first_S1, last_S = page_starts(kv_lens[begin:end], self.cache.page_size)
        pages = torch.empty(int(first_S1[-1]), dtype=torch.int32, device=self.cache.device)
        join_pages(table_SP[begin:end], first_S1.to(self.cache.device, non_blocking=True), pages)
        return Rows(torch.from_numpy(starts[begin : end + 1] - starts[begin]), first_S1, last_S, pages)

    def forward(self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        self.cache.write(layer.index, self.write_slots_T, k_TKH, v_TKH)
        return self.attend(q_TNH, layer)

    def attend(self, q_TNH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """Attention alone, over keys and values that are in the cache already."""
        out_TNH = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        kv, decodes = self.layers[layer.index], self._num_decode
        if decodes:
            self._decode.run(q_TNH[:decodes], kv, layer, out_TNH[:decodes])
        if self._has_prefill:
            self._prefill.run(q_TNH[decodes:], kv, layer, out_TNH[decodes:])
        return out_TNH

    # ---------------------------------------------------------------- FlashInfer's wrappers

    def _new_prefill(self) -> Any:
        return self._library.BatchPrefillWithPagedKVCacheWrapper(self._prefill_memory, "NHD")

    def _plan_prefill(self, wrapper: Any, kind: Kind, rows: Rows) -> None:
        wrapper.plan(
            rows.starts_S1,
            rows.first_S1,
            rows.pages,
            rows.last_S,
            *self._shape,
            causal=True,
            **kind.arguments(self.cache.dtype),
        )

    def _new_decode(self, **fixed: Any) -> Any:
        return self._library.BatchDecodeWithPagedKVCacheWrapper(
            self._decode_memory, "NHD", use_tensor_cores=on_tensor_cores(*self._shape[:2]), **fixed
        )

    def _plan_decode(self, wrapper: Any, kind: Kind, rows: Rows) -> None:
        wrapper.plan(rows.first_S1, rows.pages, rows.last_S, *self._shape, **kind.arguments(self.cache.dtype))

    # ---------------------------------------------------------------- decode steps in graphs

    def for_graph(self, rows: int) -> FlashInferGraph:
        return FlashInferGraph(self, rows)

    def graph_pages(self, count: int) -> torch.Tensor:
        """Memory for so many pages, which all graphs share: each fills it anew."""
        if len(self._graph_pages) < count:
            self._graph_pages = torch.empty(count, dtype=torch.int32, device=self.cache.device)
        return self._graph_pages


class FlashInferGraph:
    """See `GraphAttention`. The captured part lays the rows' pages end to end and attends; lengths and split come from `prepare`."""

    has_attend = True
    capturable = True

    def __init__(self, backend: FlashInferBackend, rows: int):
        self.cache = backend.cache
        self._backend = backend
        ints = torch.zeros(2 * rows + 1, dtype=torch.int32, device=self.cache.device)
        self._first_S1, self._last_S = ints[: rows + 1], ints[rows + 1 :]
        self._pages = torch.empty(0, dtype=torch.int32, device=self.cache.device)
        self._none = self._pages
        self._wrappers = Wrappers(self._new, backend._plan_decode)

    def _new(self) -> Any:
        return self._backend._new_decode(
            use_cuda_graph=True,
            paged_kv_indptr_buffer=self._first_S1,
            paged_kv_indices_buffer=self._pages,
            paged_kv_last_page_len_buffer=self._last_S,
        )

    def prepare(self, kv_lens_S: np.ndarray) -> None:
        first_S1, last_S = page_starts(kv_lens_S, self.cache.page_size)
        self._first_S1.copy_(first_S1, non_blocking=True)
        # The pages are laid out in the graph: there are none to copy.
        self._wrappers.start(Rows(first_S1, first_S1, last_S, self._none))

    def plan(self, batch: ForwardBatch) -> None:
        self.write_slots_T = batch.write_slots_T
        if not len(self._pages):
            self._pages = self._backend.graph_pages(batch.page_table_SP.numel())
        join_pages(batch.page_table_SP, self._first_S1, self._pages)

    def forward(self, q_TNH: torch.Tensor, k_TKH: torch.Tensor, v_TKH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        self.cache.write(layer.index, self.write_slots_T, k_TKH, v_TKH)
        return self.attend(q_TNH, layer)

    def attend(self, q_TNH: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        """Attention alone, over keys and values that are in the cache already."""
        out_TNH = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        self._wrappers.run(q_TNH, self._backend.layers[layer.index], layer, out_TNH)
        return out_TNH

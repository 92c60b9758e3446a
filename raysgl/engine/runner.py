"""Runs step plans on one shard: where torch begins.

Every rank makes one with the same config and launches the same plans in the same order. Rank 0 samples; the others get its tokens
on the device, but for steps of CUDA graphs that need nothing but an argmax, which every rank takes itself. Legend: `raysgl.kernels.batch`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from raysgl.config import EngineConfig
from raysgl.distributed import TPGroup, share
from raysgl.engine import memory, profile
from raysgl.engine.decode_graphs import DecodeGraphs
from raysgl.engine.defaults import resolve_defaults
from raysgl.engine.launching import Launching
from raysgl.engine.mixed_graphs import MixedGraphs
from raysgl.engine.pending import LaunchedStep, StepOutputs
from raysgl.engine.plan import SlotInit, StepPlan, ints
from raysgl.engine.slots import Slots
from raysgl.kernels import linear_table, sent_sums
from raysgl.kernels.attention import FP8, HostPlanned, KVCache, StepAttention, create_attention, create_backend, page_bytes
from raysgl.kernels.batch import ForwardBatch
from raysgl.kernels.fused import triton_kernels
from raysgl.kernels.sent_sums import SentSums
from raysgl.messages import pack_ids
from raysgl.models import Checkpoint
from raysgl.models.checkpoint import Progress
from raysgl.models.loader import choose_dtype, load_model
from raysgl.sampling.logprobs import Logprobs, join, logprobs_of
from raysgl.sampling.params import SamplingParams
from raysgl.sampling.sampler import Sampler
from raysgl.sampling.slot_settings import SlotSettings
from raysgl.sampling.token_masks import TokenMasks
from raysgl.sampling.transfer import upload

log = logging.getLogger(__name__)

Finish = Callable[[TokenMasks | None], StepOutputs]
"""Samples a step whose forward pass has been launched."""

LATE = 0.8
"""A long step is about to end when so much of its layers has run. What is left (3 ms of a step of 600 tokens of an 8B model on an
H100) is enough to plan the next and launch its beginning."""
PROMPT_LOGITS_BYTES = 128 << 20
"""Logits of prompt tokens are made so many bytes at a time: those of a whole chunk may not fit."""


class ModelRunner(Launching):
    """See `raysgl.engine.plan.Runner`. Not thread safe: one thread launches.

    num_pages, page_size, context_length, vocab_size: of the pool and the model. max_running: slots.
    memory: a `MemoryReport`. cascade_steps: decode steps in which rows shared a prefix. device_name: for people.
    Raises `ModelError` for a model that cannot be served, or a pool that does not fit.
    """

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        rank: int,
        tp: TPGroup,
        device: torch.device | str,
        progress: Progress | None = None,
    ):
        self._config, self._rank, self._tp = config, rank, tp
        self.device = torch.device(device)
        tell = progress or (lambda done, what: None)
        hf = self._hf = checkpoint.config()
        limits = resolve_defaults(config, self.device.type, hf.max_position_embeddings)
        if self.device.type == "cpu":
            self._threads = limits.cpu_threads
        self._use_threads()
        dtype = self._dtype = choose_dtype(config.dtype, hf, self.device)
        with memory.explaining("loading the weights", "raise tp_size, or choose a smaller model or dtype", self.device):
            self._model = load_model(config, checkpoint, tp, self.device, dtype, progress)
        self.limits = limits
        self.page_size = config.page_size
        self.context_length = limits.context_length
        self.vocab_size = hf.vocab_size
        self.max_running = limits.max_running

        if tp.size > 1 and not config.disable_custom_all_reduce and triton_kernels(self.device, dtype):
            from raysgl.kernels.triton import all_reduce, argmax

            tp.peers = share(tp, all_reduce.memory(tp.size, hf.hidden_size), self.device)
            if tp.peers is not None:
                tp.winners = share(tp, argmax.memory(tp.size), self.device)
            if tp.peers is not None and tp.size == 2 and hf.hidden_size <= sent_sums.MOST_DIM:
                rows = min(limits.step_tokens or limits.context_length, sent_sums.MOST_ROWS)
                large = share(tp, sent_sums.memory(rows, hf.hidden_size), self.device)
                assert large is not None, "ranks that could see each other's memory cannot any more"
                tp.sent = SentSums(large, large.opened[1 - rank], rows, hf.hidden_size, dtype)
        weights = memory.weight_bytes(self._model)
        activations = graphs = 0
        if self.device.type == "cuda":
            tell(0.0, "measuring memory")
            cache = self._new_cache(1)
            cure = (
                f"lower chunked_prefill_size ({limits.step_tokens or 'unlimited'}), max_running_requests ({limits.max_running}) or "
                f"context_length ({limits.context_length}), or raise tp_size ({tp.size})"
            )
            with memory.explaining("running the largest step", cure, self.device):
                activations = profile.largest_step(
                    self._model, self._new_attention(cache), limits, config.page_size, self.device
                )
            del cache
            budget = memory.cuda_budget(config, weights, activations, self.device)
            self._stream = torch.cuda.Stream(self.device)
        else:
            budget = memory.cpu_budget(config, weights)
        heads, kept_as = hf.kv_heads_per_rank(tp.size), FP8 if self._quantised else dtype
        one_page = page_bytes(hf.num_layers, config.page_size, heads, hf.head_dim, kept_as)
        self.num_pages = self._least(memory.pool_pages(config, limits, one_page, budget))
        tell(0.0, "allocating the KV cache")
        self.make_cache()
        log.info("attention backends: %s", self._attention.why)
        self._slots = Slots(limits.max_running, limits.context_length, config.page_size, self.device)
        self._sampler = Sampler(limits.max_running, hf.vocab_size, self.device) if rank == 0 else None
        self._settings = self._sampler.settings if self._sampler else SlotSettings(limits.max_running, hf.vocab_size)
        self._unsampled: list[tuple[LaunchedStep, Finish]] = []
        self._late: torch.cuda.Event | None = None
        if self._stream is not None:
            layers = self._model.model.layers
            layers[int(LATE * len(layers))].register_forward_hook(self._mark_late)
        self.drop_graphs()
        self.cascade_steps = 0
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        tell(0.0, "warming up")
        self.warm_up()
        if self._stream is not None:
            before = torch.cuda.memory_reserved(self.device)
            tell(0.0, "capturing CUDA graphs")
            self.make_graphs()
            graphs = torch.cuda.memory_reserved(self.device) - before
        self.memory = memory.MemoryReport(
            weights, activations, self._cache.num_bytes, self.num_pages * config.page_size, graphs
        )
        log.info("rank %d on %s: %s", rank, self.device_name, self.memory)
        if self.num_pages * config.page_size < self.context_length:
            log.warning(
                "the KV cache holds %d tokens, less than the context length %d: longer requests are refused",
                self.num_pages * config.page_size,
                self.context_length,
            )

    @property
    def model(self) -> torch.nn.Module:
        """With this rank's weights."""
        return self._model

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Run a step. On cuda it returns when everything is launched, on cpu when the step has run; on cpu it raises itself."""
        if self._stream is None:
            self._use_threads()
        with self._in_stream():
            return self._launch(plan)

    @torch.inference_mode()
    def sample(self, masks: TokenMasks | None) -> None:
        """The step launched last is guided: let it sample."""
        step, finish = self._unsampled.pop()
        with self._in_stream():
            step.complete(finish(masks))

    # ---------------------------------------------------------------- memory (see `raysgl.engine.occupation`)

    def make_cache(self) -> None:
        """The KV cache, empty, and the attention that works on it. Raises `ModelError`."""
        with memory.explaining("allocating the KV cache", self._less(), self.device):
            self._cache = self._new_cache(self.num_pages)
        self.weights_changed()
        self._attention = self._new_attention(self._cache)

    def weights_changed(self) -> None:
        """A cache in 8 bits takes the scales of the weights that are there now."""
        cache = vars(self).get("_cache")
        if cache is not None and cache.scales is not None:
            cache.scales.fill_(1.0)
            for place, scale in self._model.kv_scales.items():
                cache.scales[place] = scale

    def drop_cache(self) -> None:
        """The graphs must have gone before."""
        for name in ("_cache", "_attention"):
            vars(self).pop(name, None)

    def make_graphs(self) -> None:
        """Where the settings and the attention backends allow it. All ranks must take part. Raises `ModelError`."""
        config, hf, limits = self._config, self._hf, self.limits
        small, many = self._attention.prefill, self._attention.decode_for(limits.max_running)
        capturable = many.capturable or isinstance(many, HostPlanned)
        if self._stream is None or config.disable_cuda_graph or not capturable:
            return
        cascade, heads = None, hf.num_heads // self._tp.size
        if limits.group_prefixes and set(hf.windows) == {None}:
            cascade = create_backend("triton", self._cache, heads)
        if not small.capturable:
            small = create_backend("triton", self._cache, heads, hf.windows)
        rows, length = limits.max_running, limits.context_length
        dependent = linear_table.dependent_rows(self.device, self._dtype, self._tp.size)
        self._graphs = DecodeGraphs(self._model, self._attention.decode_for, cascade, self._slots, rows, length, dependent)
        self._mixed = MixedGraphs(self._model, small, self._slots, rows, length)
        less = f"{self._less()}, or set disable_cuda_graph"
        with torch.cuda.stream(self._stream), memory.explaining("capturing CUDA graphs", less, self.device):
            self._graphs.make_first()
            self._mixed.make_first(self._graphs.pool)

    def drop_graphs(self) -> None:
        """No step of theirs may be under way."""
        self._graphs: DecodeGraphs | None = None
        self._mixed: MixedGraphs | None = None

    @property
    def _quantised(self) -> bool:
        return self._config.kv_cache_dtype == "fp8_e4m3"

    def _new_cache(self, num_pages: int) -> KVCache:
        config, hf = self._config, self._hf
        heads = hf.kv_heads_per_rank(self._tp.size)
        return KVCache(
            hf.num_layers, num_pages, config.page_size, heads, hf.head_dim, self._dtype, self.device, self._quantised
        )

    def _new_attention(self, cache: KVCache) -> StepAttention:
        config, hf = self._config, self._hf
        prefill = config.prefill_attention_backend or config.attention_backend
        decode = config.decode_attention_backend or config.attention_backend
        return create_attention(prefill, decode, cache, hf.num_heads // self._tp.size, hf.windows)

    def _less(self) -> str:
        """What to change where memory is short."""
        return f"lower mem_fraction_static or max_total_tokens, or max_running_requests ({self.max_running})"

    def warm_up(self) -> None:
        """Run a small prefill and a decode step, into the padding page: libraries do their first-time work here."""
        init = SlotInit(slot=0, sampling=SamplingParams(temperature=0.0), seed=0, num_prompt=1)
        count = max(1, min(2 * self.page_size, self.context_length - 1))
        one = pack_ids([1])
        if self._stream is not None:  # what was loaded lies in the default stream
            self._stream.wait_stream(torch.cuda.default_stream(self.device))
        self.launch(
            StepPlan(0, pack_ids([0]), pack_ids([0]), pack_ids([count]), one, 0, pack_ids([0] * count), b"", b"", b"", [init])
        ).result()
        if count < self.context_length:
            self.launch(StepPlan(0, pack_ids([0]), pack_ids([count]), one, one, 1, b"", b"", b"", b"", [])).result()

    # ---------------------------------------------------------------- one step

    @torch.inference_mode()
    def _launch(self, plan: StepPlan) -> LaunchedStep:
        finish, late = self._forward(plan)
        step = LaunchedStep(late)
        if plan.guided and self._sampler is not None:
            self._unsampled.append((step, finish))
        else:
            step.complete(finish(None))
        return step

    def _forward(self, plan: StepPlan) -> tuple[Finish, torch.cuda.Event | None]:
        """Everything but sampling, what samples, and an event near the end."""
        if self._graphs is not None and 4 * plan.num_decode == len(plan.slots_S):
            return self._replay(self._graphs, plan), None
        self._init_slots(plan)
        if self._mixed is not None and (size := self._mixed.find(plan)) is not None:
            return self._replay_mixed(self._mixed, size, plan), None
        batch, rows = self._slots.prepare(plan)
        self._attention.plan(batch)
        late = self._late = torch.cuda.Event() if self._stream is not None else None
        hidden_TD = self._model(batch, self._attention)
        self._late = None
        prompt_rows, prompt_logprobs = self._prompt_logprobs(plan, batch, hidden_TD) if plan.prompt_logprobs_S else ([], None)
        logits_LV = self._logits(batch, len(rows.slots_L), hidden_TD)

        def finish(masks: TokenMasks | None) -> StepOutputs:
            tokens_L, asking, logprobs = self._sample(logits_LV, rows.slots_L, masks)
            if len(rows.slots_L):
                self._slots.sampled(rows, self._tp.broadcast(tokens_L))
            return StepOutputs(tokens_L, asking, logprobs, prompt_rows, prompt_logprobs)

        return finish, late

    def _mark_late(self, *_) -> None:
        """After a layer near the end; not while graphs are captured."""
        if self._late is not None:
            self._late.record()

    def _init_slots(self, plan: StepPlan) -> None:
        for init in plan.init:
            about = init.slot, init.sampling, init.seed, init.num_output
            if self._sampler is not None:
                self._sampler.init_slot(*about, ints(init.prompt_ids), ints(init.output_ids), init.stop_ids)
            else:
                self._settings.set(*about, init.stop_ids)

    def _replay(self, graphs: DecodeGraphs, plan: StepPlan) -> Finish:
        """A step of nothing but decode rows."""
        slots_S = ints(plan.slots_S)
        rows = len(slots_S)
        self._slots.take_pages(plan)
        self.cascade_steps += bool(plan.groups_S)
        graph = graphs.run(slots_S, ints(plan.starts_S), ints(plan.groups_S), ints(plan.shared_pages_J))
        return partial(self._sampled, plan, graph.tokens_B[:rows], graph.part_BV[:rows], slots_S)

    def _replay_mixed(self, graphs: MixedGraphs, size: tuple[int, int], plan: StepPlan) -> Finish:
        """A small step with prompt tokens in it."""
        self._slots.take_pages(plan)
        graph = graphs.run(size, plan)
        sampling = np.flatnonzero(ints(plan.samples_S))
        slots_L = ints(plan.slots_S)[sampling]
        rows = upload(sampling, self.device)
        tokens_L, part_LV = graph.tokens_R.index_select(0, rows), graph.part_RV.index_select(0, rows)
        return partial(self._sampled, plan, tokens_L, part_LV, slots_L)

    def _sampled(
        self, plan: StepPlan, tokens_L: torch.Tensor, part_LV: torch.Tensor, slots_L: np.ndarray, masks: TokenMasks | None
    ) -> StepOutputs:
        """After a replay, which has taken every row's argmax: sample properly where that is not what was asked. All ranks find the
        same, since their logits and settings are the same."""
        if not plan.guided and self._settings.takes_argmax(slots_L):
            self._settings.sampled(slots_L)
            return StepOutputs(tokens_L, [])
        tokens_L, asking, logprobs = self._sample(self._model.head.join(part_LV), slots_L, masks)
        if len(slots_L):
            slots = upload(slots_L.astype(np.int64), self.device)
            self._slots.last_token_N.index_copy_(0, slots, self._tp.broadcast(tokens_L))
        return StepOutputs(tokens_L, asking, logprobs)

    def _logits(self, batch: ForwardBatch, count: int, hidden_TD: torch.Tensor) -> torch.Tensor | None:
        """Of the `count` rows that sample. All ranks must take part."""
        if not count:
            return None
        return self._model.logits(hidden_TD if count == hidden_TD.shape[0] else hidden_TD.index_select(0, batch.logits_L))

    def _sample(
        self, logits_LV: torch.Tensor | None, slots_L: np.ndarray, masks: TokenMasks | None
    ) -> tuple[torch.Tensor, list[int], Logprobs | None]:
        """Tokens (on other ranks than 0: room for them), rows that asked for log probabilities, and those."""
        if logits_LV is not None and self._sampler is not None:
            sampled = self._sampler.sample(logits_LV, slots_L, masks)
            return sampled.tokens_L, sampled.asking, sampled.logprobs
        if self._sampler is None:
            self._settings.sampled(slots_L)
        return torch.empty(len(slots_L), dtype=torch.int64, device=self.device), [], None

    def _prompt_logprobs(
        self, plan: StepPlan, batch: ForwardBatch, hidden_TD: torch.Tensor
    ) -> tuple[list[tuple[int, int]], Logprobs | None]:
        """For rows that ask: (row, its tokens), and the log probabilities of the tokens that follow, row after row."""
        wanted_S = ints(plan.prompt_logprobs_S)
        rows = np.flatnonzero(wanted_S >= 0).tolist()
        asked = [(row, batch.query_lens[row]) for row in rows]
        if not asked:
            return [], None
        ends = np.cumsum(ints(plan.counts_S))
        tokens = np.concatenate([np.arange(ends[row] - count, ends[row]) for row, count in asked])
        counts = np.repeat(wanted_S[rows], [count for _, count in asked]).tolist()
        targets = upload(ints(plan.prompt_targets_T).astype(np.int64), self.device)
        indices = upload(tokens, self.device)
        most = max(counts)
        slots = np.repeat(ints(plan.slots_S)[rows], [count for _, count in asked])
        asked_of = self._sampler.asked(slots) if self._sampler is not None else None
        piece = max(1, PROMPT_LOGITS_BYTES // (4 * self.vocab_size))
        parts = []
        for begin in range(0, len(tokens), piece):
            part = slice(begin, begin + piece)
            # All ranks must take part in this, in equal pieces.
            logits = self._model.logits(hidden_TD.index_select(0, indices[part])).float()
            if self._sampler is not None:
                wanted = asked_of.part(part) if asked_of else None
                parts.append(logprobs_of(logits, targets[part], counts[part], most, wanted, ranked=True))
        return asked, join(parts) if parts else None

    # ---------------------------------------------------------------- odds and ends

    def _least(self, pages: int) -> int:
        """The smallest of all ranks' numbers."""
        if self._tp.size == 1:
            return pages
        return int(self._tp.all_gather(torch.tensor([[pages]], device=self.device)).min())

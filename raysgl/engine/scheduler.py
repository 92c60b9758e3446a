"""Decides what each step runs: continuous batching over paged memory with a radix cache. No torch, no Ray.

The one scheduler of a replica. `schedule` plans a step from what is known without waiting for sampled tokens, `process`
takes in what a step sampled; a second step may be planned in between (step-ahead overlap), so every decision here
stands on counts, never on the ids of tokens still to come. Pages given back while a launched step still uses them may go to
the next step at once: steps run in launch order. Those that the step being planned uses may not go to another row of it.

    (compiling -->) waiting --admit--> running (prefill, then decode) --finish--> gone
                       ^                  |
                       +-----retract------+     what was computed goes to the radix tree, no known token is lost

Invariant (`check`): free pages + pages in the tree + pages owned by running sequences = pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from raysgl.cache.page_pool import PagePool
from raysgl.cache.radix_tree import RadixTree
from raysgl.engine.estimate import OutputLengthEstimator
from raysgl.engine.guides import Guides
from raysgl.engine.outputs import Outputs, add_prompt_logprobs
from raysgl.engine.plan import StepResult
from raysgl.engine.plan_builder import PlanBuilder, Step
from raysgl.engine.prefixes import PrefixesBeingComputed
from raysgl.engine.sequence import Sequence, Status
from raysgl.engine.shared_prefixes import GroupFinder
from raysgl.engine.waiting import WaitingQueue
from raysgl.grammar.interface import Grammars
from raysgl.messages import Finish, KVEvent, Load, PagesStored, SequenceOutput, Submit, TokenLogprob, unpack_ids
from raysgl.sampling.token_masks import TokenMasks

HOT_PERIODS = 10
"""A cached page is hot when a request has found it in the tree's current period or so many before; the loop counts the periods."""


@dataclass(frozen=True)
class SchedulerConfig:
    """`step_tokens` is the most that one step computes; 0 means prompts are never chunked.

    `eos_token_ids` end a sequence unless it ignores them. `group_prefixes`: tell the runner which rows share a prefix.
    """

    page_size: int
    num_pages: int
    context_length: int
    max_running: int
    max_queued: int
    step_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    policy: str = "fcfs"
    conservativeness: float = 1.0
    radix_cache: bool = True
    group_prefixes: bool = False


class Scheduler:
    """Owns the queue, the page pool and the radix tree of one replica. Not thread safe: one loop calls it."""

    def __init__(
        self,
        config: SchedulerConfig,
        on_kv_event: Callable[[KVEvent], None] | None = None,
        grammars: Grammars | None = None,
    ):
        self.config = config
        self.guides = Guides(grammars)
        self.pool = PagePool(config.num_pages)
        self.tree = RadixTree(config.page_size, on_event=on_kv_event)
        self.waiting = WaitingQueue(config.policy)
        self.running: list[Sequence] = []  # in order of admission
        self.estimator = OutputLengthEstimator(config.conservativeness)
        self.stats = Load(total_pages=config.num_pages, max_running=config.max_running)
        self._sequences: dict[tuple[str, int], Sequence] = {}
        self._free_slots = list(range(config.max_running - 1, -1, -1))
        self.outputs = Outputs()
        self._computing = PrefixesBeingComputed()
        self._groups = GroupFinder(config.page_size) if config.group_prefixes else None
        self._written: list[int] = []  # pages that nobody owns any more, but the step being planned still writes
        self._arrivals = 0
        self._steps = 0

    # ---------------------------------------------------------------- requests in, outputs out

    def add(self, submit: Submit) -> None:
        """Queue a request's sequences. One that can never run is answered at once."""
        prompt, sent = unpack_ids(submit.input_ids), unpack_ids(submit.output_ids)
        sampling = submit.sampling
        limit = min(self.config.context_length, self.config.num_pages * self.config.page_size)
        room = limit - len(prompt)
        refusal = self._refusal(prompt, sampling, limit)
        for i in range(sampling.n):
            if refusal is not None:
                self.outputs.finish(submit.ingress, submit.uid + i, refusal)
                continue
            stop_ids = set(sampling.stop_token_ids)
            if not sampling.ignore_eos:
                stop_ids.update(self.config.eos_token_ids)
            asked = room if sampling.max_new_tokens is None else min(sampling.max_new_tokens, room)
            self._arrivals += 1
            seq = Sequence(
                uid=submit.uid + i,
                ingress=submit.ingress,
                request_id=submit.request_id,
                sampling=sampling,
                seed=sampling.seed_of(i),
                stop_ids=frozenset(stop_ids),
                tokens=prompt + sent,
                num_prompt=len(prompt),
                max_tokens=len(prompt) + asked,
                page_hashes=submit.page_hashes,
                extra_key=submit.extra_key,
                priority=submit.priority,
                arrival=self._arrivals,
            )
            if len(seq.tokens) >= seq.max_tokens and (asked > 0 or sampling.prompt_logprobs is None):
                self.outputs.finish(seq.ingress, seq.uid, Finish("length"))
                continue
            self._sequences[seq.key] = seq
            if sampling.constraint is None:
                self.waiting.add(seq)
            else:
                seq.status = Status.COMPILING
                self.guides.start(seq)

    def _refusal(self, prompt: list[int], sampling, limit: int) -> Finish | None:
        if not prompt:
            return Finish("error", message="the prompt is empty", status=400)
        if len(prompt) + (1 if sampling.max_new_tokens != 0 else 0) > limit:
            what = "context length" if limit == self.config.context_length else "KV cache (max_total_tokens)"
            return Finish("error", message=f"the prompt has {len(prompt)} tokens, but the {what} holds {limit}", status=400)
        if sampling.constraint is not None and self.guides.grammars is None:
            return Finish("error", message="grammar_backend is none", status=400, param="constraint")
        if self._num_waiting + sampling.n > self.config.max_queued + max(0, self.config.max_running - len(self.running)):
            return Finish("abort", message=f"{self._num_waiting} requests are waiting already", status=503)
        return None

    def abort(self, ingress: str, uids: list[int]) -> None:
        """Forget sequences, whatever they are doing; their pages are free when this returns."""
        for uid in uids:
            if (seq := self._sequences.get((ingress, uid))) is not None:
                self._leave(seq)
                self.outputs.drop(ingress, uid)

    def abort_request(self, asking: str, request_id: str | None) -> None:
        """End all sequences of a request, or of all (None), but for those of the ingress that asks: it has seen to them itself."""
        for seq in list(self._sequences.values()):
            if seq.ingress != asking and request_id in (None, seq.request_id):
                self.outputs.of(seq).finish = Finish("abort", message="the request was aborted")
                self._leave(seq)

    def abort_ingress(self, ingress: str) -> None:
        """An ingress is gone, and with it everyone who waited for its sequences."""
        self.abort(ingress, [seq.uid for seq in list(self._sequences.values()) if seq.ingress == ingress])
        self.outputs.drop_ingress(ingress)

    def flush(self) -> tuple[bool, str]:
        """Drop the cached prefixes; refused while anything runs or waits."""
        if self._sequences:
            return False, f"{len(self._sequences)} sequences are running or waiting"
        self.pool.free(self.tree.clear())
        return True, "cache flushed"

    @property
    def idle(self) -> bool:
        """Nothing to plan, now or soon."""
        return not self.running and not self._num_waiting

    @property
    def _num_waiting(self) -> int:
        return len(self.waiting) + len(self.guides.compiling)

    # ---------------------------------------------------------------- planning

    def schedule(self) -> Step | None:
        """Plan the next step, or None when there is nothing to run now."""
        if self.guides.compiling:
            self._take_in_grammars()
        builder = PlanBuilder()
        self._plan_decodes(builder)
        self._plan_prefills(builder)
        if len(self.waiting):
            self._admit(builder)
        self.pool.free(self._written)
        self._written = []
        if not builder.rows:
            return None
        self._steps += 1
        self.estimator.stepped()
        groups = None
        if self._groups is not None and not builder.num_prefill:
            groups = self._groups.groups([row.seq for row in builder.rows])
        return builder.build(self._steps, groups)

    def masks(self, step: Step) -> TokenMasks | None:
        """For a guided step: what its rows may sample. All steps before it have been processed."""
        masks, failed = self.guides.masks(step)
        for seq, finish in failed:
            self._finish(seq, self.outputs.of(seq), finish)
        return masks

    def _take_in_grammars(self) -> None:
        ready, ended = self.guides.settle()
        for seq in ready:
            seq.status = Status.WAITING
            self.waiting.put_back(seq)
        for seq, finish in ended:
            self._finish(seq, self.outputs.of(seq), finish)

    def _plan_decodes(self, builder: PlanBuilder) -> None:
        """One token for every sequence that has one to compute; retracts the youngest where pages run out."""
        ready = [seq for seq in self.running if seq.decoding and seq.length < seq.max_tokens]
        page_size = self.config.page_size
        while True:
            short = [seq for seq in ready if seq.num_computed >= len(seq.pages) * page_size]
            if self._make_room(len(short)):
                break
            self._retract(self.running[-1])
            ready = [seq for seq in ready if seq.status is Status.RUNNING]
        for seq, page in zip(short, self.pool.allocate(len(short)) if short else ()):
            seq.table_updates.append((len(seq.pages), page))
            seq.pages.append(page)
        for seq in ready:
            builder.add_decode(seq)
            seq.num_computed += 1
            seq.num_pending += 1

    def _plan_prefills(self, builder: PlanBuilder) -> None:
        for seq in self.running:
            if seq.remaining_prompt and not self._plan_chunk(builder, seq):
                return

    def _plan_chunk(self, builder: PlanBuilder, seq: Sequence) -> bool:
        """As much of the sequence's known tokens as the step still takes. False when the step is full."""
        count = seq.remaining_prompt
        if self.config.step_tokens:
            count = min(count, self._prefill_room(builder))
        if count <= 0:
            return False
        wants_logprobs = self._wants_prompt_logprobs(seq) and seq.num_computed < seq.num_prompt - 1
        if wants_logprobs and seq.num_computed < (start := seq.logprobs_start):
            # What comes before has a chunk of its own: its logits would be made for nothing.
            count, wants_logprobs = min(count, start - seq.num_computed), False
        ends = count == seq.remaining_prompt
        samples = ends and len(seq.tokens) < seq.max_tokens
        builder.add_prefill(seq, count, samples, wants_logprobs)
        seq.num_computed += count
        if samples:
            seq.decoding = True
            seq.num_pending += 1
        self._written += self._share(seq)
        return True

    def _prefill_room(self, builder: PlanBuilder) -> int:
        """Prompt tokens that the step still takes. At least a page a step, so that decoding never starves prompts."""
        return max(self.config.step_tokens - builder.num_decode, self.config.page_size) - builder.num_prefill

    def _wants_prompt_logprobs(self, seq: Sequence) -> bool:
        asked = seq.sampling.prompt_logprobs is not None
        known = len(seq.prompt_logprobs or ())
        return asked and known < seq.num_prompt - seq.logprobs_start

    # ---------------------------------------------------------------- admission

    def _admit(self, builder: PlanBuilder) -> None:
        """Take waiting sequences in the policy's order while slots, pages and the step's tokens last."""
        chunked = self.config.step_tokens > 0
        reserved = -1
        for seq in self.waiting.candidates(self._cached_tokens):
            if not self._free_slots or (chunked and self._prefill_room(builder) <= 0):
                return
            if seq.num_pending:  # retracted a moment ago; its last token is not known yet
                continue
            if reserved < 0:
                reserved = sum(map(self._expected_growth, self.running))
            match = self._match(seq)
            if self._waits_for_prefix(seq, len(match.pages)):
                continue
            self.tree.lock(match.node)
            need = self._pages_for(len(seq.tokens)) - len(match.pages)
            growth = self._expected_growth(seq)
            spare = self.pool.available + self.tree.evictable_pages - need
            if spare < (growth + reserved if self.running else 0):
                self.tree.unlock(match.node)
                return
            self._make_room(need)
            self._start(builder, seq, match, self.pool.allocate(need))
            reserved += growth
            self._plan_chunk(builder, seq)

    def _match(self, seq: Sequence):
        if not self.config.radix_cache:
            return self.tree.match([], seq.extra_key)
        most = seq.logprobs_start if self._wants_prompt_logprobs(seq) else len(seq.tokens) - 1
        return self.tree.match(seq.tokens, seq.extra_key, max_tokens=most)

    def _cached_tokens(self, seq: Sequence) -> int:
        return self._match(seq).num_tokens

    def _waits_for_prefix(self, seq: Sequence, matched_pages: int) -> bool:
        """Whether a running prefill is computing pages that this sequence could share: better to wait than to compute twice."""
        return self.config.radix_cache and self._computing.includes(seq, matched_pages) and not self._wants_prompt_logprobs(seq)

    def _expected_growth(self, seq: Sequence) -> int:
        """Pages it is expected to need beyond those of its known tokens."""
        tokens = self.estimator.remaining(seq.num_output, seq.max_tokens - len(seq.tokens))
        return max(0, self._pages_for(len(seq.tokens) + tokens) - max(len(seq.pages), self._pages_for(len(seq.tokens))))

    def _start(self, builder: PlanBuilder, seq: Sequence, match, own: list[int]) -> None:
        self.waiting.remove(seq)
        seq.status = Status.RUNNING
        seq.slot = self._free_slots.pop()
        seq.node = match.node
        seq.pages = match.pages + own
        seq.num_shared = len(match.pages)
        seq.num_computed = match.num_tokens
        seq.decoding = False
        seq.table_updates = list(enumerate(seq.pages))
        if self._wants_prompt_logprobs(seq):
            seq.prompt_logprobs = [TokenLogprob(seq.tokens[seq.logprobs_start], None)]
        if seq.cached_tokens is None:
            seq.started_at = time.monotonic()
            seq.cached_tokens = match.num_tokens
            self.stats.prompt_tokens += seq.num_prompt
            self.stats.cached_tokens += match.num_tokens
        if self.config.radix_cache:
            self._computing.start(seq, len(match.pages))
        self.tree.hit(match.node)
        self.running.append(seq)
        builder.init_slot(seq)

    # ---------------------------------------------------------------- memory

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.config.page_size)

    def _make_room(self, pages: int) -> bool:
        """Evict until so many pages are free."""
        missing = pages - self.pool.available
        if missing > self.tree.evictable_pages:
            return False
        if missing > 0:
            self.pool.free(self.tree.evict(missing))
        return True

    def _share(self, seq: Sequence) -> list[int]:
        """Put the full pages computed so far into the tree, and use the tree's where it has them already. Returns its own pages
        that are of no use then, to be freed."""
        size, shared = self.config.page_size, seq.num_shared
        full = min(seq.num_computed, len(seq.tokens)) // size
        if not self.config.radix_cache or full <= shared:
            return []
        assert seq.node is not None, "a running sequence has a place in the tree"
        new = seq.tokens[shared * size : full * size]
        inserted = self.tree.insert(
            new, seq.pages[shared:full], seq.extra_key, hashes=seq.page_hashes[shared:full], after=seq.node
        )
        self.tree.lock(inserted.node)
        self.tree.unlock(seq.node)
        for index, own, cached in inserted.duplicates:
            seq.pages[shared + index] = cached
            seq.table_updates.append((shared + index, cached))
        seq.node = inserted.node
        seq.num_shared = full
        self._computing.computed(seq, full)
        return [own for _, own, _ in inserted.duplicates]

    def _release(self, seq: Sequence) -> None:
        """Give back slot and pages; what was computed stays in the tree, evictable."""
        self.pool.free(self._share(seq))
        assert seq.node is not None, "a running sequence has a place in the tree"
        self._computing.stop(seq)
        self.pool.free(seq.pages[seq.num_shared :])
        self.tree.unlock(seq.node)
        self._free_slots.append(seq.slot)
        self.running.remove(seq)
        seq.pages, seq.num_shared, seq.node, seq.slot = [], 0, None, -1
        seq.num_computed, seq.decoding = 0, False
        seq.table_updates = []

    def _retract(self, seq: Sequence) -> None:
        """Back to the head of the queue. Tokens that launched steps sample are still taken in when they come."""
        self._release(seq)
        seq.status = Status.WAITING
        self.waiting.put_back(seq)
        self.estimator.retracted()
        self.stats.retractions += 1
        seq.retractions += 1

    def _leave(self, seq: Sequence) -> None:
        if seq.status is Status.RUNNING:
            self._release(seq)
        elif seq.status is Status.WAITING:
            self.waiting.remove(seq)
        else:
            self.guides.compiling.pop(seq, None)
        seq.status = Status.FINISHED
        del self._sequences[seq.key]

    # ---------------------------------------------------------------- results

    def process(self, step: Step, result: StepResult) -> None:
        """Take in what a step sampled: new tokens, finished sequences, log probabilities."""
        sampled = 0
        for index, row in enumerate(step.rows):
            seq = row.seq
            if row.prompt_logprobs and result.prompt_logprobs is not None:
                add_prompt_logprobs(row, result.prompt_logprobs[index])
            if row.samples:
                token = result.token_ids[sampled]
                logprob = result.logprobs[sampled] if result.logprobs is not None else None
                sampled += 1
                if seq.status is not Status.FINISHED:
                    seq.num_pending -= 1
                    self._add_token(seq, token, logprob)
            elif seq.status is Status.RUNNING and row.start + row.count == len(seq.tokens) == seq.max_tokens:
                self._finish(seq, self.outputs.of(seq), Finish("length"))  # asked for no token, only about its prompt

    def _add_token(self, seq: Sequence, token: int, logprob: TokenLogprob | None) -> None:
        seq.tokens.append(token)
        self.stats.generated_tokens += 1
        output = self.outputs.add_token(seq, token, logprob)
        if token in seq.stop_ids:
            self._finish(seq, output, Finish("stop", matched=token))
        elif (finish := self.guides.accept(seq)) is not None:
            self._finish(seq, output, finish)
        elif len(seq.tokens) >= seq.max_tokens:
            self._finish(seq, output, Finish("length"))

    def _finish(self, seq: Sequence, output: SequenceOutput, finish: Finish) -> None:
        finish.retractions = seq.retractions
        output.finish = finish
        self.estimator.record(seq.num_output)
        self._leave(seq)

    # ---------------------------------------------------------------- looking in

    def load(self) -> Load:
        """How busy the replica is; the loop adds the rates it measures."""
        stats = self.stats
        stats.running = len(self.running)
        stats.waiting = self._num_waiting
        if self.guides.grammars is not None:
            grammars = self.guides.grammars.stats
            stats.grammars_compiled, stats.grammars_refused = grammars.compiled, grammars.refused
            stats.grammar_hits, stats.grammar_seconds = grammars.hits, grammars.seconds
        stats.queued_tokens = self.waiting.tokens + sum(seq.remaining_prompt for seq in self.running)
        stats.free_pages = self.pool.available
        stats.cached_pages = self.tree.evictable_pages
        stats.steps = self._steps
        stats.hot_pages = self.tree.hot_pages(HOT_PERIODS)
        return stats

    def stored(self) -> Iterable[PagesStored]:
        """All that is cached."""
        return self.tree.stored()

    def next_period(self) -> None:
        """Of `HOT_PERIODS`."""
        self.tree.period += 1

    def check(self) -> None:
        """Raise AssertionError unless every page is accounted for exactly once."""
        self.tree.check()
        owned = [page for seq in self.running for page in seq.pages[seq.num_shared :]]
        assert len(set(owned)) == len(owned), "a page belongs to two sequences"
        total = self.pool.available + self.tree.total_pages + len(owned)
        assert total == self.config.num_pages, (
            f"{self.pool.available} free + {self.tree.total_pages} cached + {len(owned)} in use != {self.config.num_pages} pages"
        )
        if not self.running:
            assert self.tree.locked_pages == 0, f"{self.tree.locked_pages} pages are locked by nobody"
            assert not self._computing, "prefixes are awaited that nobody computes"
        assert len(self._free_slots) + len(self.running) == self.config.max_running

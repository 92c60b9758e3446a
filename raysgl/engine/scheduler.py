"""Decides what each step runs: continuous batching over paged memory with a radix cache. No torch, no Ray.

The one scheduler of a replica. `schedule` plans a step from what is known without waiting for sampled tokens, `process`
takes in what a step sampled; a second step may be planned in between (step-ahead overlap), so every decision here
stands on counts, never on the ids of tokens still to come.

    (compiling -->) waiting --admit--> running (prefill, then decode) --finish--> gone
                       ^                  |
                       +-----retract------+     what was computed goes to the radix tree, no known token is lost
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable

from raysgl.cache.radix_tree import Match
from raysgl.engine.arrivals import refusal, sequences
from raysgl.engine.deadlines import Deadlines
from raysgl.engine.estimate import OutputLengthEstimator
from raysgl.engine.guides import Guides
from raysgl.engine.kv_pages import KVPages
from raysgl.engine.outputs import Outputs, add_prompt_logprobs
from raysgl.engine.plan import StepResult
from raysgl.engine.plan_builder import PlanBuilder, Step
from raysgl.engine.preemption import last_of, victims
from raysgl.engine.queue_limit import QueueLimit
from raysgl.engine.scheduler_config import SchedulerConfig
from raysgl.engine.sequence import Sequence, Status
from raysgl.engine.shared_prefixes import GroupFinder
from raysgl.engine.think_budget import forced
from raysgl.engine.waiting import WaitingQueue
from raysgl.grammar.interface import Grammars
from raysgl.messages import Finish, KVEvent, Load, PagesStored, SequenceOutput, Submit, TokenLogprob
from raysgl.sampling.token_masks import TokenMasks

HOT_PERIODS = 10
"""A cached page is hot when a request has found it in the tree's current period or so many before; the loop counts the periods."""


class Scheduler:
    """Owns the queue, the page pool and the radix tree of one replica. Not thread safe: one loop calls it."""

    def __init__(
        self,
        config: SchedulerConfig,
        on_kv_event: Callable[[KVEvent], None] | None = None,
        grammars: Grammars | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.config = config
        self.guides = Guides(grammars)
        self._mask_words = -(-config.vocab_size // 32) if grammars is None else grammars.num_words
        self.pages = KVPages(config.num_pages, config.page_size, config.radix_cache, on_kv_event)
        self.pool, self.tree = self.pages.pool, self.pages.tree
        self.waiting = WaitingQueue(config.policy)
        self.running: list[Sequence] = []  # in order of admission
        self.limit = QueueLimit(self.waiting, config.max_queued, config.max_queue_seconds)
        self.deadlines = Deadlines(self._cached_tokens)
        self.estimator = OutputLengthEstimator(config.conservativeness)
        self.stats = Load(total_pages=config.num_pages, max_running=config.max_running)
        self._sequences: dict[tuple[str, int], Sequence] = {}
        self._free_slots = list(range(config.max_running - 1, -1, -1))
        self.outputs = Outputs()
        self.paused = False
        """Begins nothing new: what runs goes on to its end, what comes waits."""
        self._groups = GroupFinder(config.page_size) if config.group_prefixes else None
        self._arrivals = itertools.count(1)
        self._clock = clock
        self._steps = 0

    # ---------------------------------------------------------------- requests in, outputs out

    def add(self, submit: Submit) -> None:
        """Queue a request's sequences. One that can never run is answered at once."""
        config, pool_tokens = self.config, self.config.num_pages * self.config.page_size
        finish = refusal(submit, config.context_length, pool_tokens, self.guides.grammars is not None)
        if finish is None:
            places = max(0, config.max_running - len(self.running))
            finish = self.limit.refusal(submit, self._num_waiting, places, self._clock())
        if finish is not None:
            for uid in range(submit.uid, submit.uid + submit.sampling.n):
                self.outputs.finish(submit.ingress, uid, finish)
            return
        limit = min(config.context_length, pool_tokens)
        for seq in sequences(submit, limit, config.page_size, config.eos_token_ids, self._arrivals, self._clock()):
            if len(seq.tokens) >= seq.max_tokens and (
                submit.sampling.max_new_tokens != 0 or seq.sampling.prompt_logprobs is None
            ):
                self.outputs.finish(seq.ingress, seq.uid, Finish("length"))
                continue
            self._sequences[seq.key] = seq
            self.deadlines.add(seq)
            if seq.sampling.constraint is None:
                self.waiting.add(seq)
            else:
                seq.status = Status.COMPILING
                self.guides.start(seq)

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
                self._drop(seq, Finish("abort", message="the request was aborted"))

    def abort_ingress(self, ingress: str) -> None:
        """An ingress is gone, and with it everyone who waited for its sequences."""
        self.abort(ingress, [seq.uid for seq in list(self._sequences.values()) if seq.ingress == ingress])
        self.outputs.drop_ingress(ingress)

    def flush(self) -> tuple[bool, str]:
        """Drop the cached prefixes; refused while anything runs or waits."""
        if self.num_live:
            return False, f"{self.num_live} sequences are running or waiting"
        self.drop_cached()
        return True, "cache flushed"

    def drop_cached(self) -> None:
        """While nothing runs."""
        self.pool.free(self.tree.clear())

    @property
    def at_rest(self) -> bool:
        """Nothing has begun and not ended."""
        return not self.running and not self.waiting.begun()

    @property
    def idle(self) -> bool:
        """Nothing to plan, now or soon."""
        return not self.running and not self._num_waiting

    @property
    def num_live(self) -> int:
        """Sequences that run or wait."""
        return len(self._sequences)

    @property
    def _num_waiting(self) -> int:
        return len(self.waiting) + len(self.guides.compiling)

    # ---------------------------------------------------------------- planning

    def schedule(self) -> Step | None:
        """Plan the next step, or None when there is nothing to run now."""
        if self.guides.compiling:
            self._take_in_grammars()
        for seq in self.deadlines.missed(self._clock()):
            self._drop(seq, Finish("abort", message="it waited until its deadline could not be met any more", status=504))
        if len(self.waiting) and not self.paused:
            self._preempt()
        builder = PlanBuilder()
        self._plan_decodes(builder)
        self._plan_prefills(builder)
        waiting, tokens = len(self.waiting), self.waiting.tokens
        if waiting:
            self._admit(builder)
        self.pages.planned()
        left = len(self.waiting)
        self.limit.time.planned(self._clock(), waiting - left, tokens - self.waiting.tokens, left > 0)
        for seq, finish in self.limit.shed():
            self._drop(seq, finish)
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
        return forced(masks, step.rows, self._mask_words)

    def _take_in_grammars(self) -> None:
        ready, ended = self.guides.settle()
        for seq in ready:
            seq.status = Status.WAITING
            self.waiting.put_back(seq)
        for seq, finish in ended:
            self._finish(seq, self.outputs.of(seq), finish)

    def _plan_decodes(self, builder: PlanBuilder) -> None:
        """One token for every sequence that has one to compute; retracts those whose turn came last where pages run out."""
        ready = [seq for seq in self.running if seq.decoding and seq.length < seq.max_tokens]
        page_size = self.config.page_size
        while True:
            short = [seq for seq in ready if seq.num_computed >= len(seq.pages) * page_size]
            if self.pages.make_room(len(short)):
                break
            self._retract(last_of(self.running))
            self.estimator.retracted()
            ready = [seq for seq in ready if seq.status is Status.RUNNING]
        for seq in short:
            self.pages.add_page(seq)
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
        wants_logprobs = seq.wants_prompt_logprobs and seq.num_computed < seq.num_prompt - 1
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
        self.pages.computed(seq)
        return True

    def _prefill_room(self, builder: PlanBuilder) -> int:
        """Prompt tokens that the step still takes. At least a page a step, so that decoding never starves prompts."""
        return max(self.config.step_tokens - builder.num_decode, self.config.page_size) - builder.num_prefill

    # ---------------------------------------------------------------- admission

    def _preempt(self) -> None:
        """Running sequences of far lower priority make room for the one whose turn it is. Before anything of a step is planned: what
        they give back must not be in it."""
        urgent = self.waiting.first()
        if urgent is None or urgent.num_pending:
            return
        for victim in victims(self.running, urgent):
            need = self.pages.pages_for(len(urgent.tokens)) + sum(map(self._expected_growth, [urgent, *self.running]))
            if self._free_slots and need <= self.pages.available:
                return
            self._retract(victim)

    def _admit(self, builder: PlanBuilder) -> None:
        """Take waiting sequences in the policy's order while slots, pages and the step's tokens last."""
        chunked = self.config.step_tokens > 0
        reserved = -1
        for seq in self.waiting.begun() if self.paused else self.waiting.candidates(self._cached_tokens):
            if not self._free_slots or (chunked and self._prefill_room(builder) <= 0):
                return
            if seq.num_pending:  # retracted a moment ago; its last token is not known yet
                continue
            if reserved < 0:
                reserved = sum(map(self._expected_growth, self.running))
            match = self.pages.match(seq)
            if self.pages.waits_for_prefix(seq, len(match.pages)):
                continue
            self.tree.lock(match.node)
            need = self.pages.pages_for(len(seq.tokens)) - len(match.pages)
            growth = self._expected_growth(seq)
            spare = self.pages.available - need
            if spare < (growth + reserved if self.running else 0):
                self.tree.unlock(match.node)
                return
            self.pages.make_room(need)
            self._start(builder, seq, match)
            reserved += growth
            self._plan_chunk(builder, seq)

    def _cached_tokens(self, seq: Sequence) -> int:
        return self.pages.match(seq).num_tokens

    def _expected_growth(self, seq: Sequence) -> int:
        """Pages it is expected to need beyond those of its known tokens."""
        tokens = self.estimator.remaining(seq.num_output, seq.max_tokens - len(seq.tokens))
        pages_for = self.pages.pages_for
        return max(0, pages_for(len(seq.tokens) + tokens) - max(len(seq.pages), pages_for(len(seq.tokens))))

    def _start(self, builder: PlanBuilder, seq: Sequence, match: Match) -> None:
        self.waiting.remove(seq)
        seq.status = Status.RUNNING
        seq.slot = self._free_slots.pop()
        seq.decoding = False
        self.pages.take(seq, match)
        if seq.wants_prompt_logprobs:
            seq.prompt_logprobs = [TokenLogprob(seq.tokens[seq.logprobs_start], None)]
        if seq.cached_tokens is None:
            seq.started_at = self._clock()
            seq.cached_tokens = match.num_tokens
            self.stats.prompt_tokens += seq.num_prompt
            self.stats.cached_tokens += match.num_tokens
        self.running.append(seq)
        builder.init_slot(seq)

    # ---------------------------------------------------------------- leaving

    def _release(self, seq: Sequence) -> None:
        """Give back slot and pages."""
        self.pages.release(seq)
        self._free_slots.append(seq.slot)
        self.running.remove(seq)
        seq.slot, seq.decoding = -1, False

    def _retract(self, seq: Sequence) -> None:
        """Back to its place in the queue. Tokens that launched steps sample are still taken in when they come."""
        self._release(seq)
        seq.status = Status.WAITING
        self.waiting.put_back(seq)
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
        if seq.budget is not None:
            seq.budget.accept(token)
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

    def _drop(self, seq: Sequence, finish: Finish) -> None:
        """It ends, and says nothing about how long outputs are."""
        self.outputs.of(seq).finish = finish
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
        stats.queue_seconds, stats.full = self.limit.seconds, self.limit.full
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

    def measured(self, prefill_rate: float) -> None:
        self.deadlines.prefill_rate = prefill_rate

    def check(self) -> None:
        """Raise AssertionError unless every page is accounted for exactly once."""
        self.pages.check(self.running)
        assert len(self._free_slots) + len(self.running) == self.config.max_running

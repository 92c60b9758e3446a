"""A runner without a model: its KV cache holds token ids, and the next token is a hash of the whole context it reads back.

Every mistake in page tables, page reuse, chunking or retraction changes the context that is read, and so the output.
"""

from __future__ import annotations

import time
from zlib import crc32

import numpy as np

from raysgl.cache.hashing import page_hashes
from raysgl.engine.loop import EngineLoop
from raysgl.engine.plan import StepPlan, StepResult, ints
from raysgl.engine.scheduler import Scheduler, SchedulerConfig
from raysgl.messages import SequenceOutput, Submit, TokenLogprob, pack_ids
from raysgl.sampling.params import SamplingParams
from raysgl.sampling.token_masks import TokenMasks

VOCAB = 50


def next_token(context: list[int], seed: int = 0) -> int:
    return crc32(pack_ids(context) + seed.to_bytes(8, "little", signed=True)) % VOCAB


def expected(prompt: list[int], max_new: int, stop: set[int] = frozenset(), seed: int = 0) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_new):
        tokens.append(next_token(tokens, seed))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


class SimulatedStep:
    def __init__(self, result: StepResult):
        self._result = result
        self.tokens = result.token_ids

    def wait(self, timeout: float | None) -> bool:
        return True

    def ending(self) -> bool:
        return True

    def result(self) -> StepResult:
        return self._result


class SimulatedRunner:
    def __init__(self, num_pages: int, page_size: int, max_running: int):
        self.num_pages = num_pages
        self.page_size = page_size
        self.cache = [[-1] * page_size for _ in range(num_pages + 1)]
        self.tables: list[dict[int, int]] = [{} for _ in range(max_running)]
        self.last = [0] * max_running
        self.seeds = [0] * max_running
        self.computed_tokens = 0
        self.unsampled = None

    def launch(self, plan: StepPlan) -> SimulatedStep:
        assert self.unsampled is None, "a guided step was overtaken"
        for init in plan.init:
            self.seeds[init.slot] = init.seed
            self.tables[init.slot] = {}
        for slot, index, page in zip(ints(plan.page_slots), ints(plan.page_indices), ints(plan.page_ids)):
            assert 1 <= page <= self.num_pages
            self.tables[slot][int(index)] = int(page)
        tokens = iter(ints(plan.token_ids_T).tolist())
        wanted = ints(plan.prompt_logprobs_S).tolist() or [-1] * len(ints(plan.slots_S))
        targets = iter(ints(plan.prompt_targets_T).tolist())
        sampled, prompt_logprobs = [], {}
        rows = zip(
            ints(plan.slots_S).tolist(), ints(plan.starts_S).tolist(), ints(plan.counts_S).tolist(), ints(plan.samples_S)
        )
        ends = []
        for row, (slot, start, count, samples) in enumerate(rows):
            self.computed_tokens += count
            for position in range(start, start + count):
                token = self.last[slot] if row < plan.num_decode else next(tokens)
                self.cache[self.tables[slot][position // self.page_size]][position % self.page_size] = token
            if wanted[row] >= 0:
                prompt_logprobs[row] = [TokenLogprob(next(targets), -1.0) for _ in range(count)]
            if samples:
                ends.append((slot, start + count))
        # As in a model: every row's keys are written before any row reads.
        for slot, end in ends:
            context = [self.cache[self.tables[slot][p // self.page_size]][p % self.page_size] for p in range(end)]
            assert -1 not in context, "a key that nobody wrote was read"
            sampled.append((slot, context))
        step = SimulatedStep(StepResult([], prompt_logprobs=prompt_logprobs))
        if plan.guided:
            self.unsampled = (step, sampled)
        else:
            self._sample(step, sampled, {})
        return step

    def sample(self, masks: TokenMasks | None) -> None:
        step, sampled = self.unsampled
        self.unsampled = None
        self._sample(step, sampled, dict(zip(masks.rows_R.tolist(), masks.bits_RW)) if masks else {})

    def _sample(self, step: SimulatedStep, sampled: list[tuple[int, list[int]]], masks: dict[int, np.ndarray]) -> None:
        """The hash's token, or the first after it that is allowed."""
        for row, (slot, context) in enumerate(sampled):
            token = next_token(context, self.seeds[slot])
            bits = masks.get(row)
            while bits is not None and not bits[token >> 5] >> (token & 31) & 1:
                token = (token + 1) % VOCAB
            self.last[slot] = token
            step.tokens.append(token)


class Engine:
    """A whole replica in one object: scheduler, loop, simulated runner."""

    def __init__(
        self,
        num_pages=64,
        page_size=4,
        max_running=8,
        step_tokens=16,
        overlap=True,
        eos=(),
        max_queued=10**6,
        grammars=None,
        clock=time.monotonic,
        **kw,
    ):
        config = SchedulerConfig(
            page_size=page_size,
            num_pages=num_pages,
            context_length=10**6,
            max_running=max_running,
            max_queued=max_queued,
            step_tokens=step_tokens,
            eos_token_ids=eos,
            **kw,
        )
        self.events = []
        self.scheduler = Scheduler(config, on_kv_event=self.events.append, grammars=grammars, clock=clock)
        self.runner = SimulatedRunner(num_pages, page_size, max_running)
        self.inbox = []
        self.outputs: dict[int, list[SequenceOutput]] = {}
        self.loop = EngineLoop(
            self.scheduler, self.runner, self._receive, self._emit, publish=lambda events, load: None, overlap=overlap
        )

    def _receive(self, timeout):
        messages, self.inbox = self.inbox, []
        return messages

    def _emit(self, outputs):
        for output in outputs.get("i", []):
            self.outputs.setdefault(output.uid, []).append(output)

    def submit(self, uid, prompt, max_new=8, sent=(), extra_key="", priority=0, waited_s=0.0, timeout_s=0.0, **sampling):
        self.inbox.append(
            Submit(
                uid=uid,
                request_id=f"r{uid}",
                ingress="i",
                input_ids=pack_ids(prompt),
                sampling=SamplingParams(max_new_tokens=max_new, **sampling),
                page_hashes=page_hashes(prompt, self.scheduler.config.page_size, extra_key),
                extra_key=extra_key,
                priority=priority,
                output_ids=pack_ids(list(sent)),
                waited_s=waited_s,
                timeout_s=timeout_s,
                accepted=bool(sent),
            )
        )

    def run(self, rounds=10_000, check=True):
        for _ in range(rounds):
            self.loop.run_once()
            if check:
                self.scheduler.check()
            if self.loop.idle and not self.inbox:
                return
        raise AssertionError("the engine did not come to rest")

    def tokens(self, uid) -> list[int]:
        return [token for output in self.outputs.get(uid, []) for token in output.token_ids]

    def finish(self, uid):
        return self.outputs[uid][-1].finish

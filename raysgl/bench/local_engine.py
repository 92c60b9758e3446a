"""A replica's engine in this process: scheduler, loop and runner, one shard, no HTTP, no Ray."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from raysgl import distributed, models
from raysgl.bench.progress import Stage
from raysgl.bench.prompts import FIRST_ID, LAST_ID
from raysgl.config import EngineConfig
from raysgl.engine.background import BackgroundRunner
from raysgl.engine.defaults import resolve_defaults, scheduler_config
from raysgl.engine.loop import EngineLoop
from raysgl.engine.runner import ModelRunner
from raysgl.engine.scheduler import Scheduler
from raysgl.messages import SequenceOutput, Submit, ToEngine, pack_ids
from raysgl.sampling.params import SamplingParams

Work = tuple[list[int], int]
"""A prompt, and how many tokens to sample after it."""


@dataclass
class Sampled:
    """A sequence's course, in seconds after the batch began."""

    prompt_tokens: int
    output_tokens: int = 0
    cached_tokens: int = 0
    first: float = 0.0
    last: float = 0.0


class LocalEngine:
    """Loads the model; `run` then serves batches. load_s: how long that took. Raises `ModelError`, or ValueError for settings
    that need several shards."""

    def __init__(self, config: EngineConfig, stage: Stage):
        import torch

        if config.tp_size > 1:
            raise ValueError("tp_size: an engine in this process is one shard; use `raysgl serve` and `raysgl bench serve`")
        self.device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        started = time.perf_counter()
        self.checkpoint = models.resolve(config.model_path, config.revision, config.load_format)
        self.model = self.checkpoint.config()
        self.limits = resolve_defaults(config, self.device, self.model.max_position_embeddings)
        self._config = config

        def make() -> ModelRunner:
            where = torch.device("cuda:0" if self.device == "cuda" else "cpu")
            return ModelRunner(config, self.checkpoint, 0, distributed.single(), where, lambda done, text: stage(text))

        self.runner = BackgroundRunner(make) if self.device == "cpu" else make()
        self.load_s = time.perf_counter() - started

    @property
    def kv_tokens(self) -> int:
        return self.runner.num_pages * self._config.page_size

    def draw(self, source: random.Random, count: int) -> list[int]:
        """Random ids of the model's vocabulary."""
        most = min(LAST_ID, self.model.vocab_size)
        return [source.randrange(min(FIRST_ID, most // 2), most) for _ in range(count)]

    def run(self, work: list[Work], progress: Callable[[int], None] = lambda done: None) -> tuple[list[Sampled], float]:
        """The whole batch, all there from the start, greedy, in an empty cache. Returns also the seconds that it took. Raises
        ValueError for a prompt that does not fit."""
        config = scheduler_config(self._config, self.limits, self.runner.num_pages, ())
        scheduler = Scheduler(dataclasses.replace(config, max_queued=len(work)))
        inbox: list[ToEngine] = [
            Submit(
                uid,
                str(uid),
                "bench",
                pack_ids(prompt),
                SamplingParams(temperature=0, max_new_tokens=tokens, ignore_eos=True),
                [],
            )
            for uid, (prompt, tokens) in enumerate(work)
        ]
        found = [Sampled(len(prompt)) for prompt, _ in work]
        done = 0

        def receive(timeout: float) -> list[ToEngine]:
            messages, inbox[:] = list(inbox), []
            return messages

        def emit(outputs: dict[str, list[SequenceOutput]]) -> None:
            nonlocal done
            now = time.perf_counter() - started
            for output in outputs["bench"]:
                one = found[output.uid]
                if output.token_ids:
                    one.first, one.last = one.first or now, now
                    one.output_tokens += len(output.token_ids)
                one.cached_tokens += output.cached_tokens or 0
                if output.finish is not None:
                    done += 1
                    if output.finish.reason != "length":
                        raise ValueError(output.finish.message or f"a sequence ended by {output.finish.reason}")
            progress(done)

        overlap = self.device == "cuda" and not self._config.disable_overlap_schedule
        loop = EngineLoop(scheduler, self.runner, receive, emit, publish=lambda events, load: None, overlap=overlap)
        started = time.perf_counter()
        while done < len(work) or not loop.idle:
            loop.run_once()
        return found, time.perf_counter() - started

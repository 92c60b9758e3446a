"""A backend without engines: every prompt is answered with scripted tokens. What happened to it can be looked up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from raysgl.api.served_model import ServedModel
from raysgl.logs import set_logs
from raysgl.messages import (
    Finish,
    Load,
    LogSettings,
    MemoryChange,
    ProfileRequest,
    ReplicaFacts,
    SequenceOutput,
    TokenLogprob,
    WeightsUpdate,
)
from raysgl.overview import HotPrefix, ScalingDecision
from raysgl.sampling.params import SamplingParams


@dataclass
class Script:
    """What a sequence says. `steps`: token ids that arrive together; then `finish`. `delay`: seconds before each step.

    hang: after the steps nothing more comes until it is aborted. error: raised by submit.
    """

    steps: list[list[int]]
    finish: Finish | None = field(default_factory=lambda: Finish("length"))
    delay: float = 0.0
    hang: bool = False
    error: Exception | None = None
    submit_delay: float = 0.0
    cached_tokens: int = 0
    timing: tuple[float, float] | None = None


class FakeStream:
    """One submitted prompt."""

    def __init__(self, request_id: str, input_ids: list[int], sampling: SamplingParams, **settings: object):
        self.request_id, self.input_ids, self.sampling, self.settings = request_id, input_ids, sampling, settings
        self.weight_version = "default"
        self.aborted: set[int] = set()
        self.finished: set[int] = set()
        self.aborted_at: float | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self._news: list[tuple[int, SequenceOutput]] = []
        self._wake = asyncio.Event()

    def deliver(self, index: int, output: SequenceOutput) -> None:
        if index in self.aborted or index in self.finished:
            return
        if output.finish is not None:
            self.finished.add(index)
        self._news.append((index, output))
        self._wake.set()

    async def get(self) -> list[tuple[int, SequenceOutput]]:
        await self._wake.wait()
        self._wake.clear()
        news, self._news = self._news, []
        return news

    def abort(self, index: int | None = None) -> None:
        chosen = set(range(self.sampling.n)) if index is None else {index}
        chosen -= self.finished | self.aborted
        if chosen:
            self.aborted |= chosen
            self.aborted_at = asyncio.get_running_loop().time()


class FakeBackend:
    """`script(input_ids, sampling, index)` says what a sequence answers."""

    def __init__(self, model: ServedModel, script: Callable[[list[int], SamplingParams, int], Script]):
        self.models = {model.name: model}
        self.script = script
        self.streams: list[FakeStream] = []
        self.waiting_submits = 0
        self.cancelled_submits = 0
        self.is_ready = True
        self.weight_version = "default"
        self.flushed: list[tuple[str | None, float]] = []
        self.profiles: list[tuple[ProfileRequest | None, str | None]] = []
        self.memory_changes: list[tuple[MemoryChange, str | None]] = []
        self.weight_updates: list[tuple[WeightsUpdate, str | None]] = []
        self.log_changes: list[LogSettings] = []
        self.checked: list[str | None] = []
        self.hot: dict[str, list[HotPrefix]] = {}
        self.decisions: dict[str, list[ScalingDecision]] = {}

    @property
    def last(self) -> FakeStream:
        return self.streams[-1]

    async def submit(
        self, model: ServedModel, request_id: str, input_ids: list[int], sampling: SamplingParams, **settings: object
    ) -> FakeStream:
        scripts = [self.script(input_ids, sampling, index) for index in range(sampling.n)]
        if scripts[0].error is not None:
            raise scripts[0].error
        self.waiting_submits += 1
        try:
            await asyncio.sleep(scripts[0].submit_delay)
        except asyncio.CancelledError:
            self.cancelled_submits += 1
            raise
        finally:
            self.waiting_submits -= 1
        stream = FakeStream(request_id, input_ids, sampling, **settings)
        stream.weight_version = self.weight_version
        stream.tasks = [asyncio.create_task(self._play(stream, index, script)) for index, script in enumerate(scripts)]
        self.streams.append(stream)
        return stream

    async def _play(self, stream: FakeStream, index: int, script: Script) -> None:
        first, sampling = True, stream.sampling
        steps = script.steps or [[]]
        left = sampling.max_new_tokens
        for number, step in enumerate(steps):
            await asyncio.sleep(script.delay)
            ids = step[:left]
            left -= len(ids)
            out_of_tokens = left == 0 and (number + 1 < len(steps) or len(ids) < len(step))
            output = SequenceOutput(index, ids)
            if sampling.logprobs:
                output.logprobs = [self.logprob(token, sampling.top_logprobs) for token in ids]
            if first:
                output.cached_tokens, output.timing = script.cached_tokens, script.timing
                if sampling.prompt_logprobs is not None:
                    rest = [self.logprob(token, sampling.prompt_logprobs) for token in stream.input_ids[1:]]
                    output.prompt_logprobs = [TokenLogprob(stream.input_ids[0], None), *rest]
                first = False
            if out_of_tokens:
                output.finish = Finish("length")
            elif number + 1 == len(steps) and not script.hang:
                output.finish = script.finish
            stream.deliver(index, output)
            if output.finish is not None:
                return

    @staticmethod
    def logprob(token: int, top: int) -> TokenLogprob:
        """A made-up log probability that says which token it is about; alternatives are the next tokens."""
        return TokenLogprob(token, -token / 1000, [(token + i, -(token + i) / 1000) for i in range(top)])

    def abort_request(self, request_id: str | None) -> int:
        found = [s for s in self.streams if request_id in (None, s.request_id) and len(s.finished | s.aborted) < s.sampling.n]
        for stream in found:
            for index in range(stream.sampling.n):
                stream.deliver(index, SequenceOutput(index, [], Finish("abort", message="the request was aborted")))
        return len(found)

    async def flush_cache(self, model: str | None = None, timeout: float = 0.0) -> tuple[bool, str]:
        self.flushed.append((model, timeout))
        return (True, "Cache flushed.") if self.is_ready else (False, "2 requests are running")

    async def profile(self, request: ProfileRequest | None, model: str | None = None) -> dict[str, tuple[bool, str]]:
        self.profiles.append((request, model))
        return {"replica-0": (self.is_ready, "said")}

    async def change_memory(self, change: MemoryChange, model: str | None = None) -> dict[str, tuple[bool, str]]:
        self.memory_changes.append((change, model))
        return {"replica-0": (self.is_ready, "said")}

    async def update_weights(self, update: WeightsUpdate, model: str | None = None) -> dict[str, tuple[bool, str]]:
        self.weight_updates.append((update, model))
        return {"replica-0": (self.is_ready, "said")}

    async def set_logs(self, change: LogSettings) -> None:
        self.log_changes.append(change)
        set_logs(change)

    async def check_index(self, model: str | None = None) -> dict:
        self.checked.append(model)
        return {"status": "equal", "replicas": {}}

    def replicas(self) -> dict[str, dict[str, ReplicaFacts]]:
        return {
            name: {"replica-0": ReplicaFacts("cpu", 2, 1600, 512, 8, "10.0.0.1", started_at=5.0, startup={"weights": 2.5})}
            for name in self.models
        }

    def loads(self) -> dict[str, dict[str, Load]]:
        load = Load(running=3, waiting=2, free_pages=50, cached_pages=30, total_pages=100, prompt_tokens=400, cached_tokens=100)
        return {name: {"replica-0": load} for name in self.models}

    def hot_prefixes(self) -> dict[str, list[HotPrefix]]:
        return self.hot

    def scaling_decisions(self) -> dict[str, list[ScalingDecision]]:
        return self.decisions

    def ready(self) -> bool:
        return self.is_ready

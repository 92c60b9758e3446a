"""A step on its way: its outputs are being copied to the host while the next one is planned."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from raysgl.engine.plan import StepResult
from raysgl.messages import TokenLogprob
from raysgl.sampling.logprobs import Logprobs
from raysgl.sampling.transfer import download

SPIN_S = 100e-6
"""A waiter asks the event for so long before it begins to sleep: a nap takes at least some 60 microseconds."""
NAP_S = 50e-6


@dataclass(frozen=True)
class StepOutputs:
    """What a step leaves on the device.

    tokens_L: int64. logprobs: of the rows `asking` of L. prompt_logprobs: of the rows and token counts `prompt_rows`.
    """

    tokens_L: torch.Tensor
    asking: list[int]
    logprobs: Logprobs | None = None
    prompt_rows: list[tuple[int, int]] | None = None
    prompt_logprobs: Logprobs | None = None


class LaunchedStep:
    """See `raysgl.engine.plan.PendingStep`. `complete` is called in the step's stream, after all its work has been launched.

    late: an event near the step's end.
    """

    def __init__(self, late: torch.cuda.Event | None = None):
        self._late = late
        self._event: torch.cuda.Event | None = None

    def complete(self, outputs: StepOutputs) -> None:
        """What it leaves is on its way."""
        self._asking, self._prompt_rows = outputs.asking, outputs.prompt_rows or []
        self._tokens_L = download(outputs.tokens_L)
        self._logprobs = outputs.logprobs.to_host() if outputs.logprobs else None
        self._prompt_logprobs = outputs.prompt_logprobs.to_host() if outputs.prompt_logprobs else None
        if outputs.tokens_L.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def ending(self) -> bool:
        return self._late is None or self._late.query()

    def wait(self, timeout: float | None) -> bool:
        if self._event is None or self._event.query():
            return True
        if timeout is None:
            self._event.synchronize()
            return True
        start = time.perf_counter()
        while (waited := time.perf_counter() - start) < timeout:
            if self._event.query():
                return True
            if waited > SPIN_S:
                time.sleep(NAP_S)
        return self._event.query()

    def result(self) -> StepResult:
        self.wait(None)
        tokens = self._tokens_L.tolist()
        logprobs: list[TokenLogprob | None] | None = None
        if self._logprobs is not None:
            logprobs = [None] * len(tokens)
            for row, entry in zip(self._asking, self._logprobs.entries()):
                logprobs[row] = entry
        prompts: dict[int, list[TokenLogprob]] | None = None
        if self._prompt_logprobs is not None:
            entries, begin = self._prompt_logprobs.entries(), 0
            prompts = {}
            for row, count in self._prompt_rows:
                prompts[row] = entries[begin : begin + count]
                begin += count
        return StepResult(tokens, logprobs, prompts)

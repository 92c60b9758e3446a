"""Has engines compute texts: submit them all, wait for all, and give back what is left when the client goes away."""

from __future__ import annotations

import asyncio
import time
from typing import Self

import numpy as np

from raysgl.api.backend import OutputStream, QueueFull, Unavailable
from raysgl.api.call import current
from raysgl.api.errors import ApiError, from_engine, queue_full, unavailable
from raysgl.api.generation import Job, Prompt
from raysgl.api.pooling.texts import TextIds
from raysgl.api.served_model import ServedModel
from raysgl.api.service import Service
from raysgl.api.tally import Tally
from raysgl.messages import SequenceOutput
from raysgl.sampling.params import SamplingParams

NOTHING = SamplingParams(max_new_tokens=0, seed=0)
"""What is sampled."""


class Computation:
    """One request's texts. Use it as an async context manager: leaving it, in whatever way, aborts what has not been computed.

    usage: the tokens of all texts.
    """

    def __init__(
        self, service: Service, model: ServedModel, texts: list[TextIds], request_id: str, priority: int, arrived_at: float
    ):
        self.model, self.texts, self.request_id, self.priority = model, texts, request_id, priority
        self.prompt_tokens = sum(len(text.token_ids) for text in texts)
        self._backend = service.backend
        self._timeout_s = current().time_left()
        self._job = Job(model, request_id, [Prompt(text.token_ids, NOTHING) for text in texts], arrived_at=arrived_at)
        lengths = [len(text.token_ids) for text in texts]
        self._tally = Tally(service.metrics.of(model.name), current(), lengths, 1, arrived_at)
        self._streams: list[OutputStream] = []
        self._left = len(texts)
        self.arrived_at = arrived_at

    async def __aenter__(self) -> Self:
        """Submits. ApiError 429 or 503."""
        try:
            self._tally.submitted(self._job)
            # All in one turn of the loop, so that they are routed together.
            results = await asyncio.gather(*map(self._submit, self.texts), return_exceptions=True)
            self._streams = [result for result in results if not isinstance(result, BaseException)]
            for result in results:
                if isinstance(result, QueueFull):
                    raise queue_full(result) from None
                if isinstance(result, Unavailable):
                    raise unavailable(str(result)) from None
                if isinstance(result, BaseException):
                    raise result
            self._tally.routed()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._close()

    async def results(self) -> np.ndarray:
        """float32, a row for each text. ApiError if the engine refuses or fails."""
        rows = []
        for index, stream in enumerate(self._streams):
            ((_, output),) = await stream.get()
            rows.append(self._take(index, output))
        return np.stack(rows)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self.arrived_at

    def weight_version(self, index: int) -> str:
        """Of the weights that computed a text."""
        return self._streams[index].weight_version

    async def _submit(self, text: TextIds) -> OutputStream:
        return await self._backend.submit(
            self.model,
            self.request_id,
            text.token_ids,
            NOTHING,
            priority=self.priority,
            first_segment=text.first_segment,
            timeout_s=self._timeout_s,
        )

    def _take(self, index: int, output: SequenceOutput) -> np.ndarray:
        finish = output.finish
        if finish.reason == "error" or finish.status >= 400:
            raise from_engine(finish)
        if finish.reason == "abort":
            raise ApiError(400, finish.message or "the request was aborted", code="aborted")
        if output.cached_tokens is not None:
            self._tally.started(index, index, output)
        self._left -= 1
        self._tally.finished(index, 0, finish.reason)
        return np.frombuffer(output.numbers, dtype="<f4")

    def _close(self) -> None:
        self._tally.closed(self._left)
        for stream in self._streams:
            stream.abort()

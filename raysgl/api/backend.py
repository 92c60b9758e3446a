"""What the HTTP layer needs from whatever runs the model. `actors.ingress` implements it; tests use a fake one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from raysgl.api.served_model import ServedModel
from raysgl.messages import Load, LogSettings, MemoryChange, ProfileRequest, ReplicaFacts, SequenceOutput, WeightsUpdate
from raysgl.overview import HotPrefix, ScalingDecision
from raysgl.sampling.params import SamplingParams


class QueueFull(Exception):
    """Every replica has too many waiting requests. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(Exception):
    """No replica can take the request (starting, draining or dead)."""


class OutputStream(Protocol):
    """Outputs of one submitted prompt: `sampling.n` sequences. weight_version: of the weights that make them, once there are some."""

    weight_version: str

    async def get(self) -> Sequence[tuple[int, SequenceOutput]]:
        """Wait for news, then return all that has arrived since the last call, as (sequence index, output).

        Where a reader is behind, outputs of several steps come at once; they are in order for each sequence.
        """

    def abort(self, index: int | None = None) -> None:
        """Stop one sequence, or all. Idempotent; does nothing to sequences that have finished. Frees their pages."""


class Backend(Protocol):
    """Serves one or more models."""

    models: dict[str, ServedModel]

    async def submit(
        self,
        model: ServedModel,
        request_id: str,
        input_ids: list[int],
        sampling: SamplingParams,
        *,
        extra_key: str = "",
        priority: int = 0,
        session: str = "",
        first_segment: int = 0,
        timeout_s: float | None = None,
    ) -> OutputStream:
        """Start a prompt. Raises `QueueFull` or `Unavailable`. `sampling` is verified and complete (seed and max_new_tokens set).

        A model with `pooling` answers with one output that has `numbers`; `sampling` is then as it is made. `first_segment`: see
        `Submit`. After `timeout_s` its sequences are aborted: with status 504 if there has been no token, else with what they have.
        """

    def abort_request(self, request_id: str | None) -> int:
        """Abort the live request with exactly this id, or all (None), at whatever ingress. Returns how many were found at this one."""

    async def flush_cache(self, model: str | None = None, timeout: float = 0.0) -> tuple[bool, str]:
        """Drop cached prefixes of all replicas. False with a reason while requests are running."""

    async def profile(self, request: ProfileRequest | None, model: str | None = None) -> dict[str, tuple[bool, str]]:
        """Begin to record the steps of every replica's shards, or (None) stop. replica -> whether it did, and a sentence: where the
        trace is, or why not."""

    async def change_memory(self, change: MemoryChange, model: str | None = None) -> dict[str, tuple[bool, str]]:
        """Release or resume memory in every replica's shards. replica -> whether it did, and a sentence. While a replica has
        memory released, requests go to others; where all have, `submit` raises `Unavailable`."""

    async def update_weights(self, update: WeightsUpdate, model: str | None = None) -> dict[str, tuple[bool, str]]:
        """Load other weights in every replica's shards. replica -> whether it has them, and a sentence. Returns when what runs has
        ended; what comes meanwhile waits. From then on `loads` says so (`Load.weights`)."""

    async def set_logs(self, change: LogSettings) -> None:
        """Of every ingress and engine."""

    async def check_index(self, model: str | None = None) -> dict[str, Any]:
        """Compare the replicas' caches with the index of what is cached where (`raysgl.routing.audit.compare`)."""

    def replicas(self) -> dict[str, dict[str, ReplicaFacts]]:
        """model name -> replica id -> what it is. Those that have started."""

    def loads(self) -> dict[str, dict[str, Load]]:
        """model name -> replica id -> load, as last reported."""

    def hot_prefixes(self) -> dict[str, list[HotPrefix]]:
        """model name -> what its requests find cached, at all ingresses; those that save most tokens first."""

    def scaling_decisions(self) -> dict[str, list[ScalingDecision]]:
        """model name -> what the autoscaler last decided, the newest first."""

    def ready(self) -> bool:
        """Whether every model has at least one live replica and this ingress is not draining."""

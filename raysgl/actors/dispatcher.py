"""What an ingress does between HTTP and the engines: place prompts, deliver tokens, move what a replica lost. No Ray.

A sequence is always in one of three places: at a replica (`placement`), homeless (its replica died and no other is there yet), or
over. Prompts that arrive in one turn of the loop are routed together.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from raysgl.actors.engine_commands import EngineCommands
from raysgl.actors.engine_peer import Engine
from raysgl.actors.fleet import Fleet
from raysgl.actors.streams import LiveSequence, Placement, Stream
from raysgl.actors.transport import Transport
from raysgl.api.backend import QueueFull, Unavailable
from raysgl.api.served_model import ServedModel
from raysgl.cache.hashing import page_hashes
from raysgl.logs import set_logs
from raysgl.messages import Abort, AbortRequest, Done, Finish, Load, Logs, ReplicaFacts, StepOutput, Submit, ToIngress, pack_ids
from raysgl.overview import HotPrefix, ScalingDecision
from raysgl.routing import Decision, Mirror, Refusal, ReplicaInfo, RouteRequest
from raysgl.routing.messages import facts_of
from raysgl.sampling.params import SamplingParams

log = logging.getLogger(__name__)

REFUSED = (429, 503)
"""An engine's refusals that another need not share: its queue is full, it is stopping."""
MOST_HELD = 1024
"""So many sequences may wait for a replica before new requests are refused at once."""
MAX_REFUSALS = 3
"""So many replicas are asked to take a new request. Where they are flooded, asking all of them would be a flood of its own."""
SHORTEST_S = 0.001
"""A deadline that is over within this turn of the loop; 0 would mean that there is none."""
REHOME_EVERY_S = 0.5


class Dispatcher(EngineCommands):
    """Implements `raysgl.api.backend.Backend`. Lives in one event loop; `name` is this ingress's id."""

    def __init__(self, transport: Transport, name: str, models: dict[str, ServedModel], mirror: Mirror):
        self.models, self.mirror = models, mirror
        self.stopping = False
        """Not ready any more, but requests that are here still get in."""
        self.wakers: dict[str, Callable[[], None]] = {}
        """Models that may have no replica while nobody asks, and what to call when somebody does; calls may be many."""
        self.index_check: Callable[[Iterable[str]], Awaitable[dict[str, Any]]] | None = None
        self.draining = False
        self._fleet = Fleet(transport, name, self._on_message, self._begin_anew)
        self._uids = itertools.count(1)
        self._live: dict[int, LiveSequence] = {}
        self._streams: dict[str, set[Stream]] = {}
        self._homeless: dict[LiveSequence, float] = {}
        self._arriving: dict[str, list[tuple[Stream, asyncio.Future[None]]]] = {}
        super().__init__(name, self._fleet.of)
        self._loop = asyncio.get_running_loop()
        self._greeter = self._loop.create_task(self._look_after())

    # ---------------------------------------------------------------- Backend

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
    ) -> Stream:
        if self.draining:
            raise Unavailable("the server is stopping")
        packed = pack_ids(input_ids)
        # Of a text that no page is kept of, no page can be found again.
        hashes = page_hashes(packed, model.page_size, extra_key) if model.pooling is None else []
        stream = Stream(
            model, request_id, packed, sampling, hashes, extra_key, priority, session, self._abort, first_segment, timeout_s
        )
        placed: asyncio.Future[None] = self._loop.create_future()
        arriving = self._arriving.setdefault(model.name, [])
        arriving.append((stream, placed))
        if len(arriving) == 1:
            self._loop.call_soon(self._place_arrivals, model.name)
        try:
            await placed
        except asyncio.CancelledError:
            stream.abort()
            raise
        if timeout_s is not None:
            stream.timer = self._loop.call_later(timeout_s, stream.expire)
        return stream

    def abort_request(self, request_id: str | None) -> int:
        streams = (
            [s for group in self._streams.values() for s in group] if request_id is None else self._streams.get(request_id, ())
        )
        aborted = 0
        for stream in list(streams):
            aborted += bool(stream.cut(Finish("abort", message="the request was aborted")))
        for engine in self._fleet.of(None):
            engine.connection.send(AbortRequest(self.name, request_id))
        return aborted

    async def check_index(self, model: str | None = None) -> dict[str, Any]:
        assert self.index_check is not None, "the ingress brings it"
        return await self.index_check(self.models if model is None else (model,))

    def replicas(self) -> dict[str, dict[str, ReplicaFacts]]:
        found: dict[str, dict[str, ReplicaFacts]] = {name: {} for name in self.models}
        for engine in self._fleet.of(None):
            found.setdefault(engine.info.model, {})[engine.info.replica] = facts_of(engine.info)
        return found

    def loads(self) -> dict[str, dict[str, Load]]:
        return self.mirror.loads()

    def hot_prefixes(self) -> dict[str, list[HotPrefix]]:
        return self.mirror.hot_prefixes(time.monotonic())

    def scaling_decisions(self) -> dict[str, list[ScalingDecision]]:
        return self.mirror.scaling_decisions()

    def ready(self) -> bool:
        return not self.stopping and all(self.available(name) or name in self.wakers for name in self.models)

    # ---------------------------------------------------------------- replicas come and go

    def available(self, model: str) -> bool:
        """Whether a replica of the model takes requests."""
        return any(self._fleet.hears(i.replica) and not i.draining for i in self.mirror.replicas(model))

    def _comes(self, model: str) -> bool:
        """Whether it is worth waiting for a replica of the model."""
        return model in self.wakers or model in self._fleet.served

    def connect(self, info: ReplicaInfo) -> None:
        """A replica is there: connect to it, and send it what has been waiting for one."""
        old = self._fleet.engines.get(info.replica)
        if old is not None:
            if old.info.epoch == info.epoch:
                return
            self.lost(old.info)
        self._fleet.add(info)
        if info.model in self.models:
            self.models[info.model].page_size = info.page_size
        self._rehome(time.monotonic())

    def lost(self, info: ReplicaInfo) -> None:
        """A replica died: what it was doing goes on elsewhere."""
        self.mirror.lost(info.model, info.replica, info.epoch)
        if self._fleet.drop(info):
            self._move(self._accepted_by(info.replica))

    def _accepted_by(self, replica: str) -> list[LiveSequence]:
        """Those that are there; from now on they are not refused because queues are full."""
        found = [seq for seq in self._live.values() if seq.placement.replica == replica]
        for seq in found:
            seq.stream.accepted = True
        return found

    def suspect(self, info: ReplicaInfo) -> None:
        """Ray cannot reach a replica just now."""
        self._fleet.suspect(info)

    def num_live(self) -> int:
        """Sequences that somebody waits for."""
        return len(self._live) + len(self._homeless)

    def close(self) -> None:
        self._greeter.cancel()
        self.abort_request(None)
        self._fleet.close()

    # ---------------------------------------------------------------- placing

    def _place_arrivals(self, model: str) -> None:
        arrived = [(stream, placed) for stream, placed in self._arriving.pop(model) if not placed.done()]
        decisions = self._choose(model, [stream.to_route(stream.sequences) for stream, _ in arrived])
        for (stream, placed), decision in zip(arrived, decisions):
            if isinstance(decision, Decision):
                self._streams.setdefault(stream.request_id, set()).add(stream)
                self._send(stream, stream.sequences, decision)
                pages, size = decision.hit_pages, stream.model.page_size
                self.mirror.hot.reused(model, stream.page_hashes, pages, size, time.monotonic(), stream.input_ids)
                placed.set_result(None)
            elif decision.reason == "full":
                placed.set_exception(QueueFull("all replicas have too many waiting requests", decision.retry_after))
            elif decision.reason == "asleep":
                placed.set_exception(Unavailable(_asleep(model)))
            elif self._comes(model) and len(self._homeless) < MOST_HELD:
                self._streams.setdefault(stream.request_id, set()).add(stream)
                self._homeless.update((seq, time.monotonic()) for seq in stream.sequences)
                if model in self.wakers:
                    self.wakers[model]()
                placed.set_result(None)
            else:
                placed.set_exception(Unavailable(f"no replica of {model} takes requests now"))

    def _choose(self, model: str, requests: list[RouteRequest]) -> list[Decision | Refusal]:
        """As the mirror decides, among the replicas that this ingress hears."""
        unknown = frozenset(i.replica for i in self.mirror.replicas(model) if not self._fleet.hears(i.replica))
        if unknown:
            for request in requests:
                request.exclude |= unknown
        return self.mirror.choose(model, requests, time.monotonic())

    def _send(self, stream: Stream, sequences: list[LiveSequence], decision: Decision) -> None:
        placement = Placement(decision.replica, decision.epoch, decision.ticket, live=len(sequences))
        whole = len(sequences) == len(stream.sequences) and stream.untouched
        uids = list(itertools.islice(self._uids, len(sequences)))
        for seq, uid in zip(sequences, uids):
            seq.uid, seq.placement = uid, placement
            self._live[uid] = seq
        now = time.monotonic()
        waited_s = now - stream.came_at
        timeout_s = 0.0 if stream.deadline is None else max(stream.deadline - now, SHORTEST_S)
        for seq in sequences[:1] if whole else sequences:
            self._fleet.send(
                decision.replica,
                Submit(
                    seq.uid,
                    stream.request_id,
                    self.name,
                    stream.input_ids,
                    stream.sampling if whole else stream.sampling_of(seq),
                    stream.page_hashes,
                    stream.extra_key,
                    stream.priority,
                    seq.sent.tobytes(),
                    stream.first_segment,
                    waited_s,
                    stream.accepted,
                    timeout_s,
                ),
            )

    def _move(self, sequences: Iterable[LiveSequence], refusal: Finish | None = None) -> None:
        """Send sequences to another replica, those of one prompt together. Without one they wait, but prompts that were refused
        because of full queues and have had no token yet end with the `refusal`, and such as no replica had, where all are asleep."""
        by_stream: dict[Stream, list[LiveSequence]] = {}
        for seq in sequences:
            self._detach(seq)
            by_stream.setdefault(seq.stream, []).append(seq)
        for stream, group in by_stream.items():
            request = stream.to_route(group)
            final = refusal is not None and refusal.status == 429 and stream.untouched and not stream.accepted
            if final and len(request.exclude) >= MAX_REFUSALS:
                decision = None
            else:
                (decision,) = self._choose(stream.model.name, [request])
            if isinstance(decision, Decision):
                self._send(stream, group, decision)
            elif final:
                for seq in group:
                    stream.end(seq, refusal)
                    self._over(seq)
            elif decision is not None and decision.reason == "asleep" and stream.untouched and not stream.accepted:
                for seq in group:
                    stream.end(seq, Finish("error", message=_asleep(stream.model.name), status=503))
                    self._over(seq)
            else:
                now = time.monotonic()
                self._homeless.update((seq, now) for seq in group)

    # ---------------------------------------------------------------- tokens

    def _on_message(self, message: ToIngress) -> None:
        if isinstance(message, StepOutput):
            self._take(message)
        elif isinstance(message, Done):
            self._answered(message)
        elif isinstance(message, Logs):
            set_logs(message.change)

    def _begin_anew(self, engine: Engine) -> None:
        """What a replica has of this ingress begins anew, there or elsewhere."""
        mine = self._accepted_by(engine.info.replica)
        engine.connection.send(Abort(self.name, [seq.uid for seq in mine]))
        self._move(mine)

    def _take(self, message: StepOutput) -> None:
        refused: list[LiveSequence] = []
        finish = None
        for output in message.outputs:
            seq = self._live.get(output.uid)
            if seq is None:
                continue  # aborted, or moved away meanwhile
            if output.finish is not None and output.finish.status in REFUSED:
                seq.refused_by.add(message.replica)
                refused.append(seq)
                finish = output.finish
                continue
            if not seq.placement.started:
                seq.placement.started = True
                if message.load is not None and message.load.weights is not None:
                    seq.stream.weight_version = message.load.weights.version
                self.mirror.first_token(seq.stream.model.name, seq.placement.ticket, time.monotonic())
            seq.stream.deliver(seq, output)
            if output.finish is not None:
                self._detach(seq)
                self._over(seq)
        engine = self._fleet.engines.get(message.replica)
        if engine is None:
            return
        if message.load is not None:
            self.mirror.load(engine.info.model, message.replica, message.epoch, message.load, time.monotonic())
        if refused:
            self._move(refused, finish)

    def _detach(self, seq: LiveSequence) -> None:
        """It is no longer at its replica."""
        placement, seq.placement = seq.placement, None
        if placement is None:
            return
        self._live.pop(seq.uid, None)
        placement.live -= 1
        if not placement.live:
            self.mirror.finish(seq.stream.model.name, placement.ticket, time.monotonic())

    def _over(self, seq: LiveSequence) -> None:
        seq.finished = True
        stream = seq.stream
        if all(other.finished for other in stream.sequences):
            if stream.timer is not None:
                stream.timer.cancel()
            group = self._streams.get(stream.request_id)
            if group is not None:
                group.discard(stream)
                if not group:
                    del self._streams[stream.request_id]

    def _abort(self, sequences: list[LiveSequence]) -> None:
        by_replica: dict[str, list[int]] = {}
        for seq in sequences:
            if seq.placement is not None:
                by_replica.setdefault(seq.placement.replica, []).append(seq.uid)
            self._homeless.pop(seq, None)
            self._detach(seq)
            self._over(seq)
        for replica, uids in by_replica.items():
            self._fleet.send(replica, Abort(self.name, uids))

    # ---------------------------------------------------------------- upkeep

    async def _look_after(self) -> None:
        """Of replicas, and of streams that have found none."""
        while True:
            await asyncio.sleep(REHOME_EVERY_S)
            self._fleet.look_after(REHOME_EVERY_S)
            self._rehome(time.monotonic())

    def _rehome(self, now: float) -> None:
        since, self._homeless = self._homeless, {}
        waiting = []
        for seq, lost_at in since.items():
            if now - lost_at > seq.stream.patience_s(seq.stream.model.name in self.wakers):
                seq.stream.end(seq, Finish("error", message="no replica came up to take it", status=503))
                self._over(seq)
            else:
                seq.refused_by.clear()
                waiting.append(seq)
        self._move(waiting)
        for seq in self._homeless:
            self._homeless[seq] = since[seq]
            if (wake := self.wakers.get(seq.stream.model.name)) is not None:
                wake()


def _asleep(model: str) -> str:
    return f"the replicas of {model} have memory released; POST /resume_memory_occupation brings it back"

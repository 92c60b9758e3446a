"""Commands to the replicas that an ingress is connected to, and their answers. No Ray."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable

from raysgl.actors.engine_peer import Engine
from raysgl.logs import set_logs
from raysgl.messages import (
    ChangeMemory,
    Command,
    Done,
    FlushCache,
    LogSettings,
    MemoryChange,
    Profile,
    ProfileRequest,
    SetLogs,
    UpdateWeights,
    WeightsUpdate,
)

FLUSH_RETRY_S = 0.1


class EngineCommands:
    """A part of `raysgl.api.backend.Backend`, and base of what is all of it. `name`: of the ingress. `engines(model)`: those of one model, or
    of all (None)."""

    def __init__(self, name: str, engines: Callable[[str | None], list[Engine]]):
        self.name, self._engines = name, engines
        self._command_uids = itertools.count(1)
        self._unanswered: dict[int, asyncio.Future[Done]] = {}

    def _answered(self, message: Done) -> None:
        """An answer has come."""
        future = self._unanswered.pop(message.uid, None)
        if future is not None and not future.done():
            future.set_result(message)

    async def flush_cache(self, model: str | None = None, timeout: float = 0.0) -> tuple[bool, str]:
        engines = self._engines(model)
        if not engines:
            return False, "no replica is there"
        answers = await asyncio.gather(*(self._flush_one(engine, timeout) for engine in engines))
        refusals = [answer.message for answer in answers if not answer.ok]
        return (False, "; ".join(refusals)) if refusals else (True, answers[0].message)

    async def profile(self, request: ProfileRequest | None, model: str | None = None) -> dict[str, tuple[bool, str]]:
        return await self._each(model, lambda uid: Profile(self.name, uid, request))

    async def change_memory(self, change: MemoryChange, model: str | None = None) -> dict[str, tuple[bool, str]]:
        return await self._each(model, lambda uid: ChangeMemory(self.name, uid, change))

    async def update_weights(self, update: WeightsUpdate, model: str | None = None) -> dict[str, tuple[bool, str]]:
        return await self._each(model, lambda uid: UpdateWeights(self.name, uid, update))

    async def set_logs(self, change: LogSettings) -> None:
        set_logs(change)
        await self._all(self._engines(None), lambda uid: SetLogs(self.name, uid, change))

    async def _flush_one(self, engine: Engine, timeout: float) -> Done:
        """Asks until it is done or the time is up; a replica that is busy refuses."""
        deadline = time.monotonic() + timeout
        while True:
            answer = await self._ask(engine, lambda uid: FlushCache(self.name, uid))
            if answer.ok or time.monotonic() + FLUSH_RETRY_S > deadline:
                return answer
            await asyncio.sleep(FLUSH_RETRY_S)

    async def _each(self, model: str | None, make: Callable[[int], Command]) -> dict[str, tuple[bool, str]]:
        """Replica -> what it answers."""
        engines = self._engines(model)
        answers = await self._all(engines, make)
        return {engine.info.replica: (answer.ok, answer.message) for engine, answer in zip(engines, answers)}

    async def _all(self, engines: Iterable[Engine], make: Callable[[int], Command]) -> list[Done]:
        return await asyncio.gather(*(self._ask(engine, make) for engine in engines))

    async def _ask(self, engine: Engine, make: Callable[[int], Command]) -> Done:
        """Send a command to a replica, and wait for its answer."""
        uid = next(self._command_uids)
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._unanswered[uid] = future
        engine.commands.add(future)
        engine.connection.send(make(uid))
        answer = await future
        engine.commands.discard(future)
        return answer

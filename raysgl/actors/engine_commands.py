"""Commands to the replicas that an ingress is connected to, and their answers. No Ray."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable

from raysgl.actors.engine_peer import Engine
from raysgl.logs import set_logs
from raysgl.messages import Command, Done, FlushCache, LogSettings, Profile, ProfileRequest, SetLogs

FLUSH_RETRY_S = 0.1


class EngineCommands:
    """Part of `raysgl.api.backend.Backend`. `name`: of the ingress. `engines(model)`: those of one model, or of all (None)."""

    def __init__(self, name: str, engines: Callable[[str | None], list[Engine]]):
        self._name, self._engines = name, engines
        self._uids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Done]] = {}

    def done(self, message: Done) -> None:
        """An answer has come."""
        future = self._waiting.pop(message.uid, None)
        if future is not None and not future.done():
            future.set_result(message)

    async def flush_cache(self, model: str | None, timeout: float) -> tuple[bool, str]:
        engines = self._engines(model)
        if not engines:
            return False, "no replica is there"
        answers = await asyncio.gather(*(self._flush_one(engine, timeout) for engine in engines))
        refusals = [answer.message for answer in answers if not answer.ok]
        return (False, "; ".join(refusals)) if refusals else (True, answers[0].message)

    async def profile(self, request: ProfileRequest | None, model: str | None) -> dict[str, tuple[bool, str]]:
        engines = self._engines(model)
        answers = await self._all(engines, lambda uid: Profile(self._name, uid, request))
        return {engine.info.replica: (answer.ok, answer.message) for engine, answer in zip(engines, answers)}

    async def set_logs(self, change: LogSettings) -> None:
        set_logs(change)
        await self._all(self._engines(None), lambda uid: SetLogs(self._name, uid, change))

    async def _flush_one(self, engine: Engine, timeout: float) -> Done:
        """Asks until it is done or the time is up; a replica that is busy refuses."""
        deadline = time.monotonic() + timeout
        while True:
            answer = await self._send(engine, lambda uid: FlushCache(self._name, uid))
            if answer.ok or time.monotonic() + FLUSH_RETRY_S > deadline:
                return answer
            await asyncio.sleep(FLUSH_RETRY_S)

    async def _all(self, engines: Iterable[Engine], make: Callable[[int], Command]) -> list[Done]:
        return await asyncio.gather(*(self._send(engine, make) for engine in engines))

    async def _send(self, engine: Engine, make: Callable[[int], Command]) -> Done:
        """Send a command to a replica, and wait for its answer."""
        uid = next(self._uids)
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting[uid] = future
        engine.commands.add(future)
        engine.connection.send(make(uid))
        answer = await future
        engine.commands.discard(future)
        return answer

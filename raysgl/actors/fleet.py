"""The replicas that an ingress is connected to: hellos, numbered frames, and which of them can be heard. No Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from raysgl.actors.engine_link import FORGOTTEN
from raysgl.actors.engine_peer import Engine
from raysgl.actors.frames import HELLO_EVERY_S, FromEngine, Numbers
from raysgl.actors.ingress_link import EngineConnection, OutputReader
from raysgl.actors.transport import Endpoint, Transport
from raysgl.messages import Done, Hello, StepOutput, ToEngine, ToIngress
from raysgl.routing import ReplicaInfo

log = logging.getLogger(__name__)

LATE_S = 1.0
"""An ingress that comes so late to look after its engines has not listened to them either."""


class Fleet:
    """take(message): from any of them. begin_anew(engine): something was lost between here and there, or it has fallen silent; what it has
    of this ingress is to be sent again. Both are called in the loop that made this."""

    def __init__(
        self, transport: Transport, name: str, take: Callable[[ToIngress], None], begin_anew: Callable[[Engine], None]
    ):
        self._transport, self._take, self._begin_anew = transport, take, begin_anew
        self._reader = OutputReader(transport, self._on_frame)
        self._numbers = Numbers()
        endpoint = self._reader.endpoint
        self._hello = Hello(name, endpoint.address, endpoint.public_key)
        self._greeted = self._looked = time.monotonic()
        self.engines: dict[str, Engine] = {}
        self.served: set[str] = set()
        """Models that have had a replica."""

    def add(self, info: ReplicaInfo) -> None:
        """Connect to a replica that is not there yet."""
        connection = EngineConnection(self._transport, Endpoint(info.address, info.keys["curve"]), self._hello)
        self.engines[info.replica] = Engine(info, connection, time.monotonic())
        self.served.add(info.model)

    def drop(self, info: ReplicaInfo) -> bool:
        """This life of a replica is over. False if it was not known."""
        if (engine := self._engine(info.replica, info.epoch)) is None:
            return False
        del self.engines[info.replica]
        engine.connection.close()
        engine.give_up(Done(0, True, "the replica is gone"))
        self._numbers.forget((info.replica, info.epoch))
        return True

    def suspect(self, info: ReplicaInfo) -> None:
        """Ray cannot reach a replica just now. It may be dead, or the network may be away for a moment."""
        if (engine := self._engine(info.replica, info.epoch)) is not None:
            engine.suspected = True

    def hears(self, replica: str) -> bool:
        engine = self.engines.get(replica)
        return engine is not None and not engine.silent

    def of(self, model: str | None) -> list[Engine]:
        """Those of one model, or all."""
        return [engine for engine in self.engines.values() if model in (None, engine.info.model)]

    def send(self, replica: str, message: ToEngine) -> None:
        """If it is still there."""
        if (engine := self.engines.get(replica)) is not None:
            engine.connection.send(message)

    def look_after(self, every_s: float) -> None:
        """Called so often: say hello, and see who has fallen silent."""
        now = time.monotonic()
        late, self._looked = now - self._looked > every_s + LATE_S, now
        for engine in self.engines.values():
            if late:
                engine.heard_at = now
            engine.listen(now)
        heard = {engine.info.model for engine in self.engines.values() if not engine.silent}
        for engine in list(self.engines.values()):
            # Where there is no other, what it has may as well wait for it.
            if engine.silent and not engine.left and engine.info.model in heard:
                log.warning("replica %s is silent; what it had goes elsewhere", engine.info.replica)
                engine.left = True
                self._give_back(engine)
        if now - self._greeted >= HELLO_EVERY_S:
            self._greeted = now
            for engine in self.engines.values():
                engine.connection.send(self._hello)

    def close(self) -> None:
        for engine in self.engines.values():
            engine.connection.close()
        self._reader.close()

    def _engine(self, replica: str, epoch: int) -> Engine | None:
        engine = self.engines.get(replica)
        return engine if engine is not None and engine.info.epoch == epoch else None

    def _on_frame(self, frame: FromEngine) -> None:
        message, engine = frame.message, self._engine(frame.replica, frame.epoch)
        complete = self._numbers.complete((frame.replica, frame.epoch), frame.number)
        if engine is not None:
            engine.heard(time.monotonic())
            if not complete or (isinstance(message, StepOutput) and message.step == FORGOTTEN):
                log.warning("messages between here and replica %s were lost; what it had is sent again", frame.replica)
                self._give_back(engine)
        self._take(message)

    def _give_back(self, engine: Engine) -> None:
        engine.give_up(Done(0, False, "the connection to the replica broke"))
        self._begin_anew(engine)

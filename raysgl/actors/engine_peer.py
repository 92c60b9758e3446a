"""A replica as an ingress sees it: the connection to it, and when it was last heard. No Ray."""

from __future__ import annotations

import asyncio

from raysgl.actors.ingress_link import EngineConnection
from raysgl.messages import Done
from raysgl.routing import ReplicaInfo

SILENT_S = 4.0
"""Engines answer a hello a second, from a thread of their own. Ray takes up to 15 s to notice that a node is gone, and a process that is
alive but stopped it never does; streams move on after this."""
SUSPECT_S = 1.5
"""The same where Ray has lost its connection to the engine too."""


class Engine:
    """A replica that this ingress is connected to. Times are time.monotonic()."""

    def __init__(self, info: ReplicaInfo, connection: EngineConnection, now: float):
        self.info = info
        self.connection = connection
        self.commands: set[asyncio.Future[Done]] = set()
        self.heard_at = now
        self.suspected = False
        self.silent = False
        """Gets nothing until it is heard again."""
        self.left = False
        """What it had has gone elsewhere."""

    def heard(self, now: float) -> None:
        self.heard_at = now
        self.suspected = self.silent = self.left = False

    def listen(self, now: float) -> None:
        """Is it still there? Called now and then."""
        self.silent = self.silent or now - self.heard_at > (SUSPECT_S if self.suspected else SILENT_S)

    def give_up(self, done: Done) -> None:
        """Nobody will answer the commands that are out: this is the answer."""
        for future in self.commands:
            if not future.done():
                future.set_result(done)

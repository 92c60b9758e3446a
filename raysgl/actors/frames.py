"""What goes over the wires between ingresses and engines: messages in numbered frames, so that a lost one is noticed. No Ray.

A TCP connection that breaks takes along what was on it, and what ZeroMQ still held for it; ZeroMQ then connects again and goes on
as if nothing had happened. Whoever finds a number missing has everything of that pair of processes sent again (see `FORGOTTEN`).
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from raysgl.messages import ToEngine, ToIngress

HELLO_EVERY_S = 1.0
"""How often an ingress says that it is there. The answer has a number: a loss that nothing follows is noticed so soon."""


class FromIngress(msgspec.Struct, array_like=True):
    """The frame number `number` of an ingress's connection to an engine; counts from 0."""

    ingress: str
    number: int
    messages: list[ToEngine]


class FromEngine(msgspec.Struct, array_like=True):
    """The frame number `number` from an engine to an ingress; counts from 0 for each ingress that it meets."""

    replica: str
    epoch: int
    number: int
    message: ToIngress


class Numbers:
    """Watches the numbers of frames that come from several senders."""

    def __init__(self) -> None:
        self._next: dict[Hashable, int] = {}

    def complete(self, sender: Hashable, number: int) -> bool:
        """Whether nothing is missing between the sender's last frame and this one. A sender that begins at 0 begins anew."""
        expected = self._next.get(sender, 0)
        self._next[sender] = number + 1
        return number in (expected, 0)

    def forget(self, sender: Hashable) -> None:
        self._next.pop(sender, None)

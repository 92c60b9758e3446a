"""New weights for a running engine, as its loop sees it: nothing is begun until what runs has ended, then all shards load them.
No torch, no Ray.

An answer is so of one model from its first token to its last; what comes meanwhile waits, and is answered by the new weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raysgl.messages import DEFAULT_VERSION, LoadedWeights, UpdateWeights

if TYPE_CHECKING:
    from raysgl.engine.loop import Planner


class NewWeights:
    """loaded: what the last update brought; None: there was none. source: what the config says. waiting: an update that waits. changes: how often there was one.

    carry_out(message): has all shards do it; whether they did, and why not.
    """

    def __init__(
        self,
        scheduler: Planner,
        carry_out: Callable[[UpdateWeights], tuple[bool, str]],
        source: str = "",
        loaded: LoadedWeights | None = None,
    ):
        self._scheduler, self._carry_out, self._source = scheduler, carry_out, source
        self.loaded = loaded
        self.waiting: UpdateWeights | None = None
        self.changes = 0

    def begin(self, message: UpdateWeights) -> bool:
        """False: another one is waiting."""
        if self.waiting is not None:
            return False
        if message.update.abort_all:
            self._scheduler.abort_request("", None)
        self.waiting, self._scheduler.paused = message, True
        return True

    @property
    def ready(self) -> bool:
        return self.waiting is not None and self._scheduler.at_rest

    def finish(self) -> tuple[bool, str]:
        """When `ready`, and no step is on its way: whether there are new weights, and a sentence about it."""
        assert self.waiting is not None, "there is an update"
        message, self.waiting = self.waiting, None
        update, before = message.update, self.loaded.version if self.loaded is not None else DEFAULT_VERSION
        done, why = self._carry_out(message)
        self._scheduler.paused = False
        if not done:
            return False, f"the weights are those of before: {why}"
        if update.flush_cache:
            self._scheduler.drop_cached()
        self.loaded = LoadedWeights(update.model_path, update.load_format, update.version or before, self._source)
        self.changes += 1
        return True, f"the weights are those of {update.model_path}"

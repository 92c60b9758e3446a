"""What of a replica's memory is given back, as its loop sees it: while something is, requests are refused. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raysgl.messages import MEMORY_TAGS, ChangeMemory, Finish, MemoryTag, Submit

if TYPE_CHECKING:
    from raysgl.engine.loop import Planner


class Released:
    """tags: of `MEMORY_TAGS`, in their order. changes: how often they have changed. Written by the loop's thread alone.

    carry_out(change): has all shards do it; whether they did, and why not.
    """

    def __init__(self, scheduler: Planner, carry_out: Callable[[ChangeMemory], tuple[bool, str]]):
        self._scheduler, self._carry_out = scheduler, carry_out
        self.tags: tuple[MemoryTag, ...] = ()
        self.changes = 0

    def refuse(self, submit: Submit) -> None:
        """With a status on which an ingress tries another replica."""
        message = f"{', '.join(self.tags)} of this replica are released; POST /resume_memory_occupation brings them back"
        for uid in range(submit.uid, submit.uid + submit.sampling.n):
            self._scheduler.outputs.finish(submit.ingress, uid, Finish("abort", message=message, status=503))

    def change(self, message: ChangeMemory) -> tuple[bool, str]:
        """Release or resume; what is so already is no error. The engine runs no step meanwhile."""
        release, asked = message.change.release, message.change.tags
        word = "released" if release else "resumed"
        tags = [tag for tag in MEMORY_TAGS if tag in asked and (tag in self.tags) != release]
        if not tags:
            return True, f"nothing to do: {', '.join(asked)} {'released already' if release else 'not released'}"
        if release and (live := self._scheduler.num_live):
            return False, f"{live} sequences are running or waiting; abort them with /abort_request, or ask again later"
        if release and "kv_cache" in tags:
            self._scheduler.flush()  # tells the global index, too
        done, why = self._carry_out(message)
        if not done:
            return False, f"not {word}: {why}"
        now = {*self.tags, *tags} if release else {*self.tags} - {*tags}
        self.tags = tuple(tag for tag in MEMORY_TAGS if tag in now)
        self.changes += 1
        return True, f"{word}: {', '.join(tags)}"

"""Collects what is new about sequences until the loop sends it: one output a sequence and round, by ingress."""

from __future__ import annotations

import time

from raysgl.engine.plan_builder import Row
from raysgl.engine.sequence import Sequence
from raysgl.messages import Finish, SequenceOutput, TokenLogprob


class Outputs:
    """Written by the scheduler, emptied by the loop."""

    def __init__(self) -> None:
        self._by_ingress: dict[str, dict[int, SequenceOutput]] = {}

    def take(self) -> dict[str, list[SequenceOutput]]:
        """What is new since the last call."""
        outputs = {ingress: list(by_uid.values()) for ingress, by_uid in self._by_ingress.items() if by_uid}
        self._by_ingress = {}
        return outputs

    def of(self, seq: Sequence) -> SequenceOutput:
        """The sequence's output of this round, made when first asked for. Its very first says what the prompt cost."""
        mine = self._by_ingress.setdefault(seq.ingress, {})
        if (output := mine.get(seq.uid)) is None:
            output = mine[seq.uid] = SequenceOutput(seq.uid, [])
            if not seq.announced:
                seq.announced = True
                output.cached_tokens = seq.cached_tokens or 0
                output.prompt_logprobs = seq.prompt_logprobs
                if seq.started_at:
                    output.timing = (seq.started_at - seq.added_at, time.monotonic() - seq.started_at)
        return output

    def finish(self, ingress: str, uid: int, finish: Finish) -> None:
        """A sequence that never ran ends."""
        self._by_ingress.setdefault(ingress, {})[uid] = SequenceOutput(uid, [], finish=finish, cached_tokens=0)

    def drop(self, ingress: str, uid: int) -> None:
        """Nobody waits for it any more."""
        self._by_ingress.get(ingress, {}).pop(uid, None)

    def drop_ingress(self, ingress: str) -> None:
        self._by_ingress.pop(ingress, None)

    def add_token(self, seq: Sequence, token: int, logprob: TokenLogprob | None) -> SequenceOutput:
        output = self.of(seq)
        output.token_ids.append(token)
        if logprob is not None and seq.sampling.logprobs:
            output.logprobs = output.logprobs or []
            output.logprobs.append(logprob)
        return output


def add_prompt_logprobs(row: Row, entries: list[TokenLogprob]) -> None:
    """A chunk's answers join its sequence's; entry i is about the token after position start + i."""
    seq = row.seq
    if seq.prompt_logprobs is not None and len(seq.prompt_logprobs) == row.start + 1 - seq.logprobs_start:
        seq.prompt_logprobs.extend(entries[: seq.num_prompt - row.start - 1])

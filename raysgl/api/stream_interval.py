"""Fewer, larger chunks: a stream's pieces are gathered until a sequence has so many new tokens."""

from __future__ import annotations

from raysgl.api.sequence_text import Piece


class Gatherer:
    """A sequence's first piece and its last go out at once; others when `interval` tokens have come together."""

    def __init__(self, interval: int):
        self._interval = interval
        self._started: set[int] = set()
        self._held: dict[int, Piece] = {}

    def push(self, pieces: list[Piece]) -> list[Piece]:
        """What is to be sent now."""
        if self._interval == 1:
            return pieces
        ready = []
        for piece in pieces:
            held = self._held.pop(piece.index, None)
            if held is not None:
                piece = joined(held, piece)
            if piece.finish_reason is not None or piece.index not in self._started or len(piece.token_ids) >= self._interval:
                self._started.add(piece.index)
                ready.append(piece)
            else:
                self._held[piece.index] = piece
        return ready


def joined(first: Piece, then: Piece) -> Piece:
    """Two pieces of a sequence, one after the other, as one."""
    return Piece(
        then.index,
        first.text + then.text,
        first.entries + then.entries,
        then.finish_reason,
        then.matched_stop,
        first.token_ids + then.token_ids,
        None if first.logprobs is None and then.logprobs is None else [*(first.logprobs or ()), *(then.logprobs or ())],
        then.message,
        then.retractions,
    )

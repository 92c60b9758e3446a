"""Other rules than raysgl's own (`board`), to compare with on the same cluster: the setting `routing_policy`.

A rule scores every replica for a request; the lowest score wins, ties at random. They know the load books, so what other ingresses
send counts too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from raysgl.routing.board import Board

Rule = Callable[[Board, float, np.ndarray | None], np.ndarray]
"""(board, pages of the prompt, leading pages that each replica has or is about to have; None: none) -> scores [replicas]."""

CACHE_THRESHOLD, BALANCE_ABS, BALANCE_REL = 0.3, 64, 1.5
"""SGLang gateway's defaults."""


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, board: Board, pages: float, hits: np.ndarray | None) -> np.ndarray:
        scores = (np.arange(len(board.infos)) - self._next) % max(1, len(board.infos))
        self._next += 1
        return scores.astype(np.float64)


def least_loaded(board: Board, pages: float, hits: np.ndarray | None) -> np.ndarray:
    """Fewest requests running and waiting."""
    return board.requests


def cache_aware(board: Board, pages: float, hits: np.ndarray | None) -> np.ndarray:
    """SGLang gateway's rule, with the exact index instead of its approximate tree: to the longest prefix where it is more than
    `CACHE_THRESHOLD` of the prompt, else to the least loaded; and there too while the cluster is out of balance."""
    requests = board.requests
    most, fewest = requests.max(), requests.min()
    out_of_balance = most - fewest > BALANCE_ABS and most > BALANCE_REL * fewest
    if hits is None or out_of_balance or hits.max() <= CACHE_THRESHOLD * pages:
        return requests
    return -hits


RULES: dict[str, Callable[[], Rule]] = {
    "round_robin": RoundRobin,
    "least_loaded": lambda: least_loaded,
    "cache_aware": lambda: cache_aware,
}
"""By the name in the config; each router has its own."""

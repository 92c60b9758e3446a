"""Which prefixes requests find cached, and how often: for people who look, not for decisions.

A request counts for the longest prefix that its replica has of it, which ends where prompts branch, and for every shorter one that is
already watched. So much is kept of a model: the space-saving sketch of Metwally, Agrawal and El Abbadi (2005), whose counts fade with
time. What has the least count makes room for what is new, which takes that count over as its possible error; a prefix is reported
with what it has for certain, the count without the error.

Each ingress counts its own requests and tells the others what is hot there (`PrefixesHot`, through the coordinator).
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from raysgl.overview import HotPrefix
from raysgl.routing.messages import PrefixesHot

HALF_LIFE_S = 60.0
"""After so long a hit counts half: rates are averages over about a minute and a half."""
WATCHED = 128
"""Prefixes of a model that are counted. A request costs a look-up for each different length among them at most: 1 us where one
prompt is hot, 17 us among conversations of all lengths, 30 us where every length differs and every request is new (on a busy core)."""
SHOWN = 32
"""Prefixes of a model that are told and shown."""
LEAST_HITS = 1.0
"""A prefix found by one request, some time ago, is not hot."""
TELL_S = 2.0
FORGET_S = 10 * HALF_LIFE_S
"""What an ingress told so long ago has faded to a thousandth."""
BEGINNING = 48
"""Tokens of a prefix's beginning that are kept, where they are."""
ID_BYTES = 4


@dataclass(slots=True)
class _Watched:
    """count and error: as of the sketch's base time. beginning: packed token ids."""

    tokens: int
    pages: int
    count: float
    error: float
    beginning: bytes


class PrefixSketch:
    """One model's counts. Memory and the cost of a request are bounded by `watched`. `now` is of one monotonic clock, in seconds."""

    def __init__(self, watched: int = WATCHED, half_life_s: float = HALF_LIFE_S):
        self._most = watched
        self._half_life = half_life_s
        self._base = 0.0
        self._watched: dict[int, _Watched] = {}
        self._lengths: Counter[int] = Counter()
        # (count, page) of each watched one, the count perhaps of earlier; counts only grow.
        self._heap: list[tuple[float, int]] = []

    def reused(self, hashes: Sequence[int], pages: int, page_size: int, now: float, prompt: bytes = b"") -> None:
        """A request whose pages have these hashes found the first `pages` of them. prompt: its packed token ids, to keep the beginning."""
        if not pages:
            return
        weight = self._weight(now)
        watched = self._watched
        for length in self._lengths:
            if length < pages and (shorter := watched.get(hashes[length - 1])) is not None:
                shorter.count += weight
        page = hashes[pages - 1]
        if (found := watched.get(page)) is not None:
            found.count += weight
            return
        error = self._make_room() if len(watched) >= self._most else 0.0
        tokens = pages * page_size
        watched[page] = _Watched(tokens, pages, error + weight, error, prompt[: min(tokens, BEGINNING) * ID_BYTES])
        heapq.heappush(self._heap, (error + weight, page))
        self._lengths[pages] += 1

    def counts(self, now: float) -> dict[int, tuple[float, float]]:
        """Last page of a prefix -> (hits, how many of them may be another prefix's), faded until now."""
        scale = 1 / self._weight(now)
        return {page: (kept.count * scale, kept.error * scale) for page, kept in self._watched.items()}

    def hottest(self, now: float, most: int = SHOWN) -> list[HotPrefix]:
        """Those with the most hits that are certain."""
        scale = 1 / self._weight(now)
        certain = [((kept.count - kept.error) * scale, page) for page, kept in self._watched.items()]
        found = heapq.nlargest(most, (pair for pair in certain if pair[0] >= LEAST_HITS))
        per_second = math.log(2) / self._half_life  # of n hits a second, n / this are counted once it has gone on for long
        return [
            HotPrefix(page, self._watched[page].tokens, hits * per_second, beginning=self._watched[page].beginning)
            for hits, page in found
        ]

    def _make_room(self) -> float:
        """Stop watching the one with the least count, and return that."""
        while True:
            count, page = self._heap[0]
            kept = self._watched[page]
            if kept.count == count:
                heapq.heappop(self._heap)
                del self._watched[page]
                self._lengths[kept.pages] -= 1
                if not self._lengths[kept.pages]:
                    del self._lengths[kept.pages]
                return count
            heapq.heapreplace(self._heap, (kept.count, page))

    def _weight(self, now: float) -> float:
        """What a hit counts now: instead of all counts shrinking with time, later hits count more."""
        lives = (now - self._base) / self._half_life
        if lives > 64:  # far from where floats end
            shrink = 2.0 ** -min(lives, 1000.0)
            for kept in self._watched.values():
                kept.count *= shrink
                kept.error *= shrink
            self._heap = [(kept.count, page) for page, kept in self._watched.items()]
            heapq.heapify(self._heap)
            self._base, lives = now, 0.0
        return 2.0**lives


class HotPrefixes:
    """An ingress's counts for every model, and what other ingresses told of theirs. beginnings: keep how prefixes begin."""

    def __init__(self, ingress: str, beginnings: bool = False):
        self._ingress = ingress
        self._beginnings = beginnings
        self._own: defaultdict[str, PrefixSketch] = defaultdict(PrefixSketch)
        self._others: dict[tuple[str, str], tuple[float, list[HotPrefix]]] = {}
        self._told_at = -math.inf

    def reused(self, model: str, hashes: Sequence[int], pages: int, page_size: int, now: float, prompt: bytes = b"") -> None:
        """See `PrefixSketch.reused`."""
        self._own[model].reused(hashes, pages, page_size, now, prompt if self._beginnings else b"")

    def take_news(self, now: float) -> list[PrefixesHot]:
        """What to tell the other ingresses: every `TELL_S`, as long as anything is hot."""
        if now - self._told_at < TELL_S:
            return []
        self._told_at = now
        hot = ((model, sketch.hottest(now)) for model, sketch in self._own.items())
        return [PrefixesHot(model, self._ingress, prefixes) for model, prefixes in hot if prefixes]

    def told(self, news: PrefixesHot, now: float) -> None:
        """Another ingress's news, or this one's own come back."""
        if news.ingress != self._ingress:
            self._others = {who: kept for who, kept in self._others.items() if now - kept[0] < FORGET_S}
            self._others[news.model, news.ingress] = now, news.prefixes

    def hottest(self, model: str, now: float) -> list[HotPrefix]:
        """Of all ingresses together, those that save most tokens first."""
        merged: dict[int, HotPrefix] = {}
        lists = [(1.0, self._own[model].hottest(now))] if model in self._own else []
        for (other, _), (told_at, prefixes) in self._others.items():
            if other == model:
                lists.append((2.0 ** -((now - told_at) / HALF_LIFE_S), prefixes))
        for faded, prefixes in lists:
            for prefix in prefixes:
                kept = merged.setdefault(prefix.hash, HotPrefix(prefix.hash, prefix.tokens, 0.0, beginning=prefix.beginning))
                kept.hits_per_second += prefix.hits_per_second * faded
        return heapq.nlargest(SHOWN, merged.values(), key=lambda prefix: prefix.hits_per_second * prefix.tokens)

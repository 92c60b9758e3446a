"""What is asked of the cluster: five synthetic workloads. Each is a function of size, replicas and a random generator.

All lengths are in tokens, shared parts are whole pages. How many groups, documents and sessions there are grows with the number of
replicas, as it would for a bigger service. Popularity is Zipf's (share of rank r proportional to 1/r).

The offered load is relative to the replicas' capacity, so that it follows the calibration: arrivals per second rise from 60 % of the
peak to the peak in the middle of the run and fall again. The peak is `load` times what the replicas could carry if every page
were computed once in the whole cluster and decode batches held 64 rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from raysgl.bench.routing.calibration import Calibration
from raysgl.bench.routing.prefixes import PrefixTree
from raysgl.bench.routing.requests import Request

LOW = 0.6
"""Of the peak's arrivals per second, at both ends of a run."""


@dataclass(slots=True)
class Draft:
    """A request before its times are known. chain: page hashes of prompt and output.

    at: place in the run, 0 to 1. offset: seconds after that. after, delay: see `Request`.
    """

    chain: list[int]
    num_tokens: int
    output_len: int
    at: float = 0.0
    offset: float = 0.0
    session: str = ""
    after: int = -1
    delay: float = 0.0


@dataclass(slots=True)
class Workload:
    """requests: in no particular order of time. span: seconds of offered load."""

    name: str
    requests: list[Request]
    span: float
    tree: PrefixTree = field(repr=False)


class Maker:
    """Draws lengths and pages."""

    def __init__(self, size: int, replicas: int, page_size: int, seed: int):
        self.size = size
        self.replicas = replicas
        self.page_size = page_size
        self.random = random.Random(seed)
        self.numpy = np.random.default_rng(seed)
        self.drafts: list[Draft] = []

    def pages(self, tokens: float) -> list[int]:
        """New pages, about so many tokens."""
        return self.numpy.integers(1, 2**63, max(1, round(tokens / self.page_size))).tolist()

    def length(self, median: float, spread: float = 0.6, most: float = 1 << 30) -> int:
        """A log-normal length; spread: standard deviation of its logarithm."""
        return int(min(most, max(8, self.random.lognormvariate(0, spread) * median)))

    def zipf(self, count: int) -> Callable[[], int]:
        """Draws ranks 0..count-1 by Zipf's law."""
        weights = np.cumsum(1 / np.arange(1, count + 1))
        weights /= weights[-1]
        return lambda: int(np.searchsorted(weights, self.random.random()))

    def ask(self, prefix: list[int], own: int, output_len: int, **more: object) -> int:
        """Draft a request: shared pages, then `own` tokens that nobody else has, then the answer. Returns its number."""
        num_tokens = len(prefix) * self.page_size + own
        total = (num_tokens + output_len - 1) // self.page_size
        chain = prefix + self.numpy.integers(1, 2**63, max(0, total - len(prefix))).tolist()
        self.drafts.append(Draft(chain, num_tokens, output_len, **more))  # type: ignore[arg-type]
        return len(self.drafts) - 1


def groups(make: Maker) -> None:
    """Shared prefix groups: twelve system prompts per replica, of 0.5 to 8 thousand tokens, by Zipf's law; short questions."""
    prefixes = [make.pages(make.length(2048, 0.7, 8192)) for _ in range(12 * make.replicas)]
    draw = make.zipf(len(prefixes))
    for _ in range(make.size):
        make.ask(prefixes[draw()], make.length(400), make.length(220, 0.7, 1500), at=make.random.random())


def chat(make: Maker) -> None:
    """Multi-turn chat: history is resent, some five turns, a quarter of the run apart; sessions began before the run or in it."""
    systems = [make.pages(768) for _ in range(3)]
    while len(make.drafts) < make.size:
        prefix = make.random.choice(systems)
        if make.random.random() < 0.3:
            prefix = prefix + make.pages(make.length(2500, 0.6, 8000))
        session, after, at = f"s{len(make.drafts)}", -1, make.random.uniform(-1, 1)
        for _ in range(1 + min(11, int(make.random.expovariate(1 / 4.5)))):
            own, answer = make.length(350, 0.8, 4000), make.length(110, 0.7, 800)
            if 0 <= at < 1:
                after = make.ask(prefix, own, answer, session=session, after=after, at=at, delay=0.2)
                prefix = make.drafts[after].chain
            else:  # before the run, or after it
                prefix = prefix + make.pages(own + answer)
            at += 0.1 + make.random.expovariate(1 / 0.15)


def rag(make: Maker) -> None:
    """Retrieval: an instruction, then three of 100 documents per replica by Zipf's law, the most popular first; a question."""
    lengths = [make.length(900, 0.4, 3000) for _ in range(100 * make.replicas)]
    # A document's pages hash differently after each other document.
    after: dict[tuple[int, ...], list[int]] = {(): make.pages(256)}
    draw = make.zipf(len(lengths))
    for _ in range(make.size):
        chosen = tuple(sorted({draw() for _ in range(3)}))
        prefix = after[()]
        for count in range(1, len(chosen) + 1):
            if chosen[:count] not in after:
                after[chosen[:count]] = make.pages(lengths[chosen[count - 1]])
            prefix = prefix + after[chosen[:count]]
        make.ask(prefix, make.length(60), make.length(100, 0.6, 600), at=make.random.random())


def agents(make: Maker) -> None:
    """Agents: a long tool prompt, a task, then steps that append tool results and now and then branch into parallel attempts."""
    tools = [make.pages(3000) for _ in range(4)]
    while len(make.drafts) < make.size:
        session = f"a{len(make.drafts)}"
        at = make.random.uniform(-0.4, 1)
        nodes = [(make.random.choice(tools) + make.pages(make.length(1200, 0.5, 5000)), -1)]
        for _ in range(make.random.randint(3, 6)):
            parents, nodes = nodes, []
            for chain, after in parents:
                for _ in range(make.random.choice((1, 1, 1, 2, 4)) if len(parents) < 6 else 1):
                    result, answer = make.length(500, 0.8, 4000), make.length(80, 0.6, 500)
                    if 0 <= at < 1:
                        asked = make.ask(chain, result, answer, after=after, delay=0.1, session=session, at=at)
                        nodes.append((make.drafts[asked].chain, asked))
                    else:  # before the run, or after it
                        nodes.append((chain + make.pages(result + answer), -1))
            at += 0.05 + make.random.expovariate(1 / 0.05)


def bursts(make: Maker) -> None:
    """Bursts: half of the requests are single, half come as jobs: a new document of thousands of tokens, asked 4 to 60 things at once."""
    while len(make.drafts) < make.size:
        job = min(60, 4 + int(make.random.expovariate(1 / 16)))
        document = make.pages(make.length(3000, 0.5, 12000))
        at = make.random.random()
        for _ in range(job):
            make.ask(document, make.length(80), make.length(180, 0.6, 900), at=at, offset=make.random.expovariate(1 / 0.1))
            make.ask([], make.length(1000, 0.8, 6000), make.length(220, 0.7, 1500), at=make.random.random())


WORKLOADS: dict[str, tuple[Callable[[Maker], None], float]] = {
    "groups": (groups, 2.8),
    "chat": (chat, 2.0),
    "rag": (rag, 1.45),
    "agents": (agents, 2.2),
    "bursts": (bursts, 2.2),
}
"""name -> (what is asked, default load)."""


def requests_for(replicas: int) -> int:
    """How many requests a run has. As many per replica whatever their number, so that an overload lasts as long."""
    return 160 * replicas


def make_workload(
    name: str, replicas: int, calibration: Calibration, seed: int = 0, size: int = 0, load: float = 0.0
) -> Workload:
    """A synthetic workload of (about) `size` requests. Same arguments, same requests."""
    function, default_load = WORKLOADS[name]
    make = Maker(size or requests_for(replicas), replicas, calibration.page_size, seed)
    function(make)
    order = make.drafts
    tree = PrefixTree()
    requests = finish_drafts(order, calibration, tree)
    work = sum(calibration.work_seconds(r.new_tokens, r.num_tokens, r.output_len) for r in requests)
    span = work / (replicas * (load or default_load) * (1 + LOW) / 2)
    for request, draft in zip(requests, order):
        request.arrival = span * warp(draft.at) + draft.offset
    return Workload(name, requests, span, tree)


def warp(share: float) -> float:
    """Where in a run (0..1) a share of its arrivals has come: arrivals per second rise linearly from LOW to 1 and fall again."""
    if share > 0.5:
        return 1 - warp(1 - share)
    # Cumulative arrivals until x <= 1/2: (LOW x + (1 - LOW) x^2) / ((1 + LOW) / 2), solved for x.
    a, b, c = 1 - LOW, LOW, -share * (1 + LOW) / 2
    return (-b + (b * b - 4 * a * c) ** 0.5) / (2 * a)


def finish_drafts(drafts: list[Draft], calibration: Calibration, tree: PrefixTree) -> list[Request]:
    """Requests with their paths. ValueError for one that fits no replica."""
    page_size = calibration.page_size
    requests = []
    for index, draft in enumerate(drafts):
        total = draft.num_tokens + draft.output_len
        if total > calibration.kv_tokens - page_size:
            raise ValueError(f"request {index} has {total} tokens, but a replica's KV pool holds {calibration.kv_tokens}")
        match = (draft.num_tokens - 1) // page_size
        new = tree.add(draft.chain[:match])
        tree.add(draft.chain, (draft.num_tokens // page_size,))
        requests.append(
            Request(
                index,
                draft.at,
                draft.num_tokens,
                draft.output_len,
                draft.chain[: draft.num_tokens // page_size],
                draft.session,
                draft.after,
                draft.delay,
                match_pages=match,
                new_tokens=draft.num_tokens - (match - new) * page_size,
            )
        )
    for request, draft in zip(requests, drafts):
        request.path = tree.path(draft.chain)
    return requests

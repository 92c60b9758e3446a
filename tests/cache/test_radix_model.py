"""Random sequences of everything that a scheduler does with pool, tree and event log, against a naive model.

The model is a dict: prefix (extra key, tokens) -> page. A small alphabet and small pages make shared prefixes and splits common.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raysgl.cache import EventLog, PagePool, RadixTree, page_hashes
from raysgl.messages import CacheCleared, KVEvents, PagesStored

P = 2
POOL = 30
pages = st.lists(st.sampled_from([(0, 0), (0, 1)]), max_size=7)
prompts = st.builds(lambda pages, tail: [token for page in pages for token in page] + tail, pages, st.sampled_from([[], [0]]))
keys = st.sampled_from(["", "", "", "k"])


def replay(state: set[int], batch: KVEvents) -> None:
    """What a reader of the events believes to be cached. Parents must be known when their children come."""
    for event in batch.events:
        if isinstance(event, CacheCleared):
            state.clear()
        elif isinstance(event, PagesStored):
            assert event.parent == 0 or event.parent in state
            assert not state & set(event.hashes), "stored twice"
            state |= set(event.hashes)
        else:
            assert state >= set(event.hashes), "removed what was not stored"
            state -= set(event.hashes)


class Cache(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.pool = PagePool(POOL)
        self.log = EventLog("r", 1)
        self.tree = RadixTree(P, self.log.append)
        self.model: dict[tuple[str, tuple[int, ...]], int] = {}
        self.hits: dict[tuple[str, tuple[int, ...]], int] = {}
        self.held = []  # (node, extra key, prefix tokens) that are locked
        self.seen: set[int] = set()
        self.sequence = 0

    def prefixes(self, key, tokens):
        return [(key, tuple(tokens[: i * P])) for i in range(1, len(tokens) // P + 1)]

    def cached(self, key, tokens):
        pages = []
        for prefix in self.prefixes(key, tokens):
            if prefix not in self.model:
                break
            pages.append(self.model[prefix])
        return pages

    def forget(self, pages):
        gone = set(pages)
        assert len(gone) == len(pages)
        locked = {prefix for _, key, tokens in self.held for prefix in self.prefixes(key, tokens)}
        for prefix in [prefix for prefix, page in self.model.items() if page in gone]:
            assert prefix not in locked, "a locked page was evicted"
            del self.model[prefix]
            self.hits.pop(prefix, None)
        self.pool.free(pages)

    @rule(key=keys, tokens=prompts, limit=st.sampled_from([None, None, 3, 6, 9]), lock=st.booleans())
    def match(self, key, tokens, limit, lock):
        match = self.tree.match(tokens, key, limit)
        assert match.pages == self.cached(key, tokens[: len(tokens) if limit is None else limit])
        assert match.num_tokens == len(match.pages) * P and match.node.num_pages == len(match.pages)
        if lock:
            self.tree.lock(match.node)
            self.held.append((match.node, key, tokens[: match.num_tokens]))
            self.tree.hit(match.node)
            self.hits.update((prefix, self.tree.period) for prefix in self.prefixes(key, tokens[: match.num_tokens]))

    @rule()
    def next_period(self):
        self.tree.period += 1

    @rule(key=keys, tokens=prompts, own=st.booleans(), given=st.booleans())
    def compute_and_insert(self, key, tokens, own, given):
        """As a sequence does: use the cached prefix (or, `own`, compute all again), insert, give back duplicates."""
        count = len(tokens) // P
        have = [] if own else self.tree.match(tokens, key).pages
        if count - len(have) > self.pool.available:
            return
        pages = have + self.pool.allocate(count - len(have))
        before = self.cached(key, tokens)
        hashes = page_hashes(tokens, P, key) if given else None
        insert = self.tree.insert(tokens, pages, key, hashes)
        assert insert.duplicates == [(i, pages[i], page) for i, page in enumerate(before) if pages[i] != page]
        assert insert.node.num_pages == count
        self.pool.free([mine for _, mine, _ in insert.duplicates])
        for prefix, page in zip(self.prefixes(key, tokens), pages, strict=False):
            self.model.setdefault(prefix, page)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), more=prompts)
    def continue_a_locked_prefix(self, which, more):
        """As a prefill chunk does: insert after the locked node, and move the lock on."""
        node, key, tokens = self.held.pop(which % len(self.held))
        count = len(more) // P
        if count <= self.pool.available:
            pages = self.pool.allocate(count)
            insert = self.tree.insert(more, pages, key, after=node)
            self.tree.lock(insert.node)
            self.pool.free([mine for _, mine, _ in insert.duplicates])
            kept = tokens + more[: count * P]
            self.held.append((insert.node, key, kept))
            for prefix, page in zip(self.prefixes(key, kept)[len(tokens) // P :], pages, strict=True):
                self.model.setdefault(prefix, page)
        self.tree.unlock(node)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def unlock(self, which):
        self.tree.unlock(self.held.pop(which % len(self.held))[0])

    @rule(count=st.integers(0, 12))
    def evict(self, count):
        most = min(count, self.tree.evictable_pages)
        freed = self.tree.evict(count)
        assert len(freed) == most
        self.forget(freed)

    @rule()
    def clear(self):
        self.forget(self.tree.clear())

    @rule()
    def drain_events(self):
        batch = self.log.drain()
        if batch is not None:
            assert batch.sequence == self.sequence
            self.sequence += 1
            replay(self.seen, batch)

    @rule(size=st.integers(1, 5))
    def lose_events_and_resync(self, size):
        for batch in self.log.snapshot(self.tree.stored(), max_pages=size):
            assert batch.sequence == self.sequence
            self.sequence += 1
            replay(self.seen, batch)

    @invariant()
    def consistent(self):
        self.tree.check()
        assert self.tree.total_pages == len(self.model)
        assert self.tree.hot_pages(2) == sum(period >= self.tree.period - 2 for period in self.hits.values())
        assert self.pool.available + len(self.model) == POOL
        assert len({p for _, key, tokens in self.held for p in self.prefixes(key, tokens)}) == self.tree.locked_pages

    def teardown(self):
        self.drain_events()
        assert self.seen == {page_hashes(list(tokens), P, key)[-1] for key, tokens in self.model}
        while self.held:
            self.tree.unlock(self.held.pop()[0])
        self.forget(self.tree.evict(POOL))
        assert self.tree.total_pages == 0 and self.pool.available == POOL
        self.tree.check()


Cache.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCache = Cache.TestCase

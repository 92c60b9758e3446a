"""The simulator's parts: the cache is the radix tree's, steps take the time they should, and nothing is lost."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysgl.bench.routing.cache import EdgeCache
from raysgl.bench.routing.calibration import Calibration, load_calibration
from raysgl.bench.routing.cluster import Cluster, Targets
from raysgl.bench.routing.policies import Policy
from raysgl.bench.routing.prefixes import PrefixTree
from raysgl.bench.routing.replica import Replica
from raysgl.bench.routing.workloads import Draft, Workload, finish_drafts
from raysgl.cache import EventLog, RadixTree, page_hashes
from raysgl.messages import KVEvents
from raysgl.routing import PrefixIndex

P = 2
CAL = Calibration(page_size=16)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_the_cache_is_the_radix_tree(seed):
    """Random prompts, uses, locks and evictions: after each the same pages are cached, and the events say so."""
    choose = random.Random(seed)
    prompts = [[choose.randint(0, 1) for _ in range(P * choose.randint(1, 7))] for _ in range(8)]
    chains = [page_hashes(prompt, P) for prompt in prompts]
    paths = PrefixTree()
    for chain in chains:
        paths.add(chain)
    log = EventLog("r", 1)
    cache, tree, index = EdgeCache(log.append), RadixTree(P), PrefixIndex()
    index.add("r", 1)
    held = []
    pages = 0
    for _ in range(60):
        act = choose.random()
        at = choose.randrange(len(prompts))
        path = paths.path(chains[at])
        if act < 0.5:
            have = tree.match(prompts[at]).pages
            assert cache.match(path, len(chains[at])) == len(have)
            new = list(range(pages + 1, pages + 1 + len(chains[at]) - len(have)))
            pages += len(new)
            node = tree.insert(prompts[at], have + new).node
            assert cache.insert(path, len(chains[at])) == len(new)
            if act < 0.2:
                tree.lock(node)
                cache.lock(path, len(chains[at]))
                held.append((node, path, len(chains[at])))
        elif act < 0.65 and held:
            node, path, count = held.pop(choose.randrange(len(held)))
            tree.unlock(node)
            cache.unlock(path, count)
        elif act < 0.8:
            assert cache.match(path, len(chains[at])) == len(tree.match(prompts[at]).pages)
        else:
            count = choose.randint(1, 6)
            assert cache.evict(count) == len(tree.evict(count))
        assert (cache.total_pages, cache.locked_pages) == (tree.total_pages, tree.locked_pages)
        cached = {page for edge, count in cache.held.items() for page in edge.hashes[:count]}
        assert cached == {page for run in tree.stored() for page in run.hashes}
        batch = log.drain()
        if batch is not None:
            index.apply(batch)
        assert index.hashes_of("r") == cached


class Fixed(Policy):
    """Everything to one replica, and a check of it whenever it changes."""

    wants_events = True

    def start(self, cluster):
        self.replica = cluster.replicas[0]
        self.seen: list[KVEvents] = []

    def choose(self, request, now):
        return 0

    def events(self, batch):
        self.seen.append(batch)

    def touched(self, replica):
        replica.check()


def workload(drafts, calibration=CAL, span=10.0) -> Workload:
    tree = PrefixTree()
    return Workload("made", finish_drafts(drafts, calibration, tree), span, tree)


def draft(tokens, output, at=0.0, start=0, **more) -> Draft:
    total = (tokens + output - 1) // 16
    return Draft([start * 10_000 + 1 + i for i in range(total)], tokens, output, at=at, **more)


def run(drafts, calibration=CAL) -> Cluster:
    cluster = Cluster(workload(drafts, calibration), 1, calibration, Fixed(1, 0), Targets())
    cluster.outcome = cluster.run()
    return cluster


def test_one_request_takes_its_prefill_and_its_steps():
    cluster = run([draft(1000, 101)])
    prefill = CAL.matrix_seconds(1000)
    steps = sum(CAL.matrix_seconds(1) + CAL.kv_seconds * (1000 + i) for i in range(100))
    assert cluster.first[0] == pytest.approx(prefill + 2 * CAL.transit_s)
    assert cluster.ended[0] - cluster.first[0] == pytest.approx(steps)
    replica = cluster.replicas[0]
    assert replica.steps == 101 and replica.generated_tokens == 101
    assert replica.cache.total_pages == (1000 + 100) // 16


def test_an_arrival_is_taken_in_at_the_next_step():
    cluster = run([draft(160, 200), draft(160, 2, at=0.5, start=1)])
    step = CAL.matrix_seconds(1) + CAL.kv_seconds * 300
    waited = cluster.first[1] - 0.5 - 2 * CAL.transit_s - CAL.matrix_seconds(161)
    assert 0 <= waited <= step + 1e-3


def test_long_prompts_come_in_chunks_and_decoding_goes_on():
    cluster = run([draft(160, 50), draft(10_000, 2, at=0.05, start=1)])
    chunks = -(-10_000 // (CAL.step_tokens - 1))
    assert cluster.first[1] - 0.05 == pytest.approx(10_000 / CAL.prefill_rate + chunks * 0.0015, rel=0.1)
    assert cluster.replicas[0].generated_tokens == 52


def test_a_shared_prefix_is_computed_once_even_when_both_come_at_once():
    both = [draft(1600, 2), draft(1600, 2)]
    cluster = run(both)
    assert cluster.replicas[0].prompt_tokens == 3200
    assert cluster.replicas[0].cached_tokens == 1600 - 16  # the last token is always computed, so its page is too


def test_followers_wait_for_the_one_before():
    cluster = run([draft(160, 20), draft(500, 3, at=0.0, after=0, delay=0.25)])
    assert cluster.arrived[1] == pytest.approx(cluster.ended[0] + 0.25)
    assert cluster.replicas[0].cached_tokens == 176  # prompt and answer of the first


def test_memory_runs_out_and_nothing_is_lost():
    """A pool for about six of sixty: requests are retracted, all finish with all their tokens, and the events tell what is cached."""
    small = msgspec.structs.replace(CAL, kv_tokens=3200, step_tokens=256, max_running=16)
    choose = random.Random(1)
    drafts = [draft(choose.randint(20, 400), choose.randint(1, 400), at=choose.random(), start=i) for i in range(60)]
    cluster = run(drafts, small)
    replica: Replica = cluster.replicas[0]
    assert replica.retractions > 0
    assert replica.generated_tokens == sum(d.output_len for d in drafts)
    assert all(0 <= first <= ended for first, ended in zip(cluster.first, cluster.ended))
    assert cluster.outcome.finished == 60 and not replica.running and not replica.waiting
    assert replica.cache.total_pages + replica.free_pages == small.pages
    index = PrefixIndex()
    index.add("r0", 1)
    for batch in cluster.policy.seen:
        index.apply(batch)
    assert index.hashes_of("r0") == {page for edge, count in replica.cache.held.items() for page in edge.hashes[:count]}


def test_what_can_never_fit_is_refused():
    with pytest.raises(ValueError, match="request 0 has 500001 tokens"):
        workload([Draft([], 500_000, 1)])


def test_measured_rates_are_what_the_model_does():
    cluster = run([draft(6000, 100, start=i, at=i * 0.4) for i in range(10)])
    load = cluster.replicas[0].load()
    assert load.prefill_rate == pytest.approx(CAL.prefill_rate, rel=0.15)
    assert load.queued_tokens == load.running == load.waiting == 0


def test_a_calibration_file(tmp_path):
    file = tmp_path / "h200.json"
    file.write_text('{"prefill_rate": 50000, "kv_tokens": 800000}')
    assert load_calibration(file) == Calibration(prefill_rate=50_000, kv_tokens=800_000)
    file.write_text('{"prefil_rate": 1}')
    with pytest.raises(ValueError, match="prefil_rate"):
        load_calibration(file)

"""The simulator as a whole: rules of the policies, what holds for any of them, traces, and the command."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from raysgl.bench.routing.calibration import Calibration
from raysgl.bench.routing.cluster import Cluster, Targets
from raysgl.bench.routing.oracle import ORACLES
from raysgl.bench.routing.policies import CacheAware, DynamoKV, LeastLoaded, PowerOfTwo, RoundRobin
from raysgl.bench.routing.prefixes import Edge
from raysgl.bench.routing.requests import Request
from raysgl.bench.routing.sweep import POLICIES, Settings, sweep
from raysgl.bench.routing.trace import load_trace
from raysgl.bench.routing.workloads import LOW, WORKLOADS, make_workload, warp
from raysgl.cache.hashing import page_hashes
from raysgl.cli import app
from raysgl.messages import KVEvents, PagesStored

CAL = Calibration(kv_tokens=100_000)


def request(index, *edges, tokens=0) -> Request:
    pages = sum(edge.size for edge in edges)
    hashes = [page for edge in edges for page in edge.hashes]
    return Request(index, 0.0, tokens or pages * 16 + 1, 10, hashes, path=list(edges), match_pages=pages)


def edges(*sizes) -> list[Edge]:
    result, depth = [], 0
    for number, size in enumerate(sizes):
        result.append(Edge(None, list(range(1000 * (number + 1), 1000 * (number + 1) + size)), depth))
        depth += size
    return result


class Row:
    """As much of a replica as policies are told."""

    def __init__(self, row):
        self.row = row


def test_round_robin_goes_round():
    policy = RoundRobin(3, 0)
    rows = [policy.choose(request(i), 0.0) for i in range(6)]
    assert sorted(rows[:3]) == [0, 1, 2] and rows[:3] == rows[3:]


def test_least_loaded_and_power_of_two():
    policy = LeastLoaded(4, 0)
    rows = [policy.choose(request(i), 0.0) for i in range(4)]
    assert sorted(rows) == [0, 1, 2, 3]
    policy.finished(request(0), Row(2), 0.0)
    assert policy.choose(request(5), 0.0) == 2
    two = PowerOfTwo(4, 0)
    two.in_flight[:] = [9, 9, 9, 0]
    rows = [two.choose(request(i), 0.0) for i in range(40)]
    assert two.in_flight.sum() == 67 and rows.count(3) > 10


def test_cache_aware_follows_its_three_rules():
    policy = CacheAware(4, 0)
    first, own, other = edges(10, 20, 80)
    home = policy.choose(request(0, first), 0.0)
    assert policy.choose(request(1, first, own), 0.0) == home  # a third matches: more than 0.3
    policy.in_flight[:] = [0 if row == (home + 1) % 4 else 5 for row in range(4)]
    assert policy.choose(request(2, first, other), 0.0) == (home + 1) % 4  # a ninth matches: to the least loaded
    assert policy.choose(request(3, first), 0.0) == (home + 1) % 4  # which used the prefix last
    policy.in_flight[:] = [100 if row == (home + 1) % 4 else 40 for row in range(4)]
    assert policy.choose(request(4, first), 0.0) == (home + 1) % 4  # out of balance by 60: not yet
    policy.in_flight[(home + 1) % 4] = 140
    assert policy.choose(request(5, first), 0.0) != (home + 1) % 4


def test_dynamo_adds_missing_blocks_and_active_blocks():
    policy = DynamoKV(2, 0)
    for row in range(2):
        policy._index.add(f"r{row}", 1)
    (first,) = edges(64)
    policy.events(KVEvents("r1", 1, 0, [PagesStored(0, first.hashes)]))
    again = request(0, first, tokens=64 * 16)
    assert policy.choose(again, 0.0) == 1  # cost 0 + 64 against 64 + 64
    assert policy._decode.tolist() == [0, 64] and policy._prefill.tolist() == [0, 0]
    assert policy.choose(request(1, *edges(1)[:0], tokens=320), 0.0) == 0  # 20 + 20 against 20 + 84
    assert policy._prefill.tolist() == [20, 0]
    policy.first_token(request(1), Row(0), 0.0)
    policy.finished(again, Row(1), 0.0)
    assert policy._prefill.tolist() == [0, 0] and policy._decode.tolist() == [20, 0]


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_request_ends_once_under_every_policy(name):
    workload = make_workload(name, 3, CAL, seed=1, size=90)
    for rules in POLICIES.values():
        for rule in rules:
            cluster = Cluster(workload, 3, CAL, rule(3, 0), Targets())
            outcome = cluster.run()
            count = len(workload.requests)
            assert outcome.finished == count and outcome.refused == 0
            assert all(a <= f <= e for a, f, e in zip(cluster.arrived, cluster.first, cluster.ended))
            assert sum(r.generated_tokens for r in cluster.replicas) == sum(r.output_len for r in workload.requests)
            for replica in cluster.replicas:
                replica.check()
                assert not replica.running and not replica.waiting and not replica.queued_tokens


def test_the_same_seed_gives_the_same_run():
    def chosen(seed, policy_seed):
        workload = make_workload("agents", 4, CAL, seed, size=120)
        return Cluster(workload, 4, CAL, POLICIES["raysgl"][0](4, policy_seed), Targets()).run()

    one, same, other = chosen(3, 5), chosen(3, 5), chosen(4, 5)
    assert one == same and one.chosen != other.chosen


def test_the_oracle_knows_every_cache():
    workload = make_workload("rag", 4, CAL, seed=2, size=300)
    checked = 0

    class Checked(ORACLES[1]):
        def choose(self, request, now):
            nonlocal checked
            path = [edge.index for edge in request.path if edge.depth < request.match_pages]
            coming = self._coming.copy()
            self._coming[:] = 0
            hits = self._hits(path, request.match_pages)
            self._coming[:] = coming
            true = [replica.cache.peek(request.path, request.match_pages) for replica in cluster.replicas]
            assert hits.tolist() == true
            checked += any(true)
            return super().choose(request, now)

    cluster = Cluster(workload, 4, CAL, Checked(4, 0), Targets())
    cluster.run()
    assert checked > 100 and not cluster.policy._sent and not cluster.policy._sent_tokens.any()


def test_a_shared_prefix_is_worth_more_to_raysgl_than_to_round_robin():
    workload = make_workload("groups", 4, CAL, seed=0, size=400)
    hit = {
        name: Cluster(workload, 4, CAL, POLICIES[name][0](4, 0), Targets()).run().hit_rate for name in ("raysgl", "round_robin")
    }
    assert hit["raysgl"] > hit["round_robin"] + 0.05


def test_load_rises_and_falls():
    assert [warp(0.0), warp(0.5), warp(1.0)] == pytest.approx([0, 0.5, 1])
    shares = np.histogram([warp(i / 10_000) for i in range(10_000)], bins=10)[0] / 1000
    assert shares[0] == pytest.approx(shares[9], rel=0.01) and shares[4] / shares[0] == pytest.approx(
        0.96 / (LOW + 0.04), rel=0.02
    )


def test_traces(tmp_path):
    file = tmp_path / "mine.jsonl"
    prompt = list(range(200))
    lines = [
        {"at": 5.0, "tokens": prompt, "output": 60, "session": "s"},
        {"arrival": 6.5, "prompt": [*prompt, *range(900, 1100)], "output_length": 3, "session": "s"},
        {"at": 6.0, "hashes": ["a", "b", 7], "num_tokens": 200, "output": 4},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    workload = load_trace(file, Calibration(page_size=64))
    first, middle, last = sorted(workload.requests, key=lambda r: r.arrival)
    assert [first.arrival, middle.arrival, last.arrival] == [0, 1, 1.5] and workload.span == 1.5
    assert first.hashes == page_hashes(prompt, 64) and middle.hashes[2] == 7 and len(middle.hashes) == 3
    assert first.path[-1] in last.path  # its answer is what the session's next prompt goes on with
    for bad, why in (
        ({"at": 1, "tokens": [1]}, "output"),
        ({"tokens": [1], "output": 2}, "arrival"),
        ({"at": 1, "output": 2}, "one of"),
        ({"at": 1, "hashes": [1], "num_tokens": 500, "output": 2}, "7 pages"),
        ({"at": 1, "tokens": [1], "outputs": 2}, "outputs"),
    ):
        file.write_text(json.dumps(lines[0]) + "\n" + json.dumps(bad))
        with pytest.raises(ValueError, match=f"mine.jsonl:2: .*{why}"):
            load_trace(file, CAL)


def test_a_sweep_has_every_cell_and_counts_up_to_all():
    seen = []
    settings = Settings(workloads=("rag",), replicas=(2, 3), policies=("round_robin", "oracle"), seeds=2, size=20, jobs=1)
    results = sweep(settings, lambda done, of, what: seen.append((done, of)))
    assert list(results) == ["rag"] and list(results["rag"]) == [2, 3]
    assert all(list(cells) == ["round_robin", "oracle"] for cells in results["rag"].values())
    assert all(len(cell.outcomes) == 2 for cells in results["rag"].values() for cell in cells.values())
    assert seen[-1][0] == seen[-1][1] and len(seen) == 9


def test_the_command(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(json.dumps({"at": i * 0.1, "tokens": [i % 3] * 400, "output": 20}) for i in range(40)))
    run = CliRunner().invoke(app, ["bench", "routing", "--workload", str(file), "--replicas", "2", "--jobs", "1", "--json"])
    assert run.exit_code == 0, run.output
    figures = json.loads(run.stdout)
    assert list(figures) == ["trace"] and set(figures["trace"]["2"]) == set(POLICIES)
    assert all(9 < goodput < 12 for goodput in figures["trace"]["2"].values())
    bad = CliRunner().invoke(app, ["bench", "routing", "--policies", "magic"])
    assert bad.exit_code == 1 and "no policy 'magic'" in bad.output


def test_the_index_command_reports_what_it_measured():
    arguments = ["bench", "index", "--pages", "6400", "--replicas", "4", "--copies", "2", "--seconds", "0.5", "--json"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    figures = json.loads(run.stdout)["figures"]
    assert figures["decisions_per_s"] > 0 and 0 < figures["batch_p50_ms"] <= figures["batch_p99_ms"] <= figures["batch_max_ms"]

"""Break a cluster under load in one way after the other; print what recovering took. Exits with 1 if anything was lost."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests.cluster.failures import FAILURES
from tests.cluster.load import Load
from tests.cluster.nodes import WORKERS, FakeCluster


@dataclass
class Row:
    """What a failure came to. Times in seconds."""

    name: str
    wait_s: float
    whole_s: float
    streams: int
    excused: int
    wrong: list[str]


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    arguments.add_argument("--streams", type=int, default=64, help="at a time")
    arguments.add_argument("--tokens", type=int, default=200, help="of each stream")
    arguments.add_argument("--tp", type=int, default=1, help="shards of a replica")
    arguments.add_argument("--only", nargs="+", choices=FAILURES, default=list(FAILURES))
    options = arguments.parse_args()
    with FakeCluster(Path(tempfile.mkdtemp(prefix="raysgl-cluster-")), options.tp) as cluster:
        cluster.deploy()
        rows = asyncio.run(run(cluster, options))
    print(
        f"{options.streams} streams of {options.tokens} tokens, 3 nodes with a replica each, {machine()}", table(rows), sep="\n"
    )
    for row in rows:
        for line in row.wrong[:12]:
            print(f"{row.name}: {line}", file=sys.stderr)
    return int(any(row.wrong for row in rows))


async def run(cluster: FakeCluster, options: argparse.Namespace) -> list[Row]:
    load = Load(cluster.url, options.streams, options.tokens)
    await load.learn()
    return [await one(cluster, load, name) for name in options.only]


async def one(cluster: FakeCluster, load: Load, name: str) -> Row:
    wrong, excused, whole_s = [], set(), math.inf
    async with load.running():
        at = time.monotonic()
        try:
            excused = await asyncio.to_thread(FAILURES[name], cluster, load)
            whole_s = await asyncio.to_thread(cluster.wait_whole) - at
        except AssertionError as error:
            wrong.append(str(error))
    wrong += load.failed(excused)
    try:
        await asyncio.to_thread(cluster.check_at_rest)
    except AssertionError as error:
        wrong.append(f"not at rest afterwards: {error}")
    row = Row(name, load.longest_wait(at), whole_s, len(load.done), sum(bool(call.error) for call in excused), wrong)
    print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    if len(cluster.workers) < WORKERS:
        cluster.workers.append(cluster.add_node())  # Ray wants the main thread
    return row


def machine() -> str:
    return f"{os.cpu_count()} cores, Ray {metadata.version('ray')}"


def table(rows: list[Row]) -> str:
    lines = [
        "| what | longest wait for a chunk, s | whole again, s | streams | of a dead ingress | wrong |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.wait_s:.2f} | {row.whole_s:.1f} | {row.streams} | {row.excused} | {len(row.wrong)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

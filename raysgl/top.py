"""`raysgl top`: what a running server's replicas do, what they find cached and how many there should be, from GET /v1/loads."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

COLUMNS = ("replica", "run", "wait", "queued", "KV", "cached", "hot", "hits", "decode/s", "prefill/s", "TTFT ms")
"""Short, so that all fit 80 characters. queued: uncached prompt tokens; KV: share that running sequences hold; hits: share of prompt
tokens found cached; rates in tokens."""
PREFIX_COLUMNS = ("hot prefix", "tokens", "replicas", "hits/s", "saved/s")
"""saved: tokens that were not computed again; of prefixes that begin alike, each counts its own."""
SHOWN_PREFIXES = 8
SHOWN_DECISIONS = 5
TEXT_LENGTH = 40
TIMEOUT_S = 5.0


class TopError(Exception):
    """The server cannot be asked. The message is a sentence."""


def loads(url: str, api_key: str | None = None) -> dict[str, Any]:
    """The body of /v1/loads. Raises `TopError`."""
    base = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    request = urllib.request.Request(f"{base}/v1/loads", headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise TopError(f"{base}/v1/loads: HTTP {error.code}{' (say --api-key)' if error.code == 401 else ''}") from None
    except (OSError, ValueError) as error:
        raise TopError(f"no raysgl server answers at {base}: {error}") from None


def view(body: dict[str, Any]) -> Group:
    """For each model a table of replicas, its hot prefixes and its last scaling decisions, where there are any."""
    parts: list[RenderableType] = []
    by_model, prefixes, decisions = (
        _by_model(body, "loads"),
        _by_model(body, "hot_prefixes"),
        _by_model(body, "scaling_decisions"),
    )
    for model in {**prefixes, **decisions}:  # one that is scaled to zero has no replica to tell of
        by_model.setdefault(model, [])
    for model, replicas in sorted(by_model.items()):
        count = f"{len(replicas)} {'replica' if len(replicas) == 1 else 'replicas'}"
        parts.append(_table(COLUMNS, map(_row, replicas), f"{model}: {count}"))
        if model in prefixes:
            parts.append(_table(PREFIX_COLUMNS, map(_prefix_row, prefixes[model][:SHOWN_PREFIXES])))
        parts += [_decision(made) for made in decisions.get(model, ())[:SHOWN_DECISIONS]]
    head = Text(f"{body['timestamp'][:19]}  {body['num_accelerators']} x {body['accelerator'] or 'nothing'}")
    return Group(head, *parts) if parts else Group(head, Text("no replicas"))


def _by_model(body: dict[str, Any], key: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for item in body.get(key, ()):
        found.setdefault(item["model"], []).append(item)
    return found


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]], title: str | None = None) -> Table:
    """The first column to the left, figures to the right."""
    table = Table(title=title and Text(title), title_justify="left", box=SIMPLE_HEAD, padding=0)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # as text: what users wrote is no markup
    return table


def _prefix_row(prefix: dict[str, Any]) -> tuple[str, ...]:
    text = " ".join(prefix.get("text", "").split())
    # What users wrote is not to steer the terminal either.
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return (
        (shown if len(shown) <= TEXT_LENGTH else shown[: TEXT_LENGTH - 3] + "...") or prefix["hash"],
        f"{prefix['tokens']:,}",
        str(prefix["replicas"]),
        f"{prefix['hits_per_second']:.2f}",
        f"{prefix['saved_tokens_per_second']:,.0f}",
    )


def _decision(made: dict[str, Any]) -> Text:
    change = f"{made['from']} -> {made['to']}" if made["from"] != made["to"] else f"stays {made['to']}"
    return Text(f"{made['timestamp'][11:19]}  {change}: {made['reason']}")


def _row(load: dict[str, Any]) -> tuple[str, ...]:
    memory, capacity = load["memory"], max(1, load["memory"]["token_capacity"])
    return (
        load["replica"].rpartition("#")[2],
        f"{load['num_running_reqs']}/{load['max_running_requests']}",
        str(load["num_waiting_reqs"]),
        f"{load['num_waiting_uncached_tokens']:,}",
        f"{load['token_usage']:.0%}",
        f"{memory['cached_tokens'] / capacity:.0%}",
        f"{memory['hot_tokens'] / capacity:.0%}",
        f"{load['cache_hit_rate']:.0%}",
        f"{load['gen_throughput']:,.0f}",
        f"{load['prefill_throughput']:,.0f}",
        f"{1000 * load['time_to_first_token']:,.0f}",
    )


def run(url: str, interval: float, once: bool, api_key: str | None) -> None:
    """Show until interrupted; once: print and return. Raises `TopError`, but not for an answer that is missing later on."""
    body = loads(url, api_key)
    if once:
        Console().print(view(body))
        return
    with Live(view(body), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            try:
                live.update(view(loads(url, api_key)), refresh=True)
            except TopError as error:
                live.update(Text(str(error)), refresh=True)

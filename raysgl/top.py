"""`raysgl top`: what each replica of a running server does, from GET /v1/loads, again and again."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

COLUMNS = ("replica", "run", "wait", "queued", "KV", "cached", "hot", "hits", "decode/s", "prefill/s", "TTFT ms")
"""Short, so that all fit 80 characters. queued: uncached prompt tokens; KV: share that running sequences hold; hits: share of prompt
tokens found cached; rates in tokens."""
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
    """One table for each model, replicas below each other."""
    tables = []
    by_model: dict[str, list[dict[str, Any]]] = {}
    for load in body["loads"]:
        by_model.setdefault(load["model"], []).append(load)
    for model, replicas in sorted(by_model.items()):
        table = Table(
            title=f"{model}: {len(replicas)} {'replica' if len(replicas) == 1 else 'replicas'}",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "replica" else "right")
        for load in replicas:
            table.add_row(*_row(load))
        tables.append(table)
    head = Text(f"{body['timestamp'][:19]}  {body['num_accelerators']} x {body['accelerator'] or 'nothing'}")
    return Group(head, *tables) if tables else Group(head, Text("no replicas"))


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

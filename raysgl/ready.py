"""What `raysgl serve` says once it serves: URL, models, and a line to paste."""

from __future__ import annotations

import json
from typing import Any

from raysgl.config import AppConfig
from raysgl.messages import ReplicaFacts
from raysgl.startup import described

ANYWHERE = ("0.0.0.0", "::", "")
QUESTION = "What is the capital of France?"
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("/v1/chat/completions", {"messages": [{"role": "user", "content": QUESTION}]}),
    "embed": ("/v1/embeddings", {"input": QUESTION}),
    "classify": ("/v1/classify", {"input": QUESTION}),
    "score": ("/v1/rerank", {"query": QUESTION, "documents": ["Paris is its capital.", "Bread and wine."]}),
}
"""By `ReplicaFacts.task`: a path, and a body for it."""


def phases(own: dict[str, float], serving: dict[str, list[ReplicaFacts]]) -> dict[str, float]:
    """The launcher's own seconds, with those of the replica that was ready last in place of what the launcher waited for it."""
    every = (facts for replicas in serving.values() for facts in replicas)
    last = max(every, key=lambda facts: facts.started_at + sum(facts.startup.values()))
    before = {name: took for name, took in own.items() if name != "deploy"}
    return {**before, "deploy": own["deploy"] - sum(last.startup.values()), **last.startup}


def block(config: AppConfig, serving: dict[str, list[ReplicaFacts]], own: dict[str, float]) -> str:
    """serving: of each model's replicas what they are. own: seconds of the launcher's phases until here."""
    url = f"{config.server.scheme}://{reachable(config.server.host)}:{config.server.port}"
    lines = [
        f"raysgl is ready after {sum(own.values()):.1f} s",
        f"  start    {described(phases(own, serving))}",
        f"  URL      {url}/v1",
    ]
    for model in config.models:
        replicas = serving[model.engine.name]
        facts = replicas[0]
        shards = f" x {facts.tp_size} shards" if facts.tp_size > 1 else ""
        count = f"{len(replicas)} replicas, each " if len(replicas) > 1 else ""
        lines += [f"  model    {model.engine.name}", f"  device   {count}{facts.device}{shards}"]
        if facts.max_total_tokens:
            lines.append(f"  KV       {facts.max_total_tokens:,} tokens{' a replica' if len(replicas) > 1 else ''}")
    first = config.models[0].engine.name
    path, fields = EXAMPLES[serving[first][0].task]
    body = json.dumps({"model": first, **fields})
    lines += ["", f"  curl {url}{path} -H 'Content-Type: application/json' -d '{body}'", ""]
    return "\n".join(lines)


def reachable(host: str) -> str:
    """An address at which this machine reaches what listens on `host`."""
    return "127.0.0.1" if host in ANYWHERE else host

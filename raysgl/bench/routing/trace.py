"""A workload of one's own: JSON lines, one request each.

    {"at": 0.31, "tokens": [1, 15, ...], "output": 120, "session": "a"}
    {"at": 0.42, "hashes": ["9f3a...", 123, ...], "num_tokens": 1000, "output": 80}

at: arrival in seconds (`arrival` is the same). tokens: the prompt's ids (`prompt`), or hashes: one for each page of the prompt (integers, or any
strings; a page has the calibration's page_size), with num_tokens if the prompt does not end with a page. output: tokens generated (`output_length`). session: optional.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest

from raysgl.bench.routing.calibration import Calibration
from raysgl.bench.routing.prefixes import PrefixTree
from raysgl.bench.routing.workloads import Draft, Workload, finish_drafts
from raysgl.cache.hashing import page_hashes


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """One request of a trace."""

    at: float | None = None
    arrival: float | None = None
    tokens: list[int] | None = None
    prompt: list[int] | None = None
    hashes: list[int | str] | None = None
    num_tokens: int | None = None
    output: int | None = None
    output_length: int | None = None
    session: str | int = ""


def load_trace(path: Path, calibration: Calibration) -> Workload:
    """Read a trace. ValueError names the line and what is wrong with it.

    What a request generated is cached under page hashes of its own, unless the session's next prompt goes on where it ended.
    """
    decoder = msgspec.json.Decoder(Line)
    drafts: list[Draft] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text.strip():
            try:
                drafts.append(_draft(decoder.decode(text), calibration.page_size))
            except (msgspec.DecodeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    if not drafts:
        raise ValueError(f"{path}: no requests")
    drafts.sort(key=lambda draft: draft.at)
    first = drafts[0].at
    for draft in drafts:
        draft.at -= first
    _continue_sessions(drafts, calibration.page_size)
    tree = PrefixTree()
    requests = finish_drafts(drafts, calibration, tree)
    return Workload(path.stem, requests, max(drafts[-1].at, 1e-3), tree)


def _draft(line: Line, page_size: int) -> Draft:
    at: Any = line.at if line.at is not None else line.arrival
    tokens = line.tokens if line.tokens is not None else line.prompt
    output = line.output if line.output is not None else line.output_length
    if at is None:
        raise ValueError("`at`, the arrival in seconds, is missing")
    if output is None or output < 1:
        raise ValueError("`output`, the number of generated tokens, is missing or less than 1")
    if (tokens is None) == (line.hashes is None):
        raise ValueError("one of `tokens` and `hashes` is needed")
    if tokens is not None:
        chain, count = page_hashes(tokens, page_size), len(tokens)
    else:
        chain = [h if isinstance(h, int) else xxh3_64_intdigest(h.encode()) for h in line.hashes or ()]
        count = line.num_tokens if line.num_tokens is not None else len(chain) * page_size
        chain = chain[: count // page_size]
        if len(chain) < count // page_size:
            raise ValueError(f"{count} tokens are {count // page_size} pages of {page_size}, but there are {len(chain)} hashes")
    if count < 1:
        raise ValueError("the prompt is empty")
    return Draft(chain, count, output, at=at, session=str(line.session))


def _continue_sessions(drafts: list[Draft], page_size: int) -> None:
    """Give every chain the pages of its answer."""
    made = np.random.default_rng(0)
    following: dict[str, list[int]] = {}
    for draft in reversed(drafts):
        prompt = draft.chain
        total = (draft.num_tokens + draft.output_len - 1) // page_size
        later = following.get(draft.session) if draft.session else None
        goes_on = later is not None and later[: len(prompt)] == prompt
        answer = later[len(prompt) : total] if later is not None and goes_on else []
        draft.chain = prompt + answer + made.integers(1, 2**63, max(0, total - len(prompt) - len(answer))).tolist()
        following[draft.session] = prompt

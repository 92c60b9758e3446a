"""How fast one replica is: a few numbers, and the step time that follows from them.

    step = overhead + matrix(prefill + decode tokens) + context tokens of the decoding rows * kv_seconds
    matrix(t) = (weights_s ** 3 + (t / prefill_rate) ** 3) ** (1/3)

Matrix products take the time to read the weights while there are few tokens and the time of the arithmetic when there are many; the
exponent 3 joins the two within 8 % of the H100's measured figures (docs/routing.md): 5.6 ms at 1 row, 8.0 at 256, 12.1 at 512.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults: Llama-3.1-8B in bf16 on one H100 80GB.

    prefill_rate: tokens/s of a large chunk. weights_s: seconds to read the weights once. kv_seconds: per cached token that a decode
    step reads. overhead_s: per step. step_tokens: most tokens a step computes. max_running: sequences at a time.
    max_queued: waiting requests before one is refused. kv_tokens: size of the KV pool.
    transit_s: ingress to engine, and tokens back. report_s: how often a busy replica tells the coordinator its KV events and load.
    page_size: tokens; engines use 16, but pages of 64 give about the same figures (docs/routing.md) for a quarter of the hashes.
    spread_s: from the coordinator to every mirror; notices of ingresses take it twice. ingresses: how many decide side by side.
    """

    prefill_rate: float = 41_500.0
    weights_s: float = 0.0056
    kv_seconds: float = 46e-9
    overhead_s: float = 0.001
    step_tokens: int = 2048
    max_running: int = 256
    max_queued: int = 1024
    kv_tokens: int = 460_000
    page_size: int = 64
    transit_s: float = 0.001
    report_s: float = 0.03
    spread_s: float = 0.02
    ingresses: int = 2

    @property
    def pages(self) -> int:
        """Pages of the KV pool."""
        return self.kv_tokens // self.page_size

    def matrix_seconds(self, tokens: int) -> float:
        """All of a step but attention over cached tokens."""
        return self.overhead_s + (self.weights_s**3 + (tokens / self.prefill_rate) ** 3) ** (1 / 3)

    def work_seconds(self, new_tokens: int, num_tokens: int, output_len: int, rows: int = 64) -> float:
        """A request's share of a replica's time, if its decode steps are shared by `rows` like it. For the offered load."""
        step = self.matrix_seconds(rows) / rows + (num_tokens + output_len / 2) * self.kv_seconds
        return new_tokens / self.prefill_rate + output_len * step


def load_calibration(path: Path | None) -> Calibration:
    """From a JSON object with any of the fields (the others keep their default). ValueError names what is wrong."""
    if path is None:
        return Calibration()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}") from None

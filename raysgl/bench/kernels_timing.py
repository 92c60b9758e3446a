"""How the kernel benchmark times and reports; the sizes it runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from raysgl.kernels.linear_table import BUCKETS

Call = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """The model, or one rank's part of it, and what is run. cold_bytes: rotating inputs are at least this large together.

    shared: the ranks' parts are summed and normalised between the products, so these have neither norm nor residual folded in.
    """

    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    intermediate: int = 14336
    vocab: int = 128256
    page_size: int = 16
    pool_pages: int = 140_000
    layers: int = 8
    cold_bytes: int = 256 << 20
    tokens: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    tuned: Sequence[int] = BUCKETS
    rows: Sequence[int] = (1, 64, 256, 512)
    decode: Sequence[tuple[int, int]] = tuple((b, c) for c in (256, 1024, 4096) for b in (1, 8, 32, 64, 128, 256, 512))
    prefill: Sequence[tuple[int, int, int]] = ((4, 0, 1024), (1, 0, 4096), (16, 2048, 128), (64, 1280, 256))
    cascade: Sequence[tuple[int, int, int, int]] = ((32, 8, 2048, 192), (1, 512, 1024, 256), (16, 4, 1024, 256))

    shared: bool = False

    def of_rank(self, ranks: int) -> Sizes:
        """What one of so many tensor-parallel ranks holds."""
        if ranks == 1:
            return self
        return replace(
            self,
            heads=self.heads // ranks,
            kv_heads=max(1, self.kv_heads // ranks),
            intermediate=self.intermediate // ranks,
            vocab=-(-self.vocab // ranks),
            shared=True,
        )

    @property
    def linears(self) -> dict[str, tuple[int, int, bool, bool, bool]]:
        """name -> (rows of the weight, inputs, norm before, SiLU-mul after, residual added)."""
        qkv = (self.heads + 2 * self.kv_heads) * self.dim
        return {
            "qkv": (qkv, self.hidden, not self.shared, False, False),
            "o": (self.hidden, self.heads * self.dim, False, False, not self.shared),
            "gate_up": (2 * self.intermediate, self.hidden, not self.shared, True, False),
            "down": (self.hidden, self.intermediate, False, False, not self.shared),
            "lm_head": (self.vocab, self.hidden, False, False, False),
        }


TINY = Sizes(
    64, 4, 2, 16, 96, 300, 16, 64, 2, 1, (1, 3), (1, 4), (2,), ((2, 40),), ((2, 16, 8),), ((2, 2, 32, 9),)
)  # fmt: skip


@dataclass
class Bench:
    sizes: Sizes
    device: torch.device
    tiny: bool
    figures: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0

    def random(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        out = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return out.normal_() if scale == 1.0 else out.normal_(std=scale)

    def copies(self, num_bytes: int) -> int:
        return max(1, min(64, -(-self.sizes.cold_bytes // max(1, num_bytes))))

    def time(self, calls: Sequence[Call]) -> float:
        """Microseconds a call: the median of graph replays that go round the calls."""
        for call in calls:
            call()
        if self.device.type != "cuda":
            start = time.perf_counter()
            calls[0]()
            return (time.perf_counter() - start) * 1e6
        torch.cuda.synchronize()
        rounds = 1 if self.tiny else max(1, 16 // len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for call in calls:
                    call()
        took = []
        for i in range(8):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if i >= 2:
                took.append(begin.elapsed_time(end) * 1e3 / (rounds * len(calls)))
        return statistics.median(took)

    def check(self, what: str, got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-2) -> None:
        error = float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-9))
        good = error < tolerance and bool(torch.isfinite(got).all())
        self.failed += not good
        if not good:
            print(f"WRONG {what}: relative error {error:.2e}")
        self.figures.append({"check": what, "error": error, "good": good})

    def report(self, what: str, times: dict[str, float], num_bytes: float = 0.0, flops: float = 0.0) -> None:
        """One line: microseconds of each candidate, and the rate of the fastest and of the first (ours)."""
        best = min(times, key=lambda name: times[name])
        line = " ".join(f"{name} {value:9.1f}{'*' if name == best else ' '}" for name, value in times.items())
        ours = next(iter(times.values()))
        rates = [f"{num_bytes / t / 1e6:.2f}" for t in (ours, times[best])] if num_bytes else []
        rates += [f"{flops / t / 1e6:.0f} TFLOP/s" for t in (ours,)] if flops else []
        print(f"{what:34s} {line}  {' / '.join(rates[:2])}{' TB/s' if num_bytes else ''}", flush=True)
        self.figures.append({"what": what, "us": times, "bytes": num_bytes, "flops": flops})

"""Limits that the config leaves open."""

from __future__ import annotations

import subprocess
import sys

from raysgl.config import EngineConfig
from raysgl.engine.defaults import resolve_defaults, usable_cores


def test_defaults_by_device():
    config = EngineConfig(model_path="m")
    cpu, cuda = resolve_defaults(config, "cpu", 2048), resolve_defaults(config, "cuda", 2048)
    assert (cpu.max_running, cpu.max_queued, cpu.step_tokens, cpu.context_length) == (64, 256, 512, 2048)
    assert (cuda.max_running, cuda.max_queued, cuda.step_tokens, cuda.context_length) == (256, 1024, 8192, 2048)
    assert cpu.cpu_threads == usable_cores()
    assert (cpu.largest_prefill, cuda.largest_prefill) == (512, 2048)


def test_what_is_set_stays():
    config = EngineConfig(
        model_path="m",
        max_running_requests=3,
        max_queued_requests=0,
        chunked_prefill_size=-1,
        context_length=100,
        cpu_threads=7,
        tp_size=1000,
    )
    limits = resolve_defaults(config, "cuda", 2048)
    assert (limits.max_running, limits.max_queued, limits.step_tokens, limits.context_length) == (3, 0, 0, 100)
    assert limits.cpu_threads == 7 and limits.largest_prefill == 100
    assert resolve_defaults(EngineConfig(model_path="m", tp_size=1000), "cpu", 8).cpu_threads == 1


def test_it_needs_no_torch():
    code = "import sys, raysgl.engine.defaults; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

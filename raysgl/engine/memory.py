"""How many KV pages a shard can hold, and what its memory is used for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from raysgl.config import EngineConfig
from raysgl.engine.defaults import EngineLimits
from raysgl.models import ModelError

GIB = 2**30
CPU_POOL_BYTES = 4 * GIB
CPU_POOL_SHARE = 0.25
"""By default the pool takes the smaller of the two: a laptop has other things to do."""
CPU_CEILING = 0.9
"""The share of what is available that max_total_tokens and mem_fraction_static may take."""
CUDA_RESERVE = 0.05
"""The share of a GPU that stays free: fragmentation, cuBLAS and NCCL workspaces, penalty tables."""
CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class MemoryReport:
    """Bytes on one shard. activations: the most that a step needs besides (measured on cuda, 0 on cpu: not measured). graphs: of the
    CUDA graphs made at start."""

    weights: int
    activations: int
    kv_cache: int
    kv_tokens: int
    graphs: int = 0

    def __str__(self) -> str:
        activations = f"activations {gib(self.activations)}, " if self.activations else ""
        activations += f"CUDA graphs {gib(self.graphs)}, " if self.graphs else ""
        return f"weights {gib(self.weights)}, {activations}KV cache {gib(self.kv_cache)} ({self.kv_tokens:,} tokens)"


@dataclass(frozen=True)
class Budget:
    """Bytes that the KV pool takes by default, and that it can take at most. where: whose memory, for messages."""

    default: int
    ceiling: int
    where: str


def gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


@contextmanager
def explaining(doing: str, cure: str, device: torch.device) -> Iterator[None]:
    """Running out of GPU memory in here raises a `ModelError` with what was found, and which settings change it."""
    try:
        yield
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
        raise ModelError(
            f"out of memory while {doing}: of {gib(total)} on {torch.cuda.get_device_name(device)} this shard holds {gib(own)}, "
            f"others hold {gib(max(0, total - free - own))}, and {gib(free)} are left; {cure}"
        ) from None


def weight_bytes(model: torch.nn.Module) -> int:
    """Of parameters and buffers; shared ones count once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def available_ram() -> int:
    """Bytes that this process can still take: of the machine, and of its container."""
    available = psutil.virtual_memory().available
    for limit_file, used_file in CGROUP_FILES:
        try:
            limit, used = Path(limit_file).read_text().strip(), Path(used_file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            available = min(available, max(0, int(limit) - int(used)))
    return available


def cpu_budget(config: EngineConfig, weights: int) -> Budget:
    """After the weights are loaded. The shards of a replica are taken to share one machine."""
    available = available_ram()
    ceiling = int(available * CPU_CEILING) // config.tp_size
    if config.mem_fraction_static is not None:
        default = int((available // config.tp_size + weights) * config.mem_fraction_static) - weights
    else:
        default = min(CPU_POOL_BYTES, int(available * CPU_POOL_SHARE)) // config.tp_size
    return Budget(min(default, ceiling), ceiling, "main memory")


def cuda_budget(config: EngineConfig, weights: int, activations: int, device: torch.device) -> Budget:
    """After the weights are loaded and a largest step has been measured."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    ceiling = free - activations - int(total * CUDA_RESERVE)
    default = ceiling
    if config.mem_fraction_static is not None:
        default = min(ceiling, int(total * config.mem_fraction_static) - weights)
    return Budget(default, ceiling, torch.cuda.get_device_name(device))


def pool_pages(config: EngineConfig, limits: EngineLimits, page_bytes: int, budget: Budget) -> int:
    """Pages of the pool, not counting the padding page. Raises `ModelError` saying which setting to change."""
    size = config.page_size
    ceiling = max(0, budget.ceiling // page_bytes - 1)
    if config.max_total_tokens is not None:
        pages = config.max_total_tokens // size
        if pages > ceiling:
            raise ModelError(
                f"max_total_tokens is {config.max_total_tokens}, which takes {gib(pages * page_bytes)} of KV cache, but "
                f"{gib(max(0, budget.ceiling))} of {budget.where} are left; set at most {ceiling * size}"
            )
        return pages
    pages = max(0, budget.default // page_bytes - 1)
    if pages < 2:
        if ceiling >= 2:
            cure = "raise mem_fraction_static, or set max_total_tokens"
        else:
            cure = "lower chunked_prefill_size or max_running_requests, raise tp_size, or choose a smaller model or dtype"
        raise ModelError(
            f"the weights leave {gib(max(0, budget.default))} of {budget.where} for the KV cache, which is too little; {cure}"
        )
    # More than all sequences at full length can ever use would be waste.
    return min(pages, limits.max_running * -(-limits.context_length // size))

"""The ranks that hold one replica's weights, and what they say to each other.

gloo on cpu, nccl on cuda. A group of one does nothing and costs nothing. One group per process: it is torch's default group.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from raysgl.distributed.peer_memory import PeerMemory


@dataclass
class TPGroup:
    """Rank `rank` of `size`. Collectives must be called by all ranks in the same order.

    peers: memory that all ranks see, where there is such (`raysgl.distributed.share`), for sums. winners: the same, for argmax.
    sent: a `raysgl.kernels.sent_sums.SentSums`, for large sums of two ranks that see each other's memory.
    """

    rank: int = 0
    size: int = 1
    peers: PeerMemory | None = None
    winners: PeerMemory | None = None
    sent: Any = None

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place (the tensor must be contiguous); returns it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, part_LV: torch.Tensor) -> torch.Tensor:
        """The ranks' equal parts side by side along the last dimension, on every rank: [L, v] each -> [L, size * v]."""
        if self.size == 1:
            return part_LV
        rows, columns = part_LV.shape
        parts = part_LV.new_empty(self.size * rows, columns)
        dist.all_gather_into_tensor(parts, part_LV.contiguous())
        return parts.view(self.size, rows, columns).transpose(0, 1).reshape(rows, self.size * columns)

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        """Overwrite the tensor with the one of rank `source`; returns it."""
        if self.size > 1:
            dist.broadcast(tensor, source)
        return tensor

    def agree(self, yes: bool, device: torch.device) -> bool:
        """Whether all ranks say yes."""
        if self.size == 1:
            return yes
        return bool(self.all_gather(torch.tensor([[int(yes)]], device=device)).all())

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group. The others' next collective fails."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def single() -> TPGroup:
    """The group of a replica that is not sharded."""
    return TPGroup()


def start(
    rank: int,
    size: int,
    device: torch.device,
    init_method: str | None = None,
    store: dist.Store | None = None,
    timeout_s: float = 600.0,
) -> TPGroup:
    """Join the group; returns when all ranks have. Give `init_method` ("tcp://host:port", rank 0 listens there) or a `store`.

    A collective that waits longer than `timeout_s` for another rank raises. Raises ValueError for a rank that cannot be.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank is {rank}, but must be from 0 to {size - 1}")
    if size == 1:
        return TPGroup()
    on_cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        init_method=None if store is not None else init_method,
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if on_cuda and device.index is not None else None,
    )
    return TPGroup(rank, size)

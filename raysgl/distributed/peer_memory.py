"""Device memory of every rank that all ranks of one host can read and write: CUDA IPC, over NVLink or PCIe.

Ranks see one GPU each (Ray hides the others); CUDA opens memory of a GPU that a process cannot see all the same.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass

import msgspec
import torch

from raysgl.distributed.tp import TPGroup

log = logging.getLogger(__name__)

HANDLE_BYTES = 1024
"""Room for what one rank says of its memory: torch's handle of a storage takes some 250."""


@dataclass
class PeerMemory:
    """`own`: this rank's bytes, zeros at first. `addresses`: int64 [size] on the device, where this process finds every rank's."""

    rank: int
    size: int
    own: torch.Tensor
    addresses: torch.Tensor
    opened: list[torch.UntypedStorage]
    """The others' memory stays open as long as this object lives."""


def share(tp: TPGroup, num_bytes: int, device: torch.device) -> PeerMemory | None:
    """So many bytes of every rank, seen by all. None, on all ranks, where that is impossible: another host, no peer access.

    Every rank must call it, with the same number.
    """
    own = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    _, handle, *rest = own.untyped_storage()._share_cuda_()
    said = _say((socket.gethostname(), handle, *rest), device)
    everyones = [_heard(row) for row in tp.all_gather(said).view(tp.size, HANDLE_BYTES).cpu()]
    opened, failure = [own.untyped_storage()] * tp.size, ""
    if any(host != everyones[0][0] for host, *_ in everyones):
        failure = "they are on different hosts"
    else:
        for rank, (_, *theirs) in enumerate(everyones):
            if rank != tp.rank:
                try:
                    opened[rank] = torch.UntypedStorage._new_shared_cuda(device.index or 0, *theirs)
                except RuntimeError as error:
                    failure = str(error).splitlines()[0]
    if not tp.agree(not failure, device):
        log.warning(
            "ranks cannot see each other's memory, so NCCL adds up all their sums: %s", failure or "another rank failed"
        )
        return None
    addresses = [storage.data_ptr() for storage in opened]
    return PeerMemory(tp.rank, tp.size, own, torch.tensor(addresses, dtype=torch.int64, device=device), opened)


def _say(what: tuple, device: torch.device) -> torch.Tensor:
    """[1, HANDLE_BYTES] uint8: msgpack, behind its length."""
    packed = msgspec.msgpack.encode(what)
    text = len(packed).to_bytes(4, "little") + packed
    if len(text) > HANDLE_BYTES:
        raise ValueError(f"a memory handle has {len(text)} bytes, more than {HANDLE_BYTES}")
    return torch.frombuffer(bytearray(text.ljust(HANDLE_BYTES, b"\0")), dtype=torch.uint8).view(1, -1).to(device)


def _heard(row: torch.Tensor) -> list:
    text = row.numpy().tobytes()
    return msgspec.msgpack.decode(text[4 : 4 + int.from_bytes(text[:4], "little")])

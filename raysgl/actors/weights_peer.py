"""Where a shard's weights come from: the disk, or the same rank of a live replica of its model.

A lending shard's chunks travel as Ray objects: shared memory on one node, Ray's own transfer between nodes. The death of the lender
shows at once, and the disk takes over.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from raysgl.config import EngineConfig
from raysgl.models import Checkpoint, ModelError, resolve
from raysgl.models.checkpoint import PeerLost, Progress
from raysgl.models.lending import Loan, Offer, identity, keep_small_files

log = logging.getLogger(__name__)

ANSWER_S = 10.0
CHUNK_S = 60.0
"""How long a chunk may take; a lender that answers no more is as good as dead."""


def find_checkpoint(config: EngineConfig, rank: int, coordinator: ActorHandle, progress: Progress) -> Checkpoint:
    """The model's files, or a loan of a replica's weights (`Checkpoint.peer`), as `weights_from` says. Raises `ModelError`."""

    def on_disk() -> Checkpoint:
        return resolve(config.model_path, config.revision, config.load_format, progress=progress)

    if config.weights_from == "disk" or config.load_format == "dummy":
        return on_disk()
    here = _here(config, progress)
    if config.weights_from == "auto" and here is not None:
        return here
    for replica in _replicas(config, coordinator):
        try:
            return _borrow(replica, config, rank, here, on_disk)
        except (RayError, TimeoutError, PeerLost) as problem:
            log.info("rank %d: a replica lends no weights: %s", rank, str(problem).splitlines()[0])
    return here or on_disk()


def _here(config: EngineConfig, progress: Progress) -> Checkpoint | None:
    """What the disk has, if it is all there and can be read. Downloads nothing."""
    try:
        found = resolve(config.model_path, config.revision, config.load_format, progress=progress, download=False)
    except (ModelError, OSError):
        return None
    return found if all(os.access(path, os.R_OK) for path in found.files) else None


def _replicas(config: EngineConfig, coordinator: ActorHandle) -> list[ActorHandle]:
    """Rank 0 of the model's live replicas, in any order."""
    try:
        found = _answer(coordinator.lenders.remote(config.name))
    except (RayError, TimeoutError) as problem:
        log.warning("the coordinator names no replicas: %s", problem)
        return []
    random.shuffle(found)
    return found


def _borrow(
    replica: ActorHandle, config: EngineConfig, rank: int, here: Checkpoint | None, on_disk: Callable[[], Checkpoint]
) -> Checkpoint:
    """Raises `PeerLost`, and what Ray raises, if this replica cannot lend."""
    shard = replica if rank == 0 else _answer(replica.rank.remote(rank))
    if shard is None or (packed := _answer(shard.weights_offer.remote())) is None:
        raise PeerLost("it has none")
    offer = msgspec.msgpack.decode(packed, type=Offer)
    if (offer.rank, offer.tp_size) != (rank, config.tp_size):
        raise PeerLost(f"it is rank {offer.rank} of {offer.tp_size}")
    if here is not None and identity(here) != offer.identity:
        raise PeerLost("its checkpoint is not the one on this disk")
    if here is None and offer.source != config.source:  # an update to another model, whose files are missing
        raise PeerLost(f"its model is {offer.source}")

    def fetch(tensor: int, start: int, length: int) -> np.ndarray:
        try:
            return shard.lend.remote(tensor, start, length, offer.identity).future().result(CHUNK_S)
        except (RayError, TimeoutError) as problem:
            raise PeerLost(f"the replica that lent them is gone ({type(problem).__name__})") from None

    loan = Loan(offer, "the replica that lends them", fetch, on_disk)
    if here is None:
        here = Checkpoint(keep_small_files(_answer(replica.small_files.remote())), "peer")
    log.info("rank %d: weights come from a live replica", rank)
    return replace(here, peer=loan)


def _answer(call: ray.ObjectRef) -> Any:
    return call.future().result(ANSWER_S)

"""Process groups and the collectives of tensor parallelism. Imports torch and nothing of raysgl; models use it."""

from raysgl.distributed.peer_memory import PeerMemory, share
from raysgl.distributed.tp import TPGroup, single, start

__all__ = ["PeerMemory", "TPGroup", "share", "single", "start"]

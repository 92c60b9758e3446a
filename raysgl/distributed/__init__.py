"""Process groups and the collectives of tensor parallelism. Imports torch and nothing of raysgl; models use it."""

from raysgl.distributed.tp import TPGroup, single, start

__all__ = ["TPGroup", "single", "start"]

"""Which linear layers of few tokens are faster in Triton than in cuBLAS, as measured on this kind of GPU.

A table is a file `linear_tables/<device name>.json` (`raysgl.kernels.measured`), written by `python -m raysgl.bench.kernels linears --tune --table FILE`:
"products" are the shapes where Triton won, [tokens, rows of the weight, inputs, SiLU-mul after it, kind, numbers of its config];
"dependent_launch": tensor-parallel ranks -> the most rows of a decode step whose kernels are launched with PDL
(`raysgl.kernels.triton.runtime`), where that was faster. Where there is no file, and for shapes that are not in it, cuBLAS does the work.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raysgl.kernels.fused import triton_kernels
from raysgl.kernels.measured import table_file

if TYPE_CHECKING:
    from raysgl.kernels.triton.linear import Config

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "linear_tables"
BUCKETS = (1, 4, 16, 32, 64)
"""Numbers of tokens that are measured; others use the next larger one's entry."""


@dataclass(frozen=True)
class Shape:
    """rows: of the weight, so twice the outputs with silu."""

    tokens: int
    rows: int
    inputs: int
    silu: bool


@cache
def _text(device: torch.device, dtype: torch.dtype) -> str:
    """This device's file; of nothing where nothing was measured."""
    if triton_kernels(device, dtype) is not None and (path := table_file(FOLDER, device)):
        return path.read_text()
    return '{"dependent_launch": {}, "products": []}'


@cache
def table(device: torch.device, dtype: torch.dtype) -> dict[Shape, Config]:
    """The measured winners on this device; empty where nothing was measured."""
    if found := parse(_text(device, dtype)):
        log.info("linear layers: %d shapes in Triton", len(found))
    return found


def dependent_rows(device: torch.device, dtype: torch.dtype, ranks: int) -> int:
    """The most rows of a decode step that is faster with dependent launch on so many ranks; 0: none is."""
    return json.loads(_text(device, dtype))["dependent_launch"].get(str(ranks), 0)


def parse(text: str) -> dict[Shape, Config]:
    """A table file's products."""
    if not (products := json.loads(text)["products"]):
        return {}
    from raysgl.kernels.triton.gemv import GemvConfig
    from raysgl.kernels.triton.skinny import SkinnyConfig

    kinds = {"gemv": GemvConfig, "skinny": SkinnyConfig}
    return {Shape(tokens, rows, inputs, silu): kinds[kind](*numbers) for tokens, rows, inputs, silu, kind, numbers in products}


def find(x_TI: torch.Tensor, weight_OI: torch.Tensor, silu: bool = False) -> Config | None:
    """How Triton should multiply these; None: cuBLAS."""
    if not x_TI.is_cuda or len(x_TI) > BUCKETS[-1] or not (winners := table(x_TI.device, x_TI.dtype)):
        return None
    tokens = next(bucket for bucket in BUCKETS if bucket >= len(x_TI))
    return winners.get(Shape(tokens, *weight_OI.shape, silu))

"""The ops that models call, by the names of their torch references."""

from raysgl.kernels.triton.activation import silu_mul
from raysgl.kernels.triton.argmax import argmax, argmax_of_ranks
from raysgl.kernels.triton.decode_rows import decode_rows
from raysgl.kernels.triton.draw import draw
from raysgl.kernels.triton.embedding import embed_part
from raysgl.kernels.triton.norm import add_rms_norm, rms_norm
from raysgl.kernels.triton.rotary import rotary_table, rotate_and_write
from raysgl.kernels.triton.token_mask import apply_token_mask

__all__ = [
    "add_rms_norm",
    "apply_token_mask",
    "argmax",
    "argmax_of_ranks",
    "decode_rows",
    "draw",
    "embed_part",
    "rms_norm",
    "rotary_table",
    "rotate_and_write",
    "silu_mul",
]

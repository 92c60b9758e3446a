"""The ops that models call, by the names of their torch references."""

from raysgl.kernels.triton.activation import silu_mul
from raysgl.kernels.triton.argmax import argmax
from raysgl.kernels.triton.draw import draw
from raysgl.kernels.triton.norm import add_rms_norm, rms_norm
from raysgl.kernels.triton.rotary import rotary_table, rotate_and_write
from raysgl.kernels.triton.token_mask import apply_token_mask

__all__ = [
    "add_rms_norm",
    "apply_token_mask",
    "argmax",
    "draw",
    "rms_norm",
    "rotary_table",
    "rotate_and_write",
    "silu_mul",
]

"""Flags in memory that ranks share: told and waited for in stream order, for what copy engines brought (`raysgl.kernels.sent_sums`).

Each is one program: those who wait leave room for those who tell.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from raysgl.kernels.triton.runtime import launch_options


@triton.jit(do_not_specialize=["index", "call"])
def _tell_kernel(addresses_ptr, index, call, OTHER: tl.constexpr):
    flags = tl.load(addresses_ptr + OTHER).to(tl.pointer_type(tl.int32))
    tl.atomic_xchg(flags + index, call, sem="release", scope="sys")


def tell(addresses: torch.Tensor, other: int, index: int, call: int) -> None:
    """After all that this stream has done: flag `index` at the begin of rank `other`'s memory becomes `call`."""
    _tell_kernel[(1,)](addresses, index, call, OTHER=other, num_warps=1)


@triton.jit(do_not_specialize=["index", "call"])
def _wait_kernel(flags_ptr, index, call, PDL: tl.constexpr):
    if PDL:
        gdc_wait()
    seen = tl.atomic_add(flags_ptr + index, 0, sem="acquire", scope="sys")
    while seen - call < 0:
        seen = tl.atomic_add(flags_ptr + index, 0, sem="acquire", scope="sys")


def wait(flags: torch.Tensor, index: int, call: int) -> None:
    """Hold the stream until flags[index] (int32, this rank's) is `call` or a later one."""
    _wait_kernel[(1,)](flags, index, call, num_warps=1, **launch_options())

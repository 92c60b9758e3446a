"""From the merged projection to attention's inputs in one launch: per-head RMSNorm, rotary embedding, cache write.

Reference: `raysgl.kernels.rotary`, `raysgl.kernels.norm` and index_copy_. Legend: `raysgl.kernels.batch`; M = N + 2 K heads of the
projection.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from raysgl.kernels.triton.runtime import launch_options

BLOCK_HEADS = 8
"""Heads per program: 1,024 elements at head dim 128, 8 bytes a thread and half."""


@triton.jit
def _rotary_table_kernel(
    positions_ptr, inv_freq_ptr, out_ptr, scale, H2: tl.constexpr, BLOCK_H2: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK_H2)
    inv_freq = tl.load(inv_freq_ptr + h, mask=h < H2, other=0.0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    angle = tl.load(positions_ptr + row).to(tl.float32) * inv_freq
    tl.store(out_ptr + row * 2 * H2 + h, tl.cos(angle) * scale, mask=h < H2)
    tl.store(out_ptr + row * 2 * H2 + H2 + h, tl.sin(angle) * scale, mask=h < H2)


def rotary_table(positions: torch.Tensor, inv_freq_H2: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """cos and sin side by side, float32 [positions, H]: of a range of positions once, or of a step's tokens once a step."""
    rows, half = len(positions), len(inv_freq_H2)
    table = torch.empty((rows, 2 * half), dtype=torch.float32, device=positions.device)
    if rows:
        block = triton.next_power_of_2(half)
        _rotary_table_kernel[(rows,)](
            positions, inv_freq_H2, table, scale, H2=half, BLOCK_H2=block, num_warps=1 if block <= 64 else 2, **launch_options()
        )
    return table


@triton.jit
def _rotate_and_write_kernel(
    qkv_ptr, q_ptr, keys_ptr, values_ptr, rotary_ptr, positions_ptr, slots_ptr, q_weight_ptr, k_weight_ptr,
    scales_ptr, stride_qkv, eps,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H2: tl.constexpr,
    HAS_POSITIONS: tl.constexpr, SCALED: tl.constexpr, QK_NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    h = tl.arange(0, BLOCK_H2)
    half: tl.constexpr = H // 2
    inside = (head[:, None] < N + 2 * K) & (h[None, :] < half)
    is_q = head[:, None] < N
    is_v = head[:, None] >= N + K
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    source = qkv_ptr + token * stride_qkv + head[:, None] * H + h[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    if QK_NORM:
        scale = tl.rsqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / H + eps)[:, None]
        q1 = tl.load(q_weight_ptr + h, mask=h < half, other=0.0).to(tl.float32)[None, :]
        q2 = tl.load(q_weight_ptr + half + h, mask=h < half, other=0.0).to(tl.float32)[None, :]
        k1 = tl.load(k_weight_ptr + h, mask=h < half, other=0.0).to(tl.float32)[None, :]
        k2 = tl.load(k_weight_ptr + half + h, mask=h < half, other=0.0).to(tl.float32)[None, :]
        first = tl.where(is_v, first, first * scale * tl.where(is_q, q1, k1))
        second = tl.where(is_v, second, second * scale * tl.where(is_q, q2, k2))
    row = tl.load(positions_ptr + token).to(tl.int64) if HAS_POSITIONS else token
    cos = tl.load(rotary_ptr + row * H + h, mask=h < half, other=0.0)[None, :]
    sin = tl.load(rotary_ptr + row * H + half + h, mask=h < half, other=0.0)[None, :]
    out1 = tl.where(is_v, first, first * cos - second * sin)
    out2 = tl.where(is_v, second, second * cos + first * sin)

    to_q = q_ptr + (token * N + head[:, None]) * H + h[None, :]
    tl.store(to_q, out1.to(q_ptr.dtype.element_ty), mask=inside & is_q)
    tl.store(to_q + half, out2.to(q_ptr.dtype.element_ty), mask=inside & is_q)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if SCALED:
        scale = tl.load(scales_ptr + (head - N), mask=(head >= N) & (head < N + 2 * K), other=1.0)[:, None]
        out1 = tl.clamp(out1 / scale, -448.0, 448.0)
        out2 = tl.clamp(out2 / scale, -448.0, 448.0)
    to_k = keys_ptr + (slot * K + (head[:, None] - N)) * H + h[None, :]
    is_k = inside & (head[:, None] >= N) & (head[:, None] < N + K)
    tl.store(to_k, out1.to(keys_ptr.dtype.element_ty), mask=is_k)
    tl.store(to_k + half, out2.to(keys_ptr.dtype.element_ty), mask=is_k)
    to_v = values_ptr + (slot * K + (head[:, None] - N - K)) * H + h[None, :]
    tl.store(to_v, out1.to(values_ptr.dtype.element_ty), mask=inside & is_v)
    tl.store(to_v + half, out2.to(values_ptr.dtype.element_ty), mask=inside & is_v)


def rotate_and_write(
    qkv_TMH: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    write_slots_T: torch.Tensor,
    rotary: torch.Tensor,
    positions_T: torch.Tensor | None = None,
    q_norm_H: torch.Tensor | None = None,
    k_norm_H: torch.Tensor | None = None,
    eps: float = 1e-6,
    scales_2K: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate queries and keys (pairs (i, i + H/2)), write keys and values to the cache, return q_TNH.

    qkv_TMH: [T, N + 2 K, H], or the same with the last two joined. keys, values: one layer's cache, contiguous,
    [..., K, H], indexed by write_slots_T over what comes before K. rotary: `rotary_table`, rows by position, or by
    token when positions_T is None. q_norm_H, k_norm_H: weights of a per-head RMSNorm before the rotation (Qwen3). scales_2K: what
    keys and values are divided by for a cache of 8 bits.
    """
    kv_heads, dim = keys.shape[-2:]
    tokens = qkv_TMH.shape[0]
    heads = qkv_TMH[0].numel() // dim - 2 * kv_heads
    if not (keys.is_contiguous() and values.is_contiguous() and rotary.is_contiguous() and qkv_TMH.stride(-1) == 1):
        raise ValueError("rotate_and_write needs contiguous caches and rows without gaps")
    q_TNH = torch.empty((tokens, heads, dim), dtype=qkv_TMH.dtype, device=qkv_TMH.device)
    if tokens:
        _rotate_and_write_kernel[(tokens, triton.cdiv(heads + 2 * kv_heads, BLOCK_HEADS))](
            qkv_TMH, q_TNH, keys, values, rotary, positions_T, write_slots_T, q_norm_H, k_norm_H,
            scales_2K, qkv_TMH.stride(0), eps,
            N=heads, K=kv_heads, H=dim, BLOCK_M=BLOCK_HEADS, BLOCK_H2=triton.next_power_of_2(dim // 2),
            HAS_POSITIONS=positions_T is not None, SCALED=scales_2K is not None, QK_NORM=q_norm_H is not None, num_warps=4, **launch_options(),
        )  # fmt: skip
    return q_TNH

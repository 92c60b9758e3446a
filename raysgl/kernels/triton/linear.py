"""Linear layers for few tokens, bound by reading the weights, with what stands before and after them done on the way.

The reference is `raysgl.kernels.norm.rms_norm`, torch's linear, `raysgl.kernels.activation.silu_mul` and the addition. Legend: T
tokens, I input and O output features.
"""

from __future__ import annotations

import torch

from raysgl.kernels.triton.gemv import GemvConfig, launch_gemv
from raysgl.kernels.triton.runtime import num_sms
from raysgl.kernels.triton.skinny import SkinnyConfig, launch_skinny

MAX_TOKENS = 64
"""More tokens are a matrix product for others."""

Config = GemvConfig | SkinnyConfig


def default_config(tokens: int, outputs: int, inputs: int, silu_mul: bool, device: torch.device) -> Config:
    """GEMV for one token. Else as many splits as give every SM three programs, but each at least 1,024 inputs."""
    if tokens == 1:
        return GemvConfig(4 if silu_mul else 8, 512, 4, 4)
    tiles = -(-outputs // 64)
    splits = max(1, min(-(-3 * num_sms(device) // tiles), inputs // 1024))
    return SkinnyConfig(64, 128, splits, 4, 3 if silu_mul else 4)


def skinny_linear(
    x_TI: torch.Tensor,
    weight_OI: torch.Tensor,
    *,
    norm_I: torch.Tensor | None = None,
    eps: float = 1e-5,
    bias_O: torch.Tensor | None = None,
    silu_mul: bool = False,
    residual_TO: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """x @ weight^T for T <= 64 in one launch; sums in float32.

    norm_I: x is first divided by sqrt(mean(x^2) + eps) and multiplied by this. bias_O: added. silu_mul: weight (and bias) hold gate
    and up one above the other, [2 O, I]; the result is silu(gate) * up, [T, O]. residual_TO: added last, and it receives the
    result, which is then also what is returned. config: a GemvConfig (one token) or a SkinnyConfig; None: `default_config`.
    """
    tokens, inputs = x_TI.shape
    outputs = weight_OI.shape[0] // 2 if silu_mul else weight_OI.shape[0]
    if not 1 <= tokens <= MAX_TOKENS:
        raise ValueError(f"skinny_linear takes 1 to {MAX_TOKENS} tokens, not {tokens}")
    if x_TI.stride(1) != 1 or not weight_OI.is_contiguous() or not (residual_TO is None or residual_TO.is_contiguous()):
        raise ValueError("skinny_linear needs contiguous weights and residuals, and rows without gaps")
    out_TO = torch.empty((tokens, outputs), dtype=x_TI.dtype, device=x_TI.device) if residual_TO is None else residual_TO
    config = config or default_config(tokens, outputs, inputs, silu_mul, x_TI.device)
    if isinstance(config, GemvConfig):
        if tokens != 1:
            raise ValueError("a GemvConfig is for one token")
        launch_gemv(x_TI, weight_OI, out_TO, norm_I, bias_O, residual_TO, silu_mul, eps, config)
    else:
        launch_skinny(x_TI, weight_OI, out_TO, norm_I, bias_O, residual_TO, silu_mul, eps, config)
    return out_TO

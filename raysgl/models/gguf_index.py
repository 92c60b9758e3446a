"""A GGUF file's tensors under their Hugging Face names, and how to read one. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from raysgl.models.hf_config import ModelError

TENSOR_INDEX = "gguf_tensors.json"
"""In the converted folder: opening the GGUF itself takes a second, since its reader walks the whole vocabulary."""

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NOT_WEIGHTS = {"rope_freqs.weight"}


def hf_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight. Raises `ModelError` for tensors of other models."""
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer and layer[2] in IN_LAYER:
        return f"model.layers.{layer[1]}.{IN_LAYER[layer[2]]}.{kind}"
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    raise ModelError(f"the GGUF file has a tensor {name!r}, which no model that raysgl supports has")


def index_tensors(reader: gguf.GGUFReader, num_heads: int, num_kv_heads: int, permuted: bool) -> dict[str, dict[str, Any]]:
    """Hugging Face name -> shape, GGML type, offset and length in the file, heads to undo llama.cpp's permutation of (or 0).

    For Llama files, llama.cpp stores the rows of q and k so that rotary pairs are neighbours.
    """
    index = {}
    for tensor in reader.tensors:
        if tensor.name in NOT_WEIGHTS:
            continue
        heads = {"attn_q": num_heads, "attn_k": num_kv_heads}.get(tensor.name.split(".")[-2], 0) if permuted else 0
        index[hf_name(tensor.name)] = {
            "shape": [int(size) for size in reversed(tensor.shape)],
            "type": int(tensor.tensor_type),
            "offset": int(tensor.data_offset),
            "bytes": int(tensor.n_bytes),
            "heads": heads,
        }
    return index


def read_tensor(path: Path, entry: dict[str, Any], start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows [start, stop) of a tensor of the index, dequantised to float32. With `heads`, both must fall between heads."""
    shape = entry["shape"]
    stop = shape[0] if stop is None else stop
    raw = np.memmap(path, np.uint8, "r", entry["offset"], (shape[0], entry["bytes"] // shape[0]))[start:stop]
    kind = gguf.GGMLQuantizationType(entry["type"])
    if kind == gguf.GGMLQuantizationType.F32:
        raw = raw.view(np.float32)
    elif kind == gguf.GGMLQuantizationType.F16:
        raw = raw.view(np.float16)
    try:
        rows = gguf.dequantize(raw, kind).astype(np.float32, copy=False).reshape(stop - start, *shape[1:])
    except NotImplementedError:
        raise ModelError(f"{path.name} has tensors quantised as {kind.name}, which cannot be read") from None
    if not entry["heads"]:
        return rows
    half = shape[0] // entry["heads"] // 2
    return rows.reshape(-1, half, 2, *shape[1:]).swapaxes(1, 2).reshape(rows.shape)

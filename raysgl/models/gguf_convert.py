"""Write what a GGUF file says besides its weights as a Hugging Face model folder.

    python -m raysgl.models.gguf_convert MODEL.gguf FOLDER

writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja and the tensor index.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf

from raysgl.models.gguf_cache import REFUSED
from raysgl.models.gguf_index import TENSOR_INDEX, index_tensors
from raysgl.models.gguf_tokenizer import write_tokenizer
from raysgl.models.hf_config import ModelError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""general.architecture -> config.json's. Mistral files say llama."""


def convert(path: Path, folder: Path) -> None:
    """Raises `ModelError` for files that raysgl cannot serve."""
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:
        raise ModelError(f"{path} is not a readable GGUF file: {error}") from error
    meta = Metadata(reader)
    if meta.get("split.count", 1) > 1:
        raise ModelError(f"{path.name} is one of {meta.get('split.count')} split files; merge them with gguf-split first")
    config = model_config(meta, reader)
    tensors = index_tensors(reader, config["num_attention_heads"], config["num_key_value_heads"], permuted=meta.arch == "llama")
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    )
    write_json(folder / TENSOR_INDEX, tensors)
    write_tokenizer(meta, path, folder)


class Metadata:
    """The file's key/value pairs."""

    def __init__(self, reader: gguf.GGUFReader):
        self._fields = reader.fields
        self.arch = self.get("general.architecture")
        if self.arch not in ARCHITECTURES:
            raise ModelError(f"the GGUF file's architecture is {self.arch!r}, but raysgl reads {', '.join(ARCHITECTURES)}")

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def model(self, key: str, default: Any = None) -> Any:
        """A key under the architecture's name. Without a default it must be there."""
        value = self.get(f"{self.arch}.{key}", default)
        if value is None and default is None:
            raise ModelError(f"the GGUF file has no {self.arch}.{key}")
        return value


def model_config(meta: Metadata, reader: gguf.GGUFReader) -> dict[str, Any]:
    """config.json, by the names of transformers."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = meta.model("attention.head_count")
    if isinstance(heads, list):
        raise ModelError("the GGUF file has layers with different head counts, which raysgl does not support")
    hidden = meta.model("embedding_length")
    window = meta.get(f"{meta.arch}.attention.sliding_window")
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM" if meta.arch == "llama" and window else ARCHITECTURES[meta.arch]],
        "model_type": "mistral" if meta.arch == "llama" and window else meta.arch,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": meta.model("feed_forward_length"),
        "num_hidden_layers": meta.model("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.model("attention.head_count_kv", heads),
        "head_dim": meta.model("attention.key_length", meta.model("rope.dimension_count", hidden // heads)),
        "hidden_act": "silu",
        "rms_norm_eps": meta.model("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": meta.model("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "rope_parameters": rope_parameters(meta, tensors),
        "dtype": "bfloat16",
    }
    if window:
        config["sliding_window"] = window
    eos = [meta.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    eos = list(dict.fromkeys(token for token in eos if token is not None))
    if eos:
        config["eos_token_id"] = eos[0] if len(eos) == 1 else eos
    bos = meta.get("tokenizer.ggml.bos_token_id")
    if bos is not None:
        config["bos_token_id"] = bos
    return config


def rope_parameters(meta: Metadata, tensors: dict[str, gguf.ReaderTensor]) -> dict[str, Any]:
    params: dict[str, Any] = {"rope_theta": meta.model("rope.freq_base", 10000.0), "rope_type": "default"}
    if "rope_freqs.weight" in tensors:  # llama3 scaling, stored as what it does to each frequency
        params |= {"rope_type": "factors", "factors": tensors["rope_freqs.weight"].data.tolist()}
    kind = meta.model("rope.scaling.type", "none")
    if kind != "none":
        params |= {"rope_type": kind, "factor": meta.model("rope.scaling.factor")}
        original = meta.get(f"{meta.arch}.rope.scaling.original_context_length")
        if original:
            params["original_max_position_embeddings"] = original
    return params


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except ModelError as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(REFUSED)

"""What an ingress must know of a model: tokenizer, chat template, sampling defaults. From the checkpoint on its own node, no torch."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from raysgl.api.chat_template import ChatTemplate
from raysgl.api.parsers.detect import Formats, detect_formats
from raysgl.api.served_model import ServedModel
from raysgl.api.tokenizer import Tokenizer
from raysgl.config import EngineConfig
from raysgl.models import ModelError, resolve
from raysgl.models.pooling import pooling_spec

log = logging.getLogger(__name__)

# generation_config.json's names -> `SamplingParams`'.
DEFAULTS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_new_tokens",
}


def load_served_model(config: EngineConfig) -> ServedModel:
    """Blocks (and downloads, the first time). Raises `ModelError`."""
    checkpoint = resolve(config.model_path, config.revision, config.load_format, weights=False)
    hf = checkpoint.config()
    pooling = pooling_spec(checkpoint.folder, config)
    folder = checkpoint.folder
    if config.tokenizer_path is not None:
        folder = resolve(config.tokenizer_path, weights=False).folder
    try:
        tokenizer = Tokenizer.load(folder)
        template = ChatTemplate.load(folder, tokenizer, config.chat_template)
    except (FileNotFoundError, ValueError) as error:
        raise ModelError(f"model {config.name}: {error}") from error
    return ServedModel(
        name=config.name,
        model_path=config.model_path,
        tokenizer=tokenizer,
        chat_template=template,
        context_length=config.context_length or (pooling.max_length if pooling else hf.max_position_embeddings),
        vocab_size=hf.vocab_size,
        eos_token_ids=hf.eos_token_ids,
        page_size=config.page_size,
        defaults=sampling_defaults(checkpoint.folder) if config.sampling_defaults == "model" else {},
        created=int(time.time()),
        config=config,
        pooling=pooling,
        **_parsers(config, template),
        **_names(checkpoint.folder),
    )


def _parsers(config: EngineConfig, template: ChatTemplate | None) -> dict[str, str | None]:
    """The formats of the model's answers. What `auto` became is logged."""
    detected = Formats(None, None) if template is None else detect_formats(template.tool_source)
    found: dict[str, str | None] = {}
    for setting, name in (("tool_call_parser", detected.tools), ("reasoning_parser", detected.reasoning)):
        wanted = getattr(config, setting)
        found[setting] = {"auto": name, "none": None}.get(wanted, wanted)
        if wanted == "auto":
            log.info("model %s: %s auto is %s, by the chat template", config.name, setting, name or "none")
    return found


def _names(folder: Path) -> dict[str, Any]:
    """What config.json calls the model."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {"model_type": found.get("model_type", ""), "architectures": tuple(found.get("architectures") or ())}


def sampling_defaults(folder: Path) -> dict[str, object]:
    """The sampling settings of generation_config.json, by `SamplingParams` name. A top_k of 0 there means all."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    defaults = {ours: found[theirs] for theirs, ours in DEFAULTS.items() if found.get(theirs) is not None}
    if defaults.get("top_k") == 0:
        defaults["top_k"] = -1
    return defaults

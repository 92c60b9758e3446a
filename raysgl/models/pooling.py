"""What a model that answers with numbers makes of a text: a vector, or a score for each label. No torch.

Where a checkpoint comes from sentence-transformers, its own files say how (modules.json, 1_Pooling/config.json,
sentence_bert_config.json, config_sentence_transformers.json); else its architecture does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raysgl.config import EngineConfig
from raysgl.models import hf_config
from raysgl.models.hf_config import ModelError
from raysgl.models.registry import CAUSAL, ENCODERS

Pooling = Literal["last", "mean", "cls"]
Activation = Literal["softmax", "sigmoid", "identity"]

MODES: dict[str, Pooling] = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
"""sentence-transformers' names (after pooling_mode_); since its version 5.4 also cls, mean, lasttoken alone."""
CLASSIFIES = "ForSequenceClassification"


@dataclass(frozen=True)
class PoolingSpec:
    """task: embed (a vector) or classify (a number for each of `labels`).

    pooling: which token's hidden state stands for the text, or their mean. normalize: vectors get length 1. size: numbers of a
    result. max_length: tokens of a text that the model was made for. activation: what makes probabilities (or a score) of a
    classifier's numbers. pairs: it was trained on two texts at a time, so that its score says how they fit.
    dimensions: smaller sizes that its vectors may be cut to (Matryoshka; Kusupati et al. 2022); None: any; empty: none.
    head: the architecture that the checkpoint names.
    """

    task: Literal["embed", "classify"]
    pooling: Pooling
    normalize: bool
    size: int
    max_length: int
    head: str
    activation: Activation = "identity"
    labels: tuple[str, ...] = ()
    pairs: bool = False
    dimensions: tuple[int, ...] | None = ()

    @property
    def kind(self) -> Literal["embed", "classify", "score"]:
        """score: a classifier that says how two texts fit."""
        return "score" if self.pairs else self.task


def pooling_spec(folder: Path, engine: EngineConfig) -> PoolingSpec | None:
    """None: the model generates text. Raises `ModelError` where config and checkpoint contradict each other, and for what raysgl
    cannot do."""
    config = _read(folder / "config.json")
    shape = hf_config.read(folder)
    head = next((name for name in config.get("architectures") or [] if hf_config.supported(name)), shape.architecture)
    modules = _modules(folder)
    generates = head.endswith(CAUSAL) and not (modules if engine.is_embedding is None else engine.is_embedding)
    if generates:
        _refuse_settings(engine, head)
        return None
    if engine.is_embedding is False:
        raise ModelError(f"is_embedding is false, but {head} cannot generate text")
    if engine.tp_size > 1:
        raise ModelError(f"tp_size is {engine.tp_size}, but must be 1 for {head}; raise num_replicas instead")
    longest = min(shape.max_position_embeddings, _read(folder / "sentence_bert_config.json").get("max_seq_length") or 2**62)
    if head.endswith(CLASSIFIES):
        if engine.pooling != "auto":
            raise ModelError(f"pooling is {engine.pooling!r}, but {head} has its own way; leave it at auto")
        return _classifier(config, head, longest)
    pooling = engine.pooling if engine.pooling != "auto" else _pooling(folder, modules, head)
    return PoolingSpec(
        task="embed",
        pooling=pooling,
        normalize="Normalize" in modules if modules else True,
        size=shape.hidden_size,
        max_length=longest,
        head=head,
        dimensions=_dimensions(config, engine, shape.hidden_size),
    )


def _refuse_settings(engine: EngineConfig, head: str) -> None:
    """Those that would have no effect on a model that generates."""
    for name, nothing in (("pooling", "auto"), ("matryoshka_dimensions", None), ("allow_auto_truncate", False)):
        if (value := getattr(engine, name)) != nothing:
            raise ModelError(f"{name} is {value!r}, but {head} generates text; set is_embedding to true")


def _classifier(config: dict[str, Any], head: str, longest: int) -> PoolingSpec:
    names = config.get("id2label") or {}
    count = len(names) or config.get("num_labels") or 2
    labels = tuple(str(names.get(str(i), names.get(i, f"LABEL_{i}"))) for i in range(count))
    own = str(
        (config.get("sentence_transformers") or {}).get("activation_fn") or config.get("sbert_ce_default_activation_function")
    )
    kind: Activation
    if own.endswith("Identity") or config.get("problem_type") == "regression":
        kind = "identity"
    elif count == 1 or own.endswith("Sigmoid") or config.get("problem_type") == "multi_label_classification":
        kind = "sigmoid"
    else:
        kind = "softmax"
    return PoolingSpec(
        task="classify",
        pooling="cls" if head in ENCODERS else "last",
        normalize=False,
        size=count,
        max_length=longest,
        head=head,
        activation=kind,
        labels=labels,
        pairs=count == 1,
    )


def _modules(folder: Path) -> list[str]:
    """The kinds of sentence-transformers' modules, in order; empty without them."""
    found = _read(folder / "modules.json")
    return [str(module.get("type", "")).rpartition(".")[2] for module in found] if isinstance(found, list) else []


def _pooling(folder: Path, modules: list[str], head: str) -> Pooling:
    if not modules:
        return "cls" if head in ENCODERS else "last"
    others = [kind for kind in modules if kind not in ("Transformer", "Pooling", "Normalize")]
    if others:
        raise ModelError(f"the model's modules.json has {', '.join(others)}, which raysgl does not support")
    if "Pooling" not in modules:
        raise ModelError("the model's modules.json has no Pooling, so it makes no vector of a text")
    place = next(module["path"] for module in _read(folder / "modules.json") if module["type"].endswith("Pooling"))
    config = _read(folder / place / "config.json")
    named = config.get("pooling_mode")
    modes = (
        [named]
        if isinstance(named, str)
        else [
            name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on is True
        ]
    )
    known: dict[str, Pooling] = MODES | {"cls": "cls", "mean": "mean"}
    if len(modes) != 1 or modes[0] not in known:
        raise ModelError(
            f"the model's {place}/config.json pools by {' and '.join(modes) or 'nothing'}; set pooling to last, mean or cls"
        )
    return known[modes[0]]


def _dimensions(config: dict[str, Any], engine: EngineConfig, size: int) -> tuple[int, ...] | None:
    """See `PoolingSpec.dimensions`."""
    listed = engine.matryoshka_dimensions or config.get("matryoshka_dimensions")
    if listed is None:
        return None if config.get("is_matryoshka") else ()
    if wrong := [n for n in listed if not 0 < n <= size]:
        raise ModelError(f"matryoshka_dimensions has {wrong[0]}, but must have numbers from 1 to the model's {size}")
    return tuple(sorted(listed))


def _read(path: Path) -> Any:
    """A JSON file's content; an empty object where there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None

"""What a replica's rank 0 compiles constraints with: the model's tokenizer, as grammars see it."""

from __future__ import annotations

from raysgl.api.tokenizer import Kind, Tokenizer
from raysgl.config import EngineConfig
from raysgl.grammar.compiler import GrammarCompiler
from raysgl.grammar.vocabulary import Vocabulary
from raysgl.models import Checkpoint, resolve


def make_grammars(config: EngineConfig, checkpoint: Checkpoint) -> GrammarCompiler | None:
    """None where `grammar_backend` is none. Gets ready in the background."""
    if config.grammar_backend == "none":
        return None
    folder = checkpoint.folder
    if config.tokenizer_path is not None:
        folder = resolve(config.tokenizer_path, weights=False).folder
    hf = checkpoint.config()
    grammars = GrammarCompiler(
        vocabulary_of(Tokenizer.load(folder), hf.vocab_size, hf.eos_token_ids),
        config.grammar_backend,
        config.grammar_compile_timeout_s,
        config.grammar_cache_entries,
        config.grammar_cache_bytes,
    )
    grammars.warm_up()
    return grammars


def vocabulary_of(tokenizer: Tokenizer, size: int, eos_token_ids: tuple[int, ...]) -> Vocabulary:
    """For a model with `size` logits. A model that knows no EOS gets one that grammars alone know of: its first special token."""
    eos = list(eos_token_ids) or [min(tokenizer.special_ids, default=0) if tokenizer.eos_id is None else tokenizer.eos_id]
    tokens = [tokenizer.token_bytes(token) for token in range(min(tokenizer.vocab_size, size))]
    special = sorted(token for token in tokenizer.special_ids if token < size)
    return Vocabulary(size, tokens, special, eos, "" if tokenizer.kind is Kind.OTHER else tokenizer.to_json())

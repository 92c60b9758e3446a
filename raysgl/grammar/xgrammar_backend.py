"""Structural tags and EBNF that llguidance does not read (and, where `grammar_backend` says so, everything) by xgrammar.

A grammar compiled elsewhere travels as bytes: for a large schema compiling takes seconds, reading it a few milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xgrammar

from raysgl.grammar.interface import GrammarError
from raysgl.grammar.structural_tags import new_form
from raysgl.grammar.vocabulary import Vocabulary
from raysgl.sampling.constraint import Constraint

IGNORED = frozenset(
    {"$dynamicRef", "$recursiveRef", "additionalItems", "contains", "contentEncoding", "contentMediaType", "dependencies"}
    | {"dependentRequired", "dependentSchemas", "else", "if", "maxContains", "minContains", "multipleOf", "not", "oneOf"}
    | {"then", "unevaluatedItems", "uniqueItems"}
)
"""Keywords that xgrammar leaves out, or follows in part."""

HARMLESS = frozenset({"$defs", "$id", "$schema", "default", "definitions", "description", "examples", "title", "type"})
"""Keywords that may stand beside allOf, anyOf and $ref, of which it follows only one at a time."""


class XGrammar:
    """`Grammars.fill` and compiling, for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, threads: int = 1):
        # Special tokens are text for structural tags, whose beginnings and ends they often are, and nothing else.
        names = vocabulary.tokens + [b""] * (vocabulary.size - len(vocabulary.tokens))
        texts = list(names)
        for token in vocabulary.special:
            texts[token] = b""
        self._tagged, self._plain = _Compiler(names, vocabulary, threads), _Compiler(texts, vocabulary, threads)
        self._batch = xgrammar.BatchGrammarMatcher(threads)
        self._num_words = -(-vocabulary.size // 32)
        self._eos = vocabulary.eos

    def compile(self, constraint: Constraint) -> bytes:
        """GrammarError. `load` takes the bytes."""
        compiler = self._compiler_of(constraint)
        try:
            return compiler.compile(constraint).serialize_json().encode()
        except GrammarError:
            raise
        except Exception as error:  # noqa: BLE001 (xgrammar raises whatever its C++ threw)
            raise GrammarError(_reason(error)) from None

    def load(self, constraint: Constraint, data: bytes) -> XGrammarGrammar:
        """The grammar, in this process."""
        info = self._compiler_of(constraint).info
        return XGrammarGrammar(self, xgrammar.CompiledGrammar.deserialize_json(data.decode(), info))

    def fill(self, matchers: Sequence[XGrammarPosition], bits_RW: np.ndarray) -> None:
        self._batch.batch_fill_next_token_bitmask([position.matcher for position in matchers], bits_RW)

    def only_ends(self, matcher: xgrammar.GrammarMatcher) -> bool:
        """Whether nothing but EOS may follow."""
        bits_1W = np.full((1, self._num_words), -1, np.int32)
        if not matcher.fill_next_token_bitmask(bits_1W):
            return False
        for token in self._eos:
            bits_1W.view(np.uint32)[0, token >> 5] &= ~np.uint32(1 << (token & 31))
        return not bits_1W.any()

    def _compiler_of(self, constraint: Constraint) -> _Compiler:
        return self._tagged if constraint.kind == "structural_tag" else self._plain


class _Compiler:
    def __init__(self, tokens: list[bytes], vocabulary: Vocabulary, threads: int):
        self.info = xgrammar.TokenizerInfo(
            tokens, xgrammar.VocabType.RAW, vocab_size=vocabulary.size, stop_token_ids=vocabulary.eos, add_prefix_space=False
        )
        self._compiler = xgrammar.GrammarCompiler(self.info, max_threads=threads, cache_enabled=False)

    def compile(self, constraint: Constraint) -> xgrammar.CompiledGrammar:
        text = constraint.text
        if constraint.kind == "structural_tag":
            tag = new_form(json.loads(text))
            _refuse_ignored_within(tag)
            return self._compiler.compile_structural_tag(json.dumps(tag))
        if constraint.kind == "regex":
            return self._compiler.compile_regex(text)
        if constraint.kind == "ebnf":
            return self._compiler.compile_grammar(text) if "::=" in text else self._compiler.compile_lark(text)
        _refuse_ignored(json.loads(text))
        return self._compiler.compile_json_schema(text, strict_mode=False)


class XGrammarGrammar:
    """See `interface.Grammar`."""

    def __init__(self, backend: XGrammar, compiled: xgrammar.CompiledGrammar):
        self._backend, self._compiled = backend, compiled
        self.num_bytes = compiled.memory_size_bytes

    def matcher(self) -> XGrammarPosition:
        return XGrammarPosition(self._backend, xgrammar.GrammarMatcher(self._compiled))


class XGrammarPosition:
    """See `interface.Matcher`."""

    def __init__(self, backend: XGrammar, matcher: xgrammar.GrammarMatcher):
        self.matcher = matcher
        self._backend = backend

    def accept(self, token: int) -> bool:
        return self.matcher.accept_token(token)

    def ended(self) -> bool:
        return self.matcher.is_terminated() or (self.matcher.is_completed() and self._backend.only_ends(self.matcher))

    def error(self) -> str | None:
        return None


def _refuse_ignored_within(tag: Any) -> None:
    """The schemas of a structural tag."""
    for inner in tag if isinstance(tag, list) else tag.values() if isinstance(tag, dict) else ():
        _refuse_ignored_within(inner)
    if isinstance(tag, dict) and "json_schema" in tag:
        _refuse_ignored(tag["json_schema"])


def _refuse_ignored(schema: Any) -> None:
    """Only where keywords stand: names of properties and values of enums are anyone's."""
    if not isinstance(schema, dict):
        return
    limits = schema.keys() - HARMLESS
    if len(schema.get("allOf", ())) > 1 or ({"allOf", "anyOf", "$ref"} & limits and len(limits) > 1):
        raise GrammarError(f"{', '.join(sorted(limits))} together are not supported")
    if "pattern" in schema and {"minLength", "maxLength"} & limits:
        raise GrammarError("pattern and a length together are not supported")
    for key, value in schema.items():
        if key in IGNORED:
            raise GrammarError(f"the keyword {key} is not supported")
        if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
            for inner in value.values():
                _refuse_ignored(inner)
        elif key in ("anyOf", "allOf", "prefixItems") and isinstance(value, list):
            for inner in value:
                _refuse_ignored(inner)
        elif key not in ("enum", "const", "default", "examples"):
            _refuse_ignored(value)


def _reason(error: Exception) -> str:
    """The last line of what was thrown, without where."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].split("Check failed: ")[-1][:1000]

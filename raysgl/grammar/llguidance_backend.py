"""JSON schemas, regular expressions and EBNF by llguidance.

Chosen over xgrammar for these, measured on one core with 128256 tokens: a schema with 30 string properties compiles in 1.5 ms
instead of 1200, its masks take 25 us instead of 38 to 80, and `((a{1,10}){1,10})...` ends with an error after 20 ms instead of masks
of seconds. It refuses the keywords of JSON Schema that it cannot follow, where xgrammar leaves them out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper, regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark
from llguidance.numpy import fill_next_token_bitmask_par

from raysgl.grammar.interface import GrammarError
from raysgl.grammar.schema_rewrite import rewritten
from raysgl.grammar.structural_tags import as_lark
from raysgl.grammar.vocabulary import Vocabulary
from raysgl.sampling.constraint import Constraint

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between the parts of a JSON text. Bounded: a small model likes to go on with line breaks for ever."""
MIN_PARALLEL = 4
"""Masks that are worth waking other threads for."""


class LLGuidance:
    """`Grammars.fill` and compiling, for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, threads: int = 1):
        self._tokenizer = _tokenizer(vocabulary)
        self._executor = LLExecutor(threads)
        names = {i: vocabulary.tokens[i].decode("utf-8", "replace") for i in vocabulary.special if i < len(vocabulary.tokens)}
        self._special = {name: i for i, name in names.items() if name}

    def compile(self, constraint: Constraint) -> bytes:
        """GrammarError. `load` takes the bytes."""
        if constraint.kind == "structural_tag":
            constraint = as_lark(json.loads(constraint.text), self._special)
        return _source(constraint).encode()

    def load(self, constraint: Constraint, data: bytes) -> LLGrammar:
        """The grammar, in this process. GrammarError"""
        matcher = LLMatcher(self._tokenizer, data.decode(), log_level=0)
        if matcher.is_error():
            raise GrammarError(in_one_line(matcher.get_error()))
        return LLGrammar(matcher, 16 * len(data) + 4096)

    def fill(self, matchers: Sequence[LLPosition], bits_RW: np.ndarray) -> None:
        if len(matchers) < MIN_PARALLEL:
            for row, matcher in enumerate(matchers):
                matcher.matcher.unsafe_compute_mask_ptr(bits_RW[row].ctypes.data, bits_RW.shape[1] * 4)
        else:
            fill_next_token_bitmask_par(self._executor, [(m.matcher, row) for row, m in enumerate(matchers)], bits_RW)


class LLGrammar:
    """See `interface.Grammar`. A copy of a fresh matcher takes 10 us."""

    def __init__(self, fresh: LLMatcher, num_bytes: int):
        self._fresh = fresh
        self.num_bytes = num_bytes

    def matcher(self) -> LLPosition:
        return LLPosition(self._fresh.deep_copy())


class LLPosition:
    """See `interface.Matcher`."""

    def __init__(self, matcher: LLMatcher):
        self.matcher = matcher

    def accept(self, token: int) -> bool:
        return self.matcher.consume_token(token)

    def ended(self) -> bool:
        return self.matcher.is_stopped() and not self.matcher.is_error()

    def error(self) -> str | None:
        return in_one_line(self.matcher.get_error()) if self.matcher.is_error() else None


def in_one_line(message: str) -> str:
    """Without the state of the parser that follows."""
    return " ".join(message.split("<state>")[0].split())[:500]


def threads_for(cores: int | None = None) -> int:
    """Masks of a step are computed by so many threads at most."""
    return max(1, min(8, (cores or os.cpu_count() or 1) // 2))


def _source(constraint: Constraint) -> str:
    text = constraint.text
    if constraint.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(_schema(json.loads(text)))
    if constraint.kind == "regex":
        pattern = _unanchored(text)
        # \d, \w and \s are ASCII, as in JSON Schema's dialect.
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(pattern, 'dws')}/" if pattern else 'start: ""')
    if constraint.kind == "ebnf":
        return LLMatcher.grammar_from_lark(_lark(text))
    if constraint.kind == "lark":
        parts = json.loads(text)
        schemas = [f"{name}: %json {json.dumps(_schema(schema))}" for name, schema in parts["schemas"].items()]
        patterns = [f"{name}: /{_pattern(**schema)}/" for name, schema in parts["patterns"].items()]
        return LLMatcher.grammar_from_lark("\n".join([parts["rules"], *schemas, *patterns]))
    raise GrammarError(f"llguidance does not know {constraint.kind}; it needs grammar_backend auto or xgrammar")


def _schema(schema: Any) -> dict[str, Any]:
    """As llguidance takes it, with how JSON is written."""
    if isinstance(schema, bool):  # llguidance takes these only without options
        schema = {} if schema else {"enum": []}
    if not isinstance(schema, dict):
        raise GrammarError("a schema must be an object or boolean")
    own = schema.get("x-guidance")
    form = {"x-guidance": {"whitespace_pattern": WHITESPACE, **(own if isinstance(own, dict) else {})}}
    if not (reason := _refusal({**schema, **form})):
        return {**schema, **form}
    other = rewritten(schema)
    other = {} if other is True else {"enum": []} if other is False else other
    if still := _refusal({**other, **form}):
        raise GrammarError(f"{reason} (said otherwise: {still})")
    return {**other, **form}


def _refusal(schema: dict[str, Any]) -> str:
    """Why llguidance does not take it."""
    found = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    return in_one_line(found) if found else ""


def _pattern(pattern: str, whole: bool = False) -> str:
    """A regular expression, or a schema's pattern, which is looked for anywhere, as what the whole text matches."""
    if whole:
        return regex_to_lark(_unanchored(pattern), "dws")
    inner = _unanchored(pattern)
    if inner != pattern and _has_alternatives(inner):
        raise GrammarError(f"the pattern {pattern!r} has an anchor beside alternatives: put these into brackets of their own")
    begin = "" if pattern.startswith("^") else "(?s:.*)"
    end = "" if inner != pattern.removeprefix("^") else "(?s:.*)"
    return regex_to_lark(f"{begin}(?:{inner}){end}", "dw")


def _has_alternatives(pattern: str) -> bool:
    """Outside of all brackets."""
    plain = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", pattern, flags=re.DOTALL)
    depth = 0
    for char in plain:
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            return True
    return False


def _unanchored(pattern: str) -> str:
    """The whole output matches anyway. Anchors of a whole pattern are taken off; elsewhere they are refused."""
    pattern = pattern.removeprefix("^")
    backslashes = len(pattern) - 1 - len(pattern[:-1].rstrip("\\"))
    return pattern[:-1] if pattern.endswith("$") and backslashes % 2 == 0 else pattern


def _lark(text: str) -> str:
    if "::=" not in text:
        return text
    try:
        return str(gbnf_to_lark(text))
    except Exception as error:  # noqa: BLE001 (it raises bare Exception for some mistakes)
        raise GrammarError(str(error)) from None


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    # Not from its tokenizer.json: llguidance takes every added token that looks like <...> for a special one, and then the masks of texts
    # that have to come next let through what is refused when it comes.
    return LLTokenizer(TokenizerWrapper(_Bytes(vocabulary)), n_vocab=vocabulary.size, eos_token=vocabulary.eos)


class _Bytes:
    """The vocabulary as `TokenizerWrapper` wants it. A text that has to come next is cut as the model's tokenizer cuts it, which the
    model knows best; where that cannot be (it has special tokens in it, or begins amid a character), greedily: any cut will do."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary):
        self.tokens = vocabulary.tokens + [b""] * (vocabulary.size - len(vocabulary.tokens))
        self.eos_token_id = vocabulary.eos[0]
        self.special_token_ids = vocabulary.special
        self._special = set(vocabulary.special)
        self._ids = {token: i for i, token in enumerate(self.tokens) if token and i not in self._special}
        self._exact = tokenizers.Tokenizer.from_str(vocabulary.tokenizer_json) if vocabulary.tokenizer_json else None
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        if self._exact is not None:
            found: list[int] = self._exact.encode(data.decode("utf-8", "replace"), add_special_tokens=False).ids
            if b"".join(self.tokens[i] for i in found) == data and self._special.isdisjoint(found):
                return found
        ids, at = [], 0
        while at < len(data):
            end = next((end for end in range(min(len(data), at + self._longest), at, -1) if data[at:end] in self._ids), at)
            if end > at:
                ids.append(self._ids[data[at:end]])
            at = max(end, at + 1)
        return ids

"""What the text of a sequence must look like (constrained decoding). Plain data: no torch, no grammar library."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["json_schema", "regex", "ebnf", "structural_tag", "lark"]


class Constraint(msgspec.Struct, frozen=True):
    """`text` is, by `kind`:

    json_schema: a JSON Schema. regex: a regular expression that the whole output matches. ebnf: a grammar in GBNF (llama.cpp's and
    xgrammar's notation) or in Lark's. structural_tag: JSON, {"type": "structural_tag", "format": {...}} as xgrammar knows it, or
    the older {"structures": [{"begin", "schema", "end"}], "triggers": [...]}. lark, which no request has itself: JSON, {"rules": a
    grammar in Lark's notation as llguidance knows it, "schemas": {rule: JSON Schema}, "patterns": {terminal: JSON Schema of a pattern}}.
    """

    kind: Kind
    text: str

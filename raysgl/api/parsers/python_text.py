"""Python literals as JSON, number by number: what neither an integer of 64 bits nor a double can hold stays what it is."""

from __future__ import annotations

import ast
import json
import math
from typing import Any

import orjson

_CONSTANTS = {"true": "true", "false": "false", "null": "null", "none": "null"}
ERRORS = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)
"""What reading text that is no literal raises."""


def json_of(text: str) -> str:
    """A literal's JSON. One of ERRORS"""
    return node_json(ast.parse(text, mode="eval").body)


def node_json(node: ast.expr) -> str:
    """JSON's own names for constants count too. One of ERRORS"""
    if isinstance(node, ast.Name) and node.id.lower() in _CONSTANTS:
        return _CONSTANTS[node.id.lower()]
    if isinstance(node, (ast.List, ast.Tuple)):
        return "[" + ", ".join(map(node_json, node.elts)) + "]"
    if isinstance(node, ast.Dict):
        return "{" + ", ".join(f"{_key(key)}: {node_json(item)}" for key, item in zip(node.keys, node.values)) + "}"
    value = ast.literal_eval(node)
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return value_json(value)


def value_json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # beyond 64 bits, or half a surrogate pair
        return json.dumps(value)


def _key(node: ast.expr | None) -> str:
    if node is None:
        raise ValueError("** is no literal")
    key = json.loads(node_json(node))
    return value_json(key if isinstance(key, str) else str(ast.literal_eval(node)))

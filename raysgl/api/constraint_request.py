"""Which constraint a request asks for: OpenAI's response_format, SGLang's fields, vLLM's two generations of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from raysgl.api.errors import ApiError, bad_request
from raysgl.sampling.constraint import Constraint, Kind

ANY_OBJECT = '{"type":"object"}'

NATIVE = ("json_schema", "regex", "ebnf", "structural_tag")
"""SGLang's fields, also of sampling_params in its own API. A name is the kind."""
GUIDED: dict[str, str] = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""vLLM's older fields, and what its structured_outputs calls them."""
FIELDS = ("response_format", "structured_outputs", *NATIVE, *GUIDED)


def constraint_of(fields: Mapping[str, Any]) -> Constraint | None:
    """The constraint of a request's fields (or of sampling_params in SGLang's own API); fields that are None are not there.

    ApiError 400 that names the field, or two of them: a request can have one constraint.
    """
    found = [(constraint, name) for name in FIELDS for constraint in _constraints(name, fields.get(name))]
    if len(found) > 1:
        (_, first), (_, second) = found[:2]
        what = f"{first} has two constraints" if first == second else f"{first} and {second} are two constraints"
        raise bad_request(f"{what}, but a request can have one", second)
    return found[0][0] if found else None


def constraint_field(fields: Mapping[str, Any]) -> str | None:
    """Which field the constraint of a request comes from."""
    return next((name for name in FIELDS if fields.get(name) not in (None, {"type": "text"})), None)


def _constraints(name: str, value: Any) -> list[Constraint]:
    if value is None:
        return []
    if name == "response_format":
        return _response_format(value)
    if name == "structured_outputs":
        return _structured_outputs(value)
    if name in GUIDED:
        return [_of_kind(GUIDED[name], value, name)]
    return [_of_kind(name, value, name)]


def _response_format(value: Any) -> list[Constraint]:
    """{"type": "text" | "json_object" | "json_schema" | "structural_tag", ...}"""
    kind = _object(value, "response_format").get("type")
    if kind == "text":
        return []
    if kind == "json_object":
        return [Constraint("json_schema", ANY_OBJECT)]
    if kind == "structural_tag":
        return [_of_kind("structural_tag", value, "response_format")]
    if kind != "json_schema":
        raise _wrong("response_format.type", kind, "text, json_object, json_schema or structural_tag")
    schema = _object(value.get("json_schema"), "response_format.json_schema")
    if "schema" not in schema:
        raise bad_request("response_format.json_schema.schema is required, but missing", "response_format")
    return [_of_kind("json", schema["schema"], "response_format.json_schema.schema")]


_OPTIONS = {"disable_any_whitespace", "disable_fallback", "disable_additional_properties", "whitespace_pattern", "backend"}


def _structured_outputs(value: Any) -> list[Constraint]:
    """vLLM's object: one of json, regex, choice, grammar, json_object, structural_tag."""
    constraints = []
    for kind, inner in _object(value, "structured_outputs").items():
        where = f"structured_outputs.{kind}"
        if inner is None or (inner is False and kind in _OPTIONS | {"json_object"}):
            continue
        if kind == "json_object" and inner is True:
            constraints.append(Constraint("json_schema", ANY_OBJECT))
        elif kind in ("json", "regex", "choice", "grammar", "structural_tag"):
            constraints.append(_of_kind(kind, inner, where))
        elif kind in _OPTIONS:
            raise bad_request(f"{where} is not supported", "structured_outputs", "unsupported_parameter")
        else:
            raise _wrong(where, inner, "true or false") if kind == "json_object" else _unknown(where)
    return constraints


def _of_kind(kind: str, value: Any, where: str) -> Constraint:
    if kind in ("json", "json_schema"):
        return Constraint("json_schema", _json(value, where, (dict, bool), "a JSON Schema, as an object or as a string"))
    if kind == "structural_tag":
        return Constraint("structural_tag", _json(value, where, (dict,), "a structural tag, as an object or as a string"))
    if kind == "choice":
        return Constraint("ebnf", _choice(value, where))
    if not isinstance(value, str) or not value:
        raise _wrong(where, value, "a string that is not empty")
    named: Kind = "regex" if kind == "regex" else "ebnf"
    return Constraint(named, value)


def _json(value: Any, where: str, types: tuple[type, ...], allowed: str) -> str:
    """As compact text, the same for the same value however it came: what is compiled is kept by it."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise bad_request(f"{where} is not JSON: {error}", where.split(".")[0]) from None
    if not isinstance(value, types):
        raise _wrong(where, value, allowed)
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:  # deeper than orjson goes, or a number beyond 64 bits
        raise bad_request(f"{where} cannot be used: {error}", where.split(".")[0]) from None


def _choice(value: Any, where: str) -> str:
    """A grammar of nothing but these texts."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise _wrong(where, value, "a list of strings that are not empty")
    return "start: " + " | ".join(orjson.dumps(text).decode() for text in dict.fromkeys(value))


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    return value


def _wrong(where: str, value: Any, allowed: str) -> ApiError:
    shown = repr(value)
    shown = shown if len(shown) <= 100 else shown[:100] + "..."
    return bad_request(f"{where} is {shown}, but must be {allowed}", where.split(".")[0])


def _unknown(where: str) -> ApiError:
    return bad_request(f"Unknown field: {where}", where.split(".")[0], "unknown_parameter")

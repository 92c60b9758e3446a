"""What the references of a JSON schema refer to. All of it must be in the schema itself: nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from raysgl.grammar.interface import GrammarError

Schema = Any
"""A dict or a bool."""
SCHEMAS = ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
SCHEMAS += ("unevaluatedItems", "unevaluatedProperties", "contentSchema")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
NAMED = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")


class References:
    """Of a root schema. A place is a schema and its base URI."""

    def __init__(self, root: Schema, old: bool):
        """old: draft 7 or older, where nothing counts beside `$ref`, and `$id` may be an anchor."""
        self.old = old
        self._resources: dict[str, tuple[Schema, str]] = {"": (root, "")}
        self._anchors: dict[str, tuple[Schema, str]] = {}
        self._dynamic: dict[str, int] = {}
        self._read(root, "")

    def base(self, schema: Schema, base: str) -> str:
        """The base URI inside of a schema that stands where the base is `base`."""
        id = schema.get("$id") if isinstance(schema, dict) and not (self.old and "$ref" in schema) else None
        return urljoin(base, urldefrag(id).url) if isinstance(id, str) else base

    def target(self, schema: dict[str, Any], base: str) -> tuple[Schema, str]:
        """Of `$ref` or `$dynamicRef`. GrammarError"""
        ref = schema.get("$ref", schema.get("$dynamicRef"))
        if not isinstance(ref, str):
            raise GrammarError("a reference must be a string")
        url, fragment = urldefrag(urljoin(base, ref) if not ref.startswith("#") else base + ref)
        if "$dynamicRef" in schema and self._dynamic.get(fragment, 0) > 1:
            raise GrammarError(f"$dynamicRef {ref!r} may mean several schemas")
        found = self._anchors.get(f"{url}#{fragment}")
        if found is None and url in self._resources and (not fragment or fragment.startswith("/")):
            found = self._at(*self._resources[url], unquote(fragment))
        if found is None:
            raise GrammarError(f"the reference {ref!r} leads out of the schema")
        return found

    def _at(self, schema: Schema, base: str, pointer: str) -> tuple[Schema, str] | None:
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(schema, list) and key.isdigit() and int(key) < len(schema):
                schema = schema[int(key)]
            elif isinstance(schema, dict) and key in schema:
                schema = schema[key]
            else:
                return None
            base = self.base(schema, base)
        return (schema, base) if isinstance(schema, (dict, bool)) else None

    def _read(self, schema: Schema, base: str) -> None:
        if not isinstance(schema, dict):
            return
        inner = self.base(schema, base)
        if inner != base:
            self._resources.setdefault(inner, (schema, inner))
        id = schema.get("$id")
        names = [schema.get("$anchor"), schema.get("$dynamicAnchor"), urldefrag(id).fragment if isinstance(id, str) else None]
        for name in names:
            if isinstance(name, str) and name:
                self._anchors[f"{inner}#{name}"] = (schema, inner)
        if isinstance(dynamic := schema.get("$dynamicAnchor"), str):
            self._dynamic[dynamic] = self._dynamic.get(dynamic, 0) + 1
        for child in children(schema):
            self._read(child, inner)


def children(schema: dict[str, Any]) -> Iterator[Schema]:
    """The schemas directly in a schema."""
    for key, value in schema.items():
        if key in LISTS and isinstance(value, list):
            yield from value
        elif key in SCHEMAS:
            yield value
        elif key in NAMED and isinstance(value, dict):
            yield from value.values()

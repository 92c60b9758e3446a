"""JSON schemas with keywords that llguidance does not know, said with those that it does.

What comes out allows the same values or fewer, never others. Fewer, where the same cannot be said: what must be contained in a list
stands at its beginning, items that must differ are one at most unless all that they can be is known, and of the ways to miss a schema
those count that can be named (`schema_negation.py`). Formats that JSON Schema does not define mean nothing, as it says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from raysgl.grammar import schema_negation
from raysgl.grammar.interface import GrammarError
from raysgl.grammar.schema_refs import References, Schema
from raysgl.grammar.schema_values import differ, different_lists, others

MOST_SCHEMAS = 20_000
MOST_BRANCHES = 100
"""Ways to fulfil a schema with unevaluatedItems or unevaluatedProperties."""
OLD = ("draft-07", "draft-06", "draft-04", "draft-03")
_GONE = {"dependencies", "additionalItems"}
_NEW = {"$dynamicRef", "dependentRequired", "dependentSchemas", "maxContains", "minContains", "prefixItems"}
_NEW |= {"unevaluatedItems", "unevaluatedProperties"}
_PLAIN = {
    "type",
    "enum",
    "const",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "pattern",
    "required",
}
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
"""Which llguidance knows."""
_NARROWER = {
    "idn-email": {"format": "email"},
    "idn-hostname": {"format": "hostname"},
    "iri": {"format": "uri"},
    "iri-reference": {"format": "uri"},
    "json-pointer": {"pattern": "^(/[A-Za-z0-9_-]*)*$"},
    "regex": {"pattern": "^[A-Za-z0-9_ -]*$"},
    "relative-json-pointer": {"pattern": "^(0|[1-9][0-9]{0,3})(#|(/[A-Za-z0-9_-]*)*)$"},
    "uri-reference": {"format": "uri"},
    "uri-template": {"format": "uri"},
}
"""Other formats that JSON Schema defines -> something that has them."""


def rewritten(schema: Schema) -> Schema:
    """GrammarError for what cannot be said."""
    try:
        return Rewriter(schema).whole()
    except RecursionError:
        raise GrammarError("its schemas refer to each other without an end") from None
    except (TypeError, AttributeError, ValueError) as error:
        if isinstance(error, GrammarError):
            raise
        raise GrammarError(f"it is no JSON Schema: {error}") from None


@dataclass
class Branch:
    """One way to fulfil a schema: all of `schemas`. What those know of an object's properties and of a list's items."""

    schemas: list[Schema] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    all_names: bool = False
    num_items: int = 0
    all_items: bool = False

    def joined(self, other: Branch) -> Branch:
        return Branch(
            self.schemas + other.schemas,
            self.names | other.names,
            self.patterns | other.patterns,
            self.all_names or other.all_names,
            max(self.num_items, other.num_items),
            self.all_items or other.all_items,
        )


class Rewriter:
    """Of one root schema. `yes` and `no` write schemas for what another allows, and for what it does not."""

    def __init__(self, root: Schema):
        self._root = root
        dialect = root.get("$schema", "") if isinstance(root, dict) else ""
        self.old = any(draft in str(dialect) for draft in OLD)
        self.references = References(root, self.old)
        self._names: dict[tuple[int, bool], str] = {}
        self._definitions: dict[str, Schema] = {}
        self._budget = MOST_SCHEMAS

    def whole(self) -> Schema:
        found = self.yes(self._root, "")
        if not self._definitions or not isinstance(found, dict):
            return found
        return {**found, "$defs": self._definitions}

    def yes(self, schema: Schema, base: str) -> Schema:
        """What allows only values that the schema allows."""
        schema, base = self.enter(schema, base)
        if isinstance(schema, bool):
            return schema
        if "unevaluatedProperties" in schema or "unevaluatedItems" in schema:
            return any_of([all_of(branch.schemas) for branch in self._branches(schema, base)])
        found = self._own(schema, base)
        parts = [*self._conditions(schema, base)]
        if "$ref" in schema or "$dynamicRef" in schema:
            parts.append(self.reference(schema, base, True))
        parts += [self.yes(inner, base) for inner in schema.get("allOf", ())]
        if "anyOf" in schema:
            parts.append(any_of([self.yes(inner, base) for inner in schema["anyOf"]]))
        if "oneOf" in schema:
            parts.append(
                any_of([all_of([self.yes(one, base), *rest]) for one, rest in self._alternatives(schema["oneOf"], base)])
            )
        for condition, then, otherwise in self.choices(schema):
            met = all_of([self.yes(condition, base), self.yes(then, base)])
            parts.append(any_of([met, all_of([self.no(condition, base), self.yes(otherwise, base)])]))
        return all_of([found, *parts])

    def no(self, schema: Schema, base: str) -> Schema:
        """What allows only values that the schema does not allow."""
        return schema_negation.no(self, schema, base)

    def enter(self, schema: Schema, base: str) -> tuple[Schema, str]:
        """The schema with the keywords of today, and the base URI inside of it."""
        self._budget -= 1
        if self._budget < 0:
            raise GrammarError("it becomes too large when it is said with supported keywords")
        if isinstance(schema, bool):
            return schema, base
        if not isinstance(schema, dict):
            raise TypeError("a schema is an object or a boolean")
        base = self.references.base(schema, base)
        schema = {key: value for key, value in schema.items() if key not in (_NEW if self.old else _GONE)}
        if not self.old:
            return schema, base
        if "$ref" in schema:
            return {"$ref": schema["$ref"]}, base
        if isinstance(schema.get("items"), list):
            schema["prefixItems"] = schema.pop("items")
            if "additionalItems" in schema:
                schema["items"] = schema["additionalItems"]
        return schema, base

    def reference(self, schema: dict[str, Any], base: str, wanted: bool) -> Schema:
        """A reference to what the schema refers to, or to what is not that."""
        target, inner = self.references.target(schema, base)
        if isinstance(target, bool):
            return target is wanted
        key = (id(target), wanted)
        if key not in self._names:
            name = self._names[key] = f"{'yes' if wanted else 'no'}{len(self._names)}"
            self._definitions[name] = True
            self._definitions[name] = self.yes(target, inner) if wanted else self.no(target, inner)
        return {"$ref": f"#/$defs/{self._names[key]}"}

    # ---------------------------------------------------------------- parts of `yes`

    def _own(self, schema: dict[str, Any], base: str) -> dict[str, Any]:
        """What has a keyword of the same meaning."""
        found: dict[str, Any] = {key: value for key, value in schema.items() if key in _PLAIN}
        found |= {key: int(value) for key, value in schema.items() if key in _COUNTS}
        for key in ("properties", "patternProperties"):
            if key in schema:
                found[key] = {name: self.yes(inner, base) for name, inner in schema[key].items()}
        for key in ("additionalProperties", "items"):
            if key in schema:
                found[key] = self.yes(schema[key], base)
        if "prefixItems" in schema:
            found["prefixItems"] = [self.yes(inner, base) for inner in schema["prefixItems"]]
        if schema.get("format") in _FORMATS:
            found["format"] = schema["format"]
        return found

    def _conditions(self, schema: dict[str, Any], base: str) -> Iterable[Schema]:
        """What other keywords mean, one schema for each."""
        if schema.get("format") in _NARROWER:
            yield _NARROWER[schema["format"]]
        if "not" in schema:
            yield self.no(schema["not"], base)
        if "contains" in schema:
            yield self._contains(schema, base)
        if schema.get("uniqueItems") is True:
            prefix = [self._told(inner, base)[0] for inner in schema.get("prefixItems", ())]
            items = self._told(schema.get("items", True), base)[0]
            yield different_lists(prefix, items, int(schema.get("minItems", 0)), schema.get("maxItems"))
        if "propertyNames" in schema:
            yield self._names_like(schema, base)
        for name, needed in dependencies(schema, list):
            yield any_of([without_property(name), {"required": [name, *needed]}])

    def choices(self, schema: dict[str, Any]) -> Iterable[tuple[Schema, Schema, Schema]]:
        """(if, then, else) of what is such a choice."""
        if "if" in schema and ("then" in schema or "else" in schema):
            yield schema["if"], schema.get("then", True), schema.get("else", True)
        for name, inner in dependencies(schema, (dict, bool)):
            yield {"type": "object", "properties": {name: True}, "required": [name]}, inner, True

    def _alternatives(self, schemas: list[Schema], base: str) -> Iterable[tuple[Schema, list[Schema]]]:
        """One of oneOf, and what is none of the others."""
        for at, one in enumerate(schemas):
            others = (other for number, other in enumerate(schemas) if number != at)
            yield one, [self.no(other, base) for other in others if not self._differ(one, other, base)]

    def _differ(self, one: Schema, other: Schema, base: str) -> bool:
        """Whether no value fits both, as far as that is easy to see: by what they are, or by a property that tells."""
        (first, first_base), (second, second_base) = self._told(one, base), self._told(other, base)
        if not isinstance(first, dict) or not isinstance(second, dict):
            return False
        if differ(first, second):
            return True
        telling = set(first.get("required", ())) & set(second.get("required", ()))
        if first.get("type") != "object" or second.get("type") != "object":
            return False
        pairs = ((first.get("properties", {}).get(name), second.get("properties", {}).get(name)) for name in telling)
        told = (
            (self._told(a, first_base)[0], self._told(b, second_base)[0]) for a, b in pairs if a is not None and b is not None
        )
        return any(isinstance(a, dict) and isinstance(b, dict) and differ(a, b) for a, b in told)

    def _told(self, schema: Schema, base: str) -> tuple[Schema, str]:
        """What it refers to, where it says no more."""
        for _ in range(16):
            if not isinstance(schema, dict) or not schema.keys() <= {"$ref", "title", "description"} or "$ref" not in schema:
                break
            schema, base = self.references.target(schema, base)
        return schema, base

    def _contains(self, schema: dict[str, Any], base: str) -> Schema:
        fewest, most = int(schema.get("minContains", 1)), schema.get("maxContains")
        item = self.yes(schema["contains"], base)
        rest: dict[str, Schema] = {}
        if most is not None:
            rest = {"items": self.no(schema["contains"], base)}
        free = 0 if most is None else int(most) - fewest
        if free < 0:
            return others({"array"})
        if fewest + free > MOST_BRANCHES:
            raise GrammarError("contains asks for too many items")
        places = {0, len(schema.get("prefixItems", ()))} if fewest else {0}
        before = rest.get("items", True)
        ways = []
        for place in sorted(places):
            begin = [*[before] * place, *[item] * fewest, *[True] * free]
            ways.append({"minItems": place + fewest, **rest} | ({"prefixItems": begin} if begin else {}))
        return any_of(ways)

    def _names_like(self, schema: dict[str, Any], base: str) -> Schema:
        pattern = self._name_pattern(schema["propertyNames"], base)
        if pattern is None:
            return {"maxProperties": 0}
        return {"patternProperties": {pattern: True}, "additionalProperties": False} if pattern else True

    def _name_pattern(self, schema: Schema, base: str) -> str | None:
        """A pattern for strings of a schema; empty for any, None for none."""
        schema, base = self.enter(schema, base)
        if isinstance(schema, bool):
            return "" if schema else None
        if "$ref" in schema and schema.keys() <= {"$ref", "$schema", "$id"}:
            return self._name_pattern(*self.references.target(schema, base))
        said = schema.keys() & {"pattern", "enum", "const", "minLength", "maxLength"}
        others = schema.keys() & {"anyOf", "allOf", "oneOf", "not", "if", "format", "$ref", "$dynamicRef"}
        if others or len(said) > (2 if said <= {"minLength", "maxLength"} else 1):
            raise GrammarError(f"propertyNames with {', '.join(sorted(others or said))} is not supported")
        if "type" in schema and "string" not in (schema["type"] if isinstance(schema["type"], list) else [schema["type"]]):
            return None
        if "pattern" in schema:
            return schema["pattern"]
        if "enum" in schema or "const" in schema:
            texts = [text for text in schema.get("enum", [schema.get("const")]) if isinstance(text, str)]
            return f"^({'|'.join(map(schema_negation.escaped, texts))})$" if texts else None
        if said & {"minLength", "maxLength"}:
            most = schema.get("maxLength")
            return rf"^[\s\S]{{{int(schema.get('minLength', 0))},{'' if most is None else int(most)}}}$"
        return ""

    # ---------------------------------------------------------------- unevaluated

    def _branches(self, schema: Schema, base: str, depth: int = 16) -> list[Branch]:
        """The ways to fulfil a schema."""
        schema, base = self.enter(schema, base)
        if isinstance(schema, bool):
            return [Branch()] if schema else []
        if not depth:
            raise GrammarError(
                "unevaluatedProperties and unevaluatedItems are not supported with schemas that refer to themselves"
            )

        def inner(sub: Schema, *also: Schema) -> list[Branch]:
            return [Branch([*also]).joined(branch) for branch in self._branches(sub, base, depth - 1)]

        own = self._own(schema, base)
        known = Branch(
            [own, *self._conditions(schema, base)],
            frozenset(own.get("properties", ())),
            frozenset(own.get("patternProperties", ())),
            "additionalProperties" in own,
            len(own.get("prefixItems", ())),
            "items" in own,
        )
        factors: list[list[Branch]] = [[known]]
        if "$ref" in schema or "$dynamicRef" in schema:
            target = self.references.target(schema, base)
            factors.append(self._branches(*target, depth - 1))
        factors += [inner(sub) for sub in schema.get("allOf", ())]
        if "anyOf" in schema:
            factors.append([branch for sub in schema["anyOf"] for branch in inner(sub)])
        if "oneOf" in schema:
            factors.append([branch for sub, rest in self._alternatives(schema["oneOf"], base) for branch in inner(sub, *rest)])
        choices = [*self.choices(schema)]
        if "if" in schema and "then" not in schema and "else" not in schema:
            choices.append((schema["if"], True, True))
        for condition, then, otherwise in choices:
            factors.append(inner({"allOf": [condition, then]}) + inner(otherwise, self.no(condition, base)))
        return [self._evaluated(branch, schema, base) for branch in _products(factors)]

    def _evaluated(self, branch: Branch, schema: dict[str, Any], base: str) -> Branch:
        """With what the schema says of the rest."""
        also = []
        if "unevaluatedProperties" in schema and not branch.all_names:
            names: dict[str, Schema] = {"properties": dict.fromkeys(sorted(branch.names), True)}
            names |= {"patternProperties": dict.fromkeys(sorted(branch.patterns), True)} if branch.patterns else {}
            also.append(names | {"additionalProperties": self.yes(schema["unevaluatedProperties"], base)})
        if "unevaluatedItems" in schema and not branch.all_items:
            items: dict[str, Schema] = {"prefixItems": [True] * branch.num_items} if branch.num_items else {}
            also.append(items | {"items": self.yes(schema["unevaluatedItems"], base)})
        return branch.joined(Branch(also, all_names="unevaluatedProperties" in schema, all_items="unevaluatedItems" in schema))


def _products(factors: list[list[Branch]]) -> list[Branch]:
    total = 1
    for factor in factors:
        total *= len(factor)
    if total > MOST_BRANCHES:
        raise GrammarError("it has too many ways to be fulfilled for unevaluatedProperties or unevaluatedItems")
    found = []
    for chosen in product(*factors):
        joined = Branch()
        for branch in chosen:
            joined = joined.joined(branch)
        found.append(joined)
    return found


def dependencies(schema: dict[str, Any], kind: type | tuple[type, ...]) -> Iterable[tuple[str, Any]]:
    """(property, what it asks for): names of others, or a schema."""
    for key in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, value in schema.get(key, {}).items():
            if isinstance(value, kind):
                yield name, value


def without_property(name: str) -> Schema:
    return {"properties": {name: False}}


def any_of(schemas: list[Schema]) -> Schema:
    found = [schema for schema in schemas if schema is not False]
    if any(schema is True or schema == {} for schema in found):
        return True
    return found[0] if len(found) == 1 else {"anyOf": found} if found else False


def all_of(schemas: list[Schema]) -> Schema:
    if any(schema is False for schema in schemas):
        return False
    found = [schema for schema in schemas if schema is not True and schema != {}]
    return found[0] if len(found) == 1 else {"allOf": found} if found else True

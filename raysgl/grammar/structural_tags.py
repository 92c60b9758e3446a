"""Structural tags as a grammar for llguidance, which follows all of a schema, where xgrammar leaves keywords out.

What it does not know is GrammarError, and xgrammar's: grammars inside of tags, arguments that are not JSON, text and regular expressions
without something that ends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysgl.grammar.interface import GrammarError
from raysgl.grammar.lark import Lark, without
from raysgl.sampling.constraint import Constraint


def new_form(tag: Any) -> dict[str, Any]:
    """A structural tag as xgrammar knows it now. The older form has `structures` and `triggers`. GrammarError"""
    if isinstance(tag, dict) and "format" in tag:
        return {**tag, "type": "structural_tag"}
    if not isinstance(tag, dict) or not isinstance(tag.get("structures"), list) or not isinstance(tag.get("triggers"), list):
        raise GrammarError("it must have a format, or structures and triggers")
    tags = []
    for structure in tag["structures"]:
        if not isinstance(structure, dict) or not {"begin", "end"} <= structure.keys():
            raise GrammarError("each of structures must have begin, schema and end")
        content = {"type": "json_schema", "json_schema": structure.get("schema", {})}
        tags.append({"type": "tag", "begin": structure["begin"], "content": content, "end": structure["end"]})
    return {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": tag["triggers"], "tags": tags}}


def as_lark(tag: Any, special: Mapping[str, int]) -> Constraint:
    """The constraint of the kind lark. special: names of special tokens -> id. GrammarError"""
    lark = Lark(special)
    try:
        return lark.constraint(_Tags(lark).expression(new_form(tag)["format"], last=True))
    except (KeyError, TypeError, AttributeError) as error:
        raise GrammarError(f"it is no structural tag: {error}") from None
    except RecursionError:
        raise GrammarError("it is nested too deep") from None


class _Tags:
    def __init__(self, lark: Lark):
        self._lark = lark

    def expression(self, format: Any, last: bool) -> str:
        """last: nothing follows, so that a text may end anywhere."""
        kind = format["type"]
        if kind == "const_string":
            return self._lark.literal(format["value"])
        if kind == "json_schema" and format.get("style", "json") == "json":
            return self._lark.json(format["json_schema"])
        if kind == "tag":
            return self._tag(format)
        if kind in ("sequence", "or"):
            parts = [
                (part, last and (kind == "or" or number == len(format["elements"])))
                for number, part in enumerate(format["elements"], 1)
            ]
            return "(" + (" " if kind == "sequence" else " | ").join(self.expression(part, end) for part, end in parts) + ")"
        if kind == "triggered_tags" and last:
            return self._triggered(format)
        if kind == "tags_with_separator":
            return self._separated(format)
        if kind in ("any_text", "regex") and last:
            return self._lark.rule(self._lark.name("REST"), self._terminal(format))
        raise GrammarError(f"llguidance does not know {kind!r} of structural tags here")

    def _terminal(self, format: Any) -> str:
        """Of text."""
        if set(format) - {"type", "pattern", "excludes"}:
            raise GrammarError(f"llguidance does not know all of {sorted(format)}")
        if format["type"] == "regex":
            return self._lark.whole(format["pattern"])
        return without(tuple(format.get("excludes", ())))

    def _tag(self, format: Any, behind: str = "") -> str:
        """behind: what stands there already."""
        content, ends = format["content"], format["end"]
        if not isinstance(ends, str) or set(format) - {"type", "begin", "content", "end"}:
            raise GrammarError("llguidance does not know such a tag")
        begin = self._lark.literal(format["begin"].removeprefix(behind))
        if content["type"] in ("any_text", "regex"):
            if not ends:
                raise GrammarError("llguidance does not know tags of text without an end")
            return f"({begin} {self._lark.text_until(f'{self._terminal(content)} & {without((ends,))}', ends)})"
        return f"({begin} {self.expression(content, last=not ends)} {self._lark.literal(ends)})"

    def _triggered(self, format: Any) -> str:
        if set(format) - {"type", "triggers", "tags", "at_least_one", "stop_after_first"}:
            raise GrammarError("llguidance does not know such triggered_tags")
        triggers = tuple(format["triggers"])
        ways = []
        for trigger in triggers:
            tags = [self._tag(tag, trigger) for tag in format["tags"] if tag["begin"].startswith(trigger)]
            if tags:
                ways.append(f"{self._lark.text_until(without(triggers), trigger)} ({' | '.join(tags)})")
        if not ways or not all(any(tag["begin"].startswith(trigger) for trigger in triggers) for tag in format["tags"]):
            raise GrammarError("each tag must begin with one of triggers")
        said = self._lark.rule(self._lark.name("REST"), without(triggers))
        called = f"({' | '.join(ways)})"
        if format.get("at_least_one"):
            first = f"({' | '.join(self._tag(tag) for tag in format['tags'])})"
            return first if format.get("stop_after_first") else f"{first} {called}* {said}"
        return f"({called} | {said})" if format.get("stop_after_first") else f"{called}* {said}"

    def _separated(self, format: Any) -> str:
        if set(format) - {"type", "tags", "separator", "at_least_one", "stop_after_first"}:
            raise GrammarError("llguidance does not know such tags_with_separator")
        tag = f"({' | '.join(self._tag(tag) for tag in format['tags'])})"
        more = "" if format.get("stop_after_first") else f" ({self._lark.literal(format['separator'])} {tag})*"
        return f"({tag}{more})" + ("" if format.get("at_least_one") else "?")

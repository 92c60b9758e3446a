"""What is known of a model family's way to call tools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait
from raysgl.grammar.lark import Lark

Tools = dict[str, dict[str, Any]]
"""Name -> JSON Schema of the parameters."""


@dataclass(frozen=True)
class TextArguments:
    """Arguments as text between tags: `key` NAME `key_end` TEXT `value_end` for each. In no text may be one of `stops`.
    json_key_end: the `key_end` of values that are not strings, where it is another."""

    key: str
    key_end: str
    value_end: str
    stops: tuple[str, ...]
    json_key_end: str = ""


@dataclass(frozen=True)
class Structure:
    """How calls are written, for constraining an answer to them.

    A call is `begin`, with NAME for the tool's name and NUMBER for any number, the arguments, `end`. All calls stand in `section`,
    `separator` between them. triggers: what is no call has none of these in it; calls begin with the first. An answer that is
    nothing but calls needs no trigger where `bare` says with which character it begins.
    """

    begin: str
    end: str
    triggers: tuple[str, ...]
    section: tuple[str, str] = ("", "")
    separator: str = ""
    arguments: Literal["json", "python"] | TextArguments = "json"
    bare: str = ""


@dataclass(frozen=True)
class ToolFormat:
    """parse: reads to the end, and writes what it reads. What is no call is text; once a call has begun, whatever stands where its
    arguments should be are its arguments. A call with a tag is passed on whatever function it names, as vLLM does; one that only looks
    like a call (a bare JSON object or Python list) must name a tool.
    tags: those of its marks that are special tokens for some tokenizers. structures: the ways in which models write calls of this kind.
    whole: where an answer has a form of its own, the grammar's expression for all that the model writes, reasoning too, from that of
    its calls, and whether it may do without.
    """

    parse: Callable[[Reader, Output, Tools], Wait[None]]
    tags: tuple[str, ...]
    structures: tuple[Structure, ...]
    whole: Callable[[Lark, str, bool], str] | None = None

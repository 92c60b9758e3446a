"""What is known of a model family's way to call tools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reader import Reader, Wait

Tools = dict[str, dict[str, Any]]
"""Name -> JSON Schema of the parameters."""


@dataclass(frozen=True)
class Structure:
    """How calls are written, for constraining them to it.

    A call is `begin` with NAME replaced, `before` (xgrammar formats), the arguments in `style` (xgrammar's name), and `end`. All calls
    stand in `section`, with `separator` between them. trigger: what a section, or without one a call, begins with.
    """

    begin: str
    end: str
    trigger: str
    section: tuple[str, str] | None = None
    separator: str = ""
    style: str = "json"
    before: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class ToolFormat:
    """parse: reads to the end, and writes what it reads. What is no call is text; once a call has begun, whatever stands where its
    arguments should be are its arguments. A call with a tag is passed on whatever function it names, as vLLM does; one that only looks
    like a call (a bare JSON object or Python list) must name a tool.
    tags: those of its marks that are special tokens for some tokenizers.
    """

    parse: Callable[[Reader, Output, Tools], Wait[None]]
    tags: tuple[str, ...] = ()
    structure: Structure | None = None

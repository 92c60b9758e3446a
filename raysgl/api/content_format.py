"""What a chat template expects in a message's `content`: a string, or a list of parts. Read from its syntax tree."""

from __future__ import annotations

from typing import Literal

from jinja2 import nodes

ContentFormat = Literal["string", "parts", "either"]
"""string: text only. parts: always a list. either: the template asks `content is string` and copes with both."""


def content_format(tree: nodes.Template) -> ContentFormat:
    """parts or either if the template loops over some message's content, else string."""
    aliases = {"content"} | {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _is_content(node.node, set())
    }
    if not any(_is_content(loop.iter, aliases) for loop in tree.find_all(nodes.For)):
        return "string"
    asks = any(test.name == "string" and _is_content(test.node, aliases) for test in tree.find_all(nodes.Test))
    return "either" if asks else "parts"


def _is_content(node: nodes.Node, aliases: set[str]) -> bool:
    """Whether an expression is a message's content, a slice or filter of it, or a name that stands for it."""
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in aliases
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _is_content(node.node, aliases)
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return False


def join_text(parts: list[dict]) -> str:
    """Text parts as one string, for templates that know no parts."""
    return "\n".join(part["text"] for part in parts)

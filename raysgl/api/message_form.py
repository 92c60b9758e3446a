"""What a chat template expects its messages to look like, read from its syntax tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from jinja2 import nodes

ContentFormat = Literal["string", "parts", "either"]
"""string: text only. parts: always a list. either: the template asks `content is string` and copes with both."""


@dataclass(frozen=True)
class MessageForm:
    """content: what `content` must be.
    none_content: the template asks whether content is none, so that it must not become "".
    text_arguments: a tool call's arguments are printed as they are, so that they must be JSON text and not an object.
    """

    content: ContentFormat
    none_content: bool
    text_arguments: bool


def message_form(tree: nodes.Template) -> MessageForm:
    content = _Member(tree, "content")
    return MessageForm(_content_format(tree, content), content.is_tested("none"), _text_arguments(tree))


class _Member:
    """Expressions that are a message's member of this name, a slice or filter of it, or a name that was set to it."""

    def __init__(self, tree: nodes.Template, name: str):
        self._tree, self._name = tree, name
        self._aliases: set[str] = set()
        found = {
            node.target.name
            for node in tree.find_all(nodes.Assign)
            if isinstance(node.target, nodes.Name) and self.is_in(node.node)
        }
        self._aliases = {name} | found

    def is_in(self, node: nodes.Node | None) -> bool:
        while isinstance(node, nodes.Filter):
            node = node.node
        return self.is_itself(node)

    def is_itself(self, node: nodes.Node | None) -> bool:
        if isinstance(node, nodes.Name):
            return node.name in self._aliases
        if isinstance(node, nodes.Getattr):
            return node.attr == self._name
        if isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Slice):
                return self.is_in(node.node)
            return isinstance(node.arg, nodes.Const) and node.arg.value == self._name
        return False

    def is_tested(self, *kinds: str) -> bool:
        return any(test.name in kinds and self.is_in(test.node) for test in self._tree.find_all(nodes.Test))


def _content_format(tree: nodes.Template, content: _Member) -> ContentFormat:
    if not any(content.is_in(loop.iter) for loop in tree.find_all(nodes.For)):
        return "string"
    return "either" if content.is_tested("string") else "parts"


def _text_arguments(tree: nodes.Template) -> bool:
    arguments = _Member(tree, "arguments")
    if arguments.is_tested("string", "mapping") or any(_as_object(tree, arguments.is_itself)):
        return False
    return any(arguments.is_itself(node) for node in _printed(tree))


def _as_object(tree: nodes.Template, is_it: Callable[[nodes.Node | None], bool]) -> Iterator[bool]:
    """Uses that only an object allows: `|tojson`, `|items`, a member or method, a loop."""
    for filter_ in tree.find_all(nodes.Filter):
        yield filter_.name in ("tojson", "items", "dictsort") and is_it(filter_.node)
    for member in tree.find_all((nodes.Getattr, nodes.Getitem)):
        yield is_it(member.node)
    for loop in tree.find_all(nodes.For):
        yield is_it(loop.iter)


def _printed(tree: nodes.Template) -> Iterator[nodes.Node]:
    for output in tree.find_all(nodes.Output):
        yield from output.nodes
    for concat in tree.find_all(nodes.Concat):
        yield from concat.nodes
    for add in tree.find_all(nodes.Add):
        yield from (add.left, add.right)


def join_text(parts: list[dict]) -> str:
    """Text parts as one string, for templates that know no parts."""
    return "\n".join(part["text"] for part in parts)

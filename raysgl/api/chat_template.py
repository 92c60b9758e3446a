"""Chat messages to prompt text with the model's own Jinja template, in a sandbox, with the helpers that templates expect."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import orjson
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from raysgl.api.message_form import ContentFormat, MessageForm, join_text, message_form
from raysgl.api.template_files import DEFAULT, TOOL_USE, model_templates, read_templates

if TYPE_CHECKING:
    from raysgl.api.tokenizer import Tokenizer

CUT_HERE = "\ue000raysgl-continue-here\ue001"
"""Put behind the final message to find its end in the prompt. Private-use characters, so no text has it by chance."""

RESERVED = frozenset(
    {"messages", "tools", "documents", "chat_template", "tokenize", "continue_final_message", "add_generation_prompt"}
)
"""Names that `chat_template_kwargs` may not set: they are request fields of their own, or would replace the template."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What a message's reasoning may be called. Templates read the first, gpt-oss the second."""


class TemplateError(ValueError):
    """The template refused the messages, or failed on them."""


class ChatTemplate:
    """A model's template, or two: one of them for requests with tools.

    tool_source: the one for requests with tools.
    variables: names that the templates read and that are not their own.
    """

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None, tool_source: str | None = None):
        """tool_source: another template for requests with tools, where the model has two. ValueError if one is not Jinja."""
        self.source, self.tool_source = source, source if tool_source is None else tool_source
        self.special_tokens = special_tokens or {}
        self._plain = _Compiled.of(source)
        self._with_tools = self._plain if tool_source is None else _Compiled.of(tool_source)
        self.variables = self._plain.variables | self._with_tools.variables

    @property
    def content_format(self) -> ContentFormat:
        """What `content` is turned into before rendering (see `raysgl.api.message_form`)."""
        return self._plain.form.content

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer, override: str | Path | None = None) -> ChatTemplate | None:
        """The model's own (see `raysgl.api.template_files`), or `override`: a file, or the name of one of the model's.

        None if the model has none. FileNotFoundError if the override is not there, ValueError if a template is not Jinja.
        """
        named = model_templates(Path(folder), tokenizer.chat_template)
        if override is not None:
            named = {DEFAULT: named[str(override)]} if str(override) in named else read_templates(Path(override))
        if not named:
            return None
        source = named[DEFAULT] if DEFAULT in named else next(iter(named.values()))
        return cls(source, tokenizer.special_tokens, named.get(TOOL_USE))

    def render(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt. TemplateError with the template's own message if it raises."""
        template = self._with_tools if tools else self._plain
        messages = [template.prepare(message) for message in messages]
        if continue_final_message:
            add_generation_prompt = False
            _mark_end(messages)
        settings = {**self.special_tokens, **kwargs, "tools": tools, "documents": documents}
        try:
            prompt = template.jinja.render(messages=messages, add_generation_prompt=add_generation_prompt, **settings)
        except RecursionError:
            raise TemplateError("the messages are nested too deeply") from None
        except Exception as error:
            raise TemplateError(f"the chat template says: {error}") from error
        if continue_final_message:
            end = prompt.rfind(CUT_HERE)
            if end < 0:
                raise TemplateError("the chat template does not show the final message, so it cannot be continued")
            prompt = prompt[:end]
        return prompt


@dataclass(frozen=True)
class _Compiled:
    """One template, and what it wants of messages."""

    jinja: jinja2.Template
    form: MessageForm
    variables: frozenset[str]
    knows_developer: bool

    @classmethod
    def of(cls, source: str) -> _Compiled:
        try:
            tree = _ENVIRONMENT.parse(source)
            jinja = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from error
        variables = frozenset(meta.find_undeclared_variables(tree))
        return cls(jinja, message_form(tree), variables, "developer" in source)

    def prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        """A copy in the form that the template expects."""
        message = {name: value for name, value in message.items() if value is not None or name == "content"}
        content = message.get("content")
        if content is None:
            message["content"] = None if self.form.none_content else ""
        elif isinstance(content, list):
            if self.form.content == "string":
                message["content"] = join_text(content)
        elif self.form.content == "parts":
            message["content"] = [{"type": "text", "text": content}]
        if message.get("role") == "developer" and not self.knows_developer:
            message["role"] = "system"
        if message.get("tool_calls"):
            convert = _arguments_as_text if self.form.text_arguments else _arguments_as_object
            message["tool_calls"] = [_with_arguments(call, convert) for call in message["tool_calls"]]
        reasoning = next((message[name] for name in REASONING if name in message), None)
        return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_end(messages: list[dict[str, Any]]) -> None:
    content = messages[-1]["content"] or ""
    if isinstance(content, str):
        messages[-1]["content"] = content + CUT_HERE
    else:
        last = content[-1] if content else {"type": "text", "text": ""}
        messages[-1]["content"] = [*content[:-1], {**last, "text": last["text"] + CUT_HERE}]


def _with_arguments(call: Any, convert: Callable[[Any], Any]) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": convert(function["arguments"])}}


def _arguments_as_object(arguments: Any) -> Any:
    """Clients send a call's arguments as JSON text; most templates expect the object."""
    try:
        return orjson.loads(arguments) if isinstance(arguments, str) else arguments
    except orjson.JSONDecodeError:
        return arguments


def _arguments_as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else _tojson(arguments)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it only shows its body."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


_ENVIRONMENT = _environment()

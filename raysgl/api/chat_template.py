"""Chat messages to prompt text with the model's own Jinja template, in a sandbox, with the helpers that templates expect."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import orjson
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from raysgl.api.content_format import content_format, join_text
from raysgl.api.tokenizer import Tokenizer

CUT_HERE = "\ue000raysgl-continue-here\ue001"
"""Put behind the final message to find its end in the prompt. Private-use characters, so no text has it by chance."""

RESERVED = frozenset({"messages", "tools", "chat_template", "tokenize", "continue_final_message", "add_generation_prompt"})
"""Names that `chat_template_kwargs` may not set: they are request fields of their own, or would replace the template."""


class TemplateError(ValueError):
    """The template refused the messages, or failed on them."""


class ChatTemplate:
    """One model's template.

    content_format: what `content` is turned into before rendering (see `raysgl.api.content_format`).
    variables: names that the template reads and that are not its own.
    """

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None, tool_source: str | None = None):
        """tool_source: another template for requests with tools, where the model has two. ValueError if one is not Jinja."""
        self.source = source
        self._special_tokens = special_tokens or {}
        try:
            tree = _ENVIRONMENT.parse(source)
            self._template = _ENVIRONMENT.from_string(source)
            self._tool_template = self._template if tool_source is None else _ENVIRONMENT.from_string(tool_source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from error
        self.content_format = content_format(tree)
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        self._knows_developer = "developer" in source

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer, override: str | Path | None = None) -> ChatTemplate | None:
        """From `override` if given, else chat_template.jinja, else what tokenizer_config.json has; None without any.

        FileNotFoundError if the override is not there, ValueError if the template is not Jinja.
        """
        if override is not None:
            return cls(_source_of(Path(override)), tokenizer.special_tokens)
        for name in ("chat_template.jinja", "chat_template.json"):
            if (Path(folder) / name).is_file():
                return cls(_source_of(Path(folder) / name), tokenizer.special_tokens)
        found = tokenizer.chat_template
        if isinstance(found, list):  # several, by name
            by_name = {entry["name"]: entry["template"] for entry in found}
            source = by_name.get("default") or next(iter(by_name.values()), None)
            return None if source is None else cls(source, tokenizer.special_tokens, by_name.get("tool_use"))
        return None if not isinstance(found, str) else cls(found, tokenizer.special_tokens)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt. TemplateError with the template's own message if it raises."""
        messages = [self._prepare(message) for message in messages]
        if continue_final_message:
            add_generation_prompt = False
            _mark_end(messages)
        template = self._tool_template if tools else self._template
        settings = {**self._special_tokens, **kwargs, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            prompt = template.render(messages=messages, **settings)
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

    def _prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        """A copy in the form that the template expects."""
        message = {name: value for name, value in message.items() if value is not None or name == "content"}
        content = message.get("content")
        if content is None:
            message["content"] = ""
        elif isinstance(content, list):
            if self.content_format == "string":
                message["content"] = join_text(content)
        elif self.content_format == "parts":
            message["content"] = [{"type": "text", "text": content}]
        if message.get("role") == "developer" and not self._knows_developer:
            message["role"] = "system"
        if message.get("tool_calls"):
            message["tool_calls"] = [_parsed_arguments(call) for call in message["tool_calls"]]
        return message


def _source_of(path: Path) -> str:
    """A template file is Jinja text, or JSON with a chat_template."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        data = json.loads(text)
        text = data["chat_template"] if isinstance(data, dict) else data
    return text


def _mark_end(messages: list[dict[str, Any]]) -> None:
    content = messages[-1]["content"]
    if isinstance(content, str):
        messages[-1]["content"] = content + CUT_HERE
    else:
        last = content[-1] if content else {"type": "text", "text": ""}
        messages[-1]["content"] = [*content[:-1], {**last, "text": last["text"] + CUT_HERE}]


def _parsed_arguments(call: Any) -> Any:
    """Clients send a call's arguments as JSON text; templates expect the object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = orjson.loads(function["arguments"])
    except orjson.JSONDecodeError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


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

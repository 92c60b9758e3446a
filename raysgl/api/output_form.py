"""How the answers of a chat are read, and what they are held to: parser, constraint, and the special tokens that stay in the text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import orjson

from raysgl.api.errors import bad_request
from raysgl.api.parsers.output import Output
from raysgl.api.parsers.reasoning import REASONING_FORMATS, ChannelFormat, ReasoningFormat
from raysgl.api.parsers.registry import OutputParser, tool_format
from raysgl.api.parsers.tool_constraint import CallConstraint, tool_constraint
from raysgl.api.parsers.tool_format import ToolFormat
from raysgl.api.protocol import ChatCompletionRequest
from raysgl.api.served_model import ServedModel
from raysgl.api.tool_use import ToolUse
from raysgl.grammar.limits import MAX_BYTES
from raysgl.sampling.constraint import Constraint

MOST_TOOLS_BYTES = 64 * 1024
"""Of parameters that answers are held to: writing the grammar takes up to half a second for them, beside the event loop."""


@dataclass(frozen=True)
class Asked:
    """The constraint that a request's own fields ask for, and which of them does."""

    constraint: Constraint | None
    field: str | None


@dataclass(frozen=True)
class OutputForm:
    """reasoning: None where what the model thinks stays in the text, or it does not think. calls: None where nothing may be called.
    kept: see `raysgl.api.generation.Prompt`. asked: the constraint. think_end_ids: the tokens behind which the constraint begins, where the
    prompt leaves the model in its reasoning; with `think_begin_id` where the answer may begin with it."""

    reasoning: ReasoningFormat | None
    calls: ToolFormat | None
    use: ToolUse | None
    stream_reasoning: bool
    kept: frozenset[int]
    asked: Asked
    think_end_ids: tuple[int, ...]
    think_begin_id: int | None
    max_thinking: int | None = None
    """Tokens of reasoning, at most."""

    @property
    def parses(self) -> bool:
        """Whether the text is not all of the answer."""
        return self.reasoning is not None or self.calls is not None

    def parser(self) -> OutputParser:
        """Of one choice."""
        most = None if self.use is None or self.use.parallel else 1
        tools = {} if self.use is None else self.use.tools
        return OutputParser(self.reasoning, self.calls, tools, Output(self.stream_reasoning, most))


def output_form(
    request: ChatCompletionRequest, model: ServedModel, use: ToolUse | None, prompt: str, asked: Asked
) -> OutputForm:
    """prompt: its text, or enough of its end. ApiError 400 for tools that this model cannot have."""
    reasoning = None
    if model.reasoning_parser is not None:
        reasoning = _behind(prompt, _continued(request), REASONING_FORMATS[model.reasoning_parser])
    calls, whole = None, False
    if use is not None:
        if model.tool_call_parser is not None:
            calls = tool_format(model.tool_call_parser)
        elif not use.required:
            raise bad_request(
                f"tools need the engine setting tool_call_parser, which {model.name!r} has not; without it tool_choice must be "
                "none, required or a function",
                "tools",
                "unsupported_parameter",
            )
        held = _held(use, model, calls, asked)
        if held is not None:
            calls, asked, whole = held.format, Asked(held.constraint, "tools"), held.whole
    begin_after, may_think = "", None
    budget = _budget(request, reasoning, model)
    if reasoning is not None and ((asked.constraint is not None and not whole) or budget is not None):
        begin_after = reasoning.answer_after
        if not begin_after and _continued(request) is None and not prompt.rstrip().endswith(reasoning.end):
            may_think = _single(reasoning.begin, model)
            if may_think is None and asked.constraint is None:
                raise bad_request(
                    f"max_thinking_tokens needs a model that begins to think with one token, and {reasoning.begin!r} is several "
                    f"for {model.name!r}",
                    "max_thinking_tokens",
                    "unsupported_parameter",
                )
            begin_after = "" if may_think is None else reasoning.end
    kept = model.tokenizer.special_marks((*_tags(reasoning), *_tags(calls)))
    return OutputForm(
        None if request.separate_reasoning is False else reasoning,
        calls,
        use,
        request.stream_reasoning is not False,
        frozenset(kept.values()),
        asked,
        tuple(model.tokenizer.encode(begin_after, add_special_tokens=False)),
        may_think,
        budget,
    )


def bounds_thinking(model: ServedModel) -> bool:
    """Whether `max_thinking_tokens` can have its effect, whatever the prompt says."""
    reasoning = None if model.reasoning_parser is None else REASONING_FORMATS[model.reasoning_parser]
    return reasoning is not None and not isinstance(reasoning, ChannelFormat) and _single(reasoning.begin, model) is not None


def _budget(request: ChatCompletionRequest, reasoning: ReasoningFormat | None, model: ServedModel) -> int | None:
    """ApiError 400 where nobody knows what ends the reasoning."""
    if (most := request.max_thinking_tokens) is None:
        return None
    if reasoning is None:
        problem = f"needs the engine setting reasoning_parser, which {model.name!r} has not"
    elif isinstance(reasoning, ChannelFormat):
        problem = f"is not supported for reasoning_parser {model.reasoning_parser}"
    else:
        return most
    raise bad_request(f"max_thinking_tokens {problem}", "max_thinking_tokens", "unsupported_parameter")


def _single(text: str, model: ServedModel) -> int | None:
    """The token that is all of a text."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 else None


def _held(use: ToolUse, model: ServedModel, calls: ToolFormat | None, asked: Asked) -> CallConstraint | None:
    """What the tools hold the answer to. ApiError 400 where the request asks for something else besides that cannot be joined."""
    answer = None
    if asked.constraint is not None:
        if use.required:
            raise bad_request(f"tool_choice asks for a call, and {asked.field} for something else", asked.field)
        if calls is not None and calls.whole is not None and not use.strict:
            return None  # answers have a mark of their own, behind which the request's constraint begins
        if asked.constraint.kind != "json_schema" or (calls is not None and calls.whole is not None):
            raise bad_request(f"{asked.field} cannot be joined with tools; set tool_choice to none", asked.field)
        answer = orjson.loads(asked.constraint.text)
    if not (use.required or use.strict or answer is not None):
        return None
    tools = orjson.dumps(use.tools)
    if len(tools) > MOST_TOOLS_BYTES:
        raise bad_request(
            f"tools have parameters of {len(tools)} bytes, but answers can be held to at most {MOST_TOOLS_BYTES}", "tools"
        )
    special = model.tokenizer.special_marks(_tags(calls))
    asked_text = None if answer is None else orjson.dumps(answer)
    return _constraint(
        model.tool_call_parser, tools, use.required, use.strict, use.parallel, tuple(special.items()), asked_text
    )


@lru_cache(maxsize=64)
def _constraint(
    name: str | None,
    tools: bytes,
    required: bool,
    strict: frozenset[str],
    parallel: bool,
    special: tuple[tuple[str, int], ...],
    answer: bytes | None,
) -> CallConstraint | None:
    """`tool_constraint`, kept: an agent asks with the same tools again and again. tools, answer: as JSON."""
    schema = None if answer is None else orjson.loads(answer)
    options = {"required": required, "strict": strict, "parallel": parallel, "special": dict(special), "answer": schema}
    held = tool_constraint(name, orjson.loads(tools), **options)
    if held is not None and len(held.constraint.text.encode()) > MAX_BYTES:
        raise bad_request("tools have parameters that make too large a grammar to hold answers to", "tools")
    return held


def _continued(request: ChatCompletionRequest) -> str | None:
    """The text that the answer goes on with, if it goes on with any."""
    last = request.messages[-1] if request.messages else None
    if last is None or last.role != "assistant":
        return None
    if not request.continue_final_message and (last.model_extra or {}).get("prefix") is not True:
        return None
    content = last.content or ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _behind(prompt: str, continued: str | None, format: ReasoningFormat) -> ReasoningFormat:
    """The format of a text behind this prompt: whether it begins in the reasoning is for the prompt to say, where it says anything."""
    if isinstance(format, ChannelFormat):
        return format
    if continued is not None:
        return replace(format, forced=continued.rfind(format.begin) > continued.rfind(format.end))
    end = prompt.rstrip()
    if end.endswith(format.begin):
        return replace(format, forced=True)
    return replace(format, forced=False) if end.endswith(format.end) else format


def _tags(format: ReasoningFormat | ToolFormat | None) -> tuple[str, ...]:
    return () if format is None else format.tags

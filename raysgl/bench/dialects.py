"""How each kind of server is asked for an answer, and how its answers are read: OpenAI's completions and chat, SGLang's /generate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

Part = list[int] | str
"""What one turn adds to a prompt: token ids, or text."""
Prompt = list[int] | str | list[dict[str, str]]
"""What is sent: token ids, text, or a chat's messages."""


@dataclass(frozen=True)
class Asking:
    """What all requests of a run have in common.

    backend: a name in `DIALECTS`. stream: answers come as event streams. ignore_eos: ask for answers of exactly the length.
    answers: keep the answers, to go on from them. extra: other fields of the body.
    """

    model: str
    backend: str = "openai"
    stream: bool = True
    ignore_eos: bool = True
    answers: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Completion:
    """One request's course; times are time.perf_counter() seconds. `error` is empty when all went well.

    arrivals: of events that brought tokens; of a whole answer, its end alone. asked: output tokens that it should have.
    """

    started: float
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    asked: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.started

    @property
    def tpot(self) -> float:
        """Seconds per token after the first."""
        return (self.arrivals[-1] - self.arrivals[0]) / max(1, self.output_tokens - 1)

    @property
    def e2e(self) -> float:
        return self.ended - self.started


class Dialect(Protocol):
    """`path` and `body` make a request; `read` takes in an event of a stream, or a whole answer."""

    path: str
    takes_ids: bool

    def body(self, asking: Asking, prompt: Prompt, tokens: int) -> dict[str, Any]: ...

    def read(self, event: dict[str, Any], asking: Asking, into: Completion) -> bool:
        """Whether it brought tokens."""
        ...

    def begin(self, part: Part) -> Prompt: ...

    def go_on(self, prompt: Prompt, done: Completion, part: Part, made_up: Callable[[int], list[int]]) -> Prompt:
        """The next turn's prompt: the last one, its answer, then `part`. made_up(count): ids for an answer whose ids were not said."""
        ...


class _Plain:
    """A prompt is token ids or text, and a conversation is one prompt that grows."""

    takes_ids = True

    def begin(self, part: Part) -> Prompt:
        return part

    def go_on(self, prompt: Prompt, done: Completion, part: Part, made_up: Callable[[int], list[int]]) -> Prompt:
        if isinstance(prompt, str):
            return f"{prompt}{done.text}\n{part}"
        return [*prompt, *(done.token_ids or made_up(done.asked)), *part]


class OpenAICompletions(_Plain):
    path = "/v1/completions"

    def body(self, asking: Asking, prompt: Prompt, tokens: int) -> dict[str, Any]:
        body = _openai(asking, "max_tokens", tokens) | {"prompt": prompt}
        if asking.answers and not isinstance(prompt, str):
            body["return_token_ids"] = True
        return body

    def read(self, event: dict[str, Any], asking: Asking, into: Completion) -> bool:
        _usage(event, into)
        if not (choices := event.get("choices")):
            return False
        if asking.answers:
            into.text += choices[0].get("text") or ""
            into.token_ids += choices[0].get("token_ids") or ()
        return True


class OpenAIChat:
    path = "/v1/chat/completions"
    takes_ids = False

    def body(self, asking: Asking, prompt: Prompt, tokens: int) -> dict[str, Any]:
        return _openai(asking, "max_completion_tokens", tokens) | {"messages": prompt}

    def read(self, event: dict[str, Any], asking: Asking, into: Completion) -> bool:
        _usage(event, into)
        if not (choices := event.get("choices")):
            return False
        said = choices[0].get("delta") or choices[0].get("message") or {}
        if asking.answers:
            into.text += said.get("content") or ""
        # The first event of a stream may only say whose turn it is, before there is a token.
        return any(value for name, value in said.items() if name != "role") or bool(choices[0].get("finish_reason"))

    def begin(self, part: Part) -> Prompt:
        return [{"role": "user", "content": _text(part)}]

    def go_on(self, prompt: Prompt, done: Completion, part: Part, made_up: Callable[[int], list[int]]) -> Prompt:
        assert isinstance(prompt, list)
        return [*prompt, {"role": "assistant", "content": done.text}, {"role": "user", "content": _text(part)}]


class SGLang(_Plain):
    path = "/generate"

    def body(self, asking: Asking, prompt: Prompt, tokens: int) -> dict[str, Any]:
        sampling = {"max_new_tokens": tokens, "temperature": 0} | ({"ignore_eos": True} if asking.ignore_eos else {})
        extra = dict(asking.extra)
        sampling |= extra.pop("sampling_params", {})
        given = {"text": prompt} if isinstance(prompt, str) else {"input_ids": prompt}
        return given | {"sampling_params": sampling, "stream": asking.stream} | extra

    def read(self, event: dict[str, Any], asking: Asking, into: Completion) -> bool:
        meta = event["meta_info"]
        before, into.output_tokens = into.output_tokens, meta["completion_tokens"]
        into.prompt_tokens = meta["prompt_tokens"]
        into.cached_tokens = meta.get("cached_tokens") or 0
        if asking.answers:
            ids = list(event.get("output_ids") or ())
            if not ids or len(ids) == into.output_tokens:  # a stream's events have all that is known so far
                into.token_ids, into.text = ids, event["text"]
            else:  # or, where the server is set so, what is new
                into.token_ids += ids
                into.text += event["text"]
        return into.output_tokens > before


DIALECTS: dict[str, Dialect] = {"openai": OpenAICompletions(), "openai-chat": OpenAIChat(), "sglang": SGLang()}


def _openai(asking: Asking, limit: str, tokens: int) -> dict[str, Any]:
    body: dict[str, Any] = {"model": asking.model, limit: tokens, "temperature": 0}
    if asking.ignore_eos:
        body["ignore_eos"] = True
    if asking.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | asking.extra


def _usage(event: dict[str, Any], into: Completion) -> None:
    if usage := event.get("usage"):
        into.prompt_tokens = usage["prompt_tokens"]
        into.output_tokens = usage["completion_tokens"]
        into.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _text(part: Part) -> str:
    assert isinstance(part, str), "a chat takes text, not token ids"
    return part

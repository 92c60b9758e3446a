"""Which formats a model writes, by the marks that its chat template shows it: what `auto` stands for."""

from __future__ import annotations

from typing import NamedTuple

from raysgl.api.chat_template import ChatTemplate


class Formats(NamedTuple):
    """Names of a tool-call format and of a reasoning format, None for none."""

    tools: str | None
    reasoning: str | None


_TOOLS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|start|>", "<|channel|>"), "gpt-oss"),
    (("<|tool_call_begin|>",), "kimi_k2"),
    (("<｜tool▁call▁begin｜>", "```json"), "deepseekv3"),
    (("<｜tool▁call▁begin｜>",), "deepseekv31"),
    (("<｜DSML｜",), "deepseekv32"),
    (("<｜tool_calls_begin｜>", "steptml"), "step3"),
    (("<minimax:tool_call>",), "minimax-m2"),
    (("<arg_key>", "\n<arg_value>"), "glm45"),
    (("<arg_key>", "\\n<arg_value>"), "glm45"),
    (("<arg_key>",), "glm47"),
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("<tool_call>", '"arguments"'), "hermes"),
    (("<tool_call>", "'arguments'"), "hermes"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<|action_start|>", "<|plugin|>"), "interns1"),
    (("<|tool_call_start|>",), "lfm2"),
    (("<|tool_list_start|>",), "lfm2"),
    (("<|python_start|>",), "pythonic"),
    (("<|python_tag|>",), "llama3"),
    (("<|start_header_id|>", '"parameters": '), "llama3"),
)
"""Marks that are all there -> name; the first that fits counts, so those that say more stand first."""

_OWN_MARKS = ((("<|channel|>analysis",), "gpt-oss"), (("[THINK]",), "mistral"), (("◁think▷",), "kimi"))
_THINKS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("<|tool_call_begin|>",), "kimi_k2", "kimi_k2"),
    (("<minimax:tool_call>",), "qwen3", "minimax"),
    (("<arg_key>",), "glm45", "glm45"),
    (("[gMASK]",), "glm45", "glm45"),
    (("<｜Assistant｜>",), "deepseek-v3", "deepseek-r1"),
    (("<|im_start|>",), "qwen3", "qwen3-thinking"),
    ((), "qwen3", "deepseek-r1"),
)
"""Models that think between <think> and </think>: marks -> name of one that may, name of one that always does."""
_SWITCHES = {"enable_thinking", "thinking", "thinking_mode", "reasoning_mode"}
"""Variables with which a request turns thinking on and off."""


def detect_formats(template: str) -> Formats:
    """template: a chat template's source. Whether a model that thinks always does so is taken from what follows its generation prompt;
    where the request decides, the prompt of each shows it."""
    tools = next((name for marks, name in _TOOLS if _has(template, marks)), None)
    return Formats(tools, _reasoning(template))


def _reasoning(template: str) -> str | None:
    own = next((name for marks, name in _OWN_MARKS if _has(template, marks)), None)
    if own is not None or ("<think>" not in template and "</think>" not in template):
        return own
    maybe, always = next(names for marks, *names in _THINKS if _has(template, marks))
    return always if not _is_optional(template) and (maybe == "deepseek-v3" or _opens(template)) else maybe


def _opens(template: str) -> bool:
    """Whether the generation prompt leaves the thinking open. (Some templates of DeepSeek R1, which always thinks, do not.)"""
    prompt = template.rpartition("add_generation_prompt")[2]
    return prompt.rfind("<think>") > prompt.rfind("</think>")


def _is_optional(template: str) -> bool:
    try:
        return bool(ChatTemplate(template).variables & _SWITCHES)
    except ValueError:  # it is not Jinja
        return False


def _has(template: str, marks: tuple[str, ...]) -> bool:
    return all(mark in template for mark in marks)

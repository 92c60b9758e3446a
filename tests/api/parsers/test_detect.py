"""Formats by the marks of a chat template: of whole ones, and of what is particular to other families' (not their text)."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysgl.api.parsers.detect import detect_formats
from raysgl.api.parsers.reasoning import REASONING_FORMATS
from raysgl.api.parsers.registry import TOOL_FORMATS

WHOLE = {
    "command_r": (None, None),
    "deepseek_r1": (None, "deepseek-r1"),
    "gemma3": (None, None),
    "glm45": ("glm45", "glm45"),
    "gpt_oss": ("gpt-oss", "gpt-oss"),
    "hermes": ("hermes", None),
    "kimi_k2": ("kimi_k2", None),
    "llama3": ("llama3", None),
    "mistral3": ("mistral", None),
    "qwen25": ("hermes", None),
    "qwen3": ("hermes", "qwen3"),
    "smollm2": (None, None),
    "smollm3": (None, "qwen3"),
}
DEEPSEEK_CALL = "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + "
HERMES_CALL = """{{ '<tool_call>{"name": "' + c.name + '", "arguments": ' + c.arguments + '}</tool_call>' }}"""
PROMPT = "{% if add_generation_prompt %}"
EXCERPTS = [
    (DEEPSEEK_CALL + "c.type + '<｜tool▁sep｜>' + c.name + '\\n```json\\n' }}", "deepseekv3", None),
    (DEEPSEEK_CALL + "c.name + '<｜tool▁sep｜>' }}" + PROMPT + "{{ '<｜Assistant｜>' }}{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}", "deepseekv31", "deepseek-v3"),
    ("{{ m.content.split('</think>')[-1] }}" + PROMPT + "{{ '<｜Assistant｜>' }}{% endif %}", None, "deepseek-r1"),
    ("<tool_call>\n<function={{ c.name }}>" + PROMPT + "<|im_start|>assistant\n{% endif %}", "qwen3_coder", None),
    (HERMES_CALL + PROMPT + "<|im_start|>assistant\n<think>\n{% endif %}", "hermes", "qwen3-thinking"),
    (HERMES_CALL + PROMPT + "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}", "hermes", "qwen3"),
    ("{% set begin = '<minimax:tool_call>' %}" + PROMPT + "{{ ']~b]ai\\n<think>\\n' }}{% endif %}", "minimax-m2", "minimax"),
    ("[gMASK]<sop><tool_call>{{ c.name }}<arg_key>" + PROMPT + "<|assistant|>{{ '</think>' if enable_thinking is false else '<think>' }}{% endif %}", "glm47", "glm45"),
    ("<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name=", "step3", None),
    ("<|action_start|> <|plugin|>\n{{ c }}<|action_end|>", "interns1", None),
    ("<|tool_calls_section_begin|><|tool_call_begin|>{{ '<think></think>' }}", "kimi_k2", "kimi_k2"),
    ("◁think▷{{ m.content }}◁/think▷", None, "kimi"),
    ("[TOOL_CALLS]{{ c.name }}[ARGS] [THINK]{{ m.thinking }}[/THINK]", "mistral", "mistral"),
    ("List of tools: <|tool_list_start|>", "lfm2", None),
    ("<|header_start|>assistant<|header_end|><|python_start|>{{ c }}<|python_end|>", "pythonic", None),
    ("{% if add_generation_prompt %}{{ 'broken' <think>", None, "deepseek-r1"),
    ("", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "formats"), WHOLE.items())
def test_whole_templates(name, formats):
    assert detect_formats((Path(__file__).parents[1] / "chat_templates" / f"{name}.jinja").read_text()) == formats


@pytest.mark.parametrize(("template", "tools", "reasoning"), EXCERPTS)
def test_marks(template, tools, reasoning):
    assert detect_formats(template) == (tools, reasoning)
    assert tools is None or tools in TOOL_FORMATS
    assert reasoning is None or reasoning in REASONING_FORMATS

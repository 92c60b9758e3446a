"""Calls between tags that say `invoke name="..."`: MiniMax-M2, DeepSeek V3.2, Step-3. Arguments are plain text."""

from __future__ import annotations

from raysgl.api.parsers.tagged import Tagged
from raysgl.api.parsers.tool_format import Structure, TextArguments, ToolFormat


def _format(tags: Tagged, line: str, special: tuple[str, ...] = ()) -> ToolFormat:
    """line: between tags."""
    stops = (tags.value_end, tags.key, tags.call_end, tags.end, tags.call)
    texts = TextArguments(tags.key, tags.key_end, tags.value_end + line, stops)
    if tags.flag:
        flagged = (f"{tags.flag}{said}{tags.key_end}" for said in ("true", "false"))
        texts = TextArguments(tags.key, next(flagged), tags.value_end + line, stops, next(flagged))
    structure = Structure(
        f"{tags.call}NAME{tags.name_end}{line}",
        tags.call_end,
        (tags.begin, tags.call),
        section=(tags.begin + "\n", "\n" + tags.end),
        separator="\n",
        arguments=texts,
    )
    return ToolFormat(tags.parse, (tags.begin, tags.end, *special), (structure,))


MINIMAX_M2 = _format(
    Tagged(
        begin="<minimax:tool_call>",
        end="</minimax:tool_call>",
        call='<invoke name="',
        name_end='">',
        call_end="</invoke>",
        key='<parameter name="',
        key_end='">',
        value_end="</parameter>",
    ),
    "\n",
)

DEEPSEEK_V32 = _format(
    Tagged(
        begin="<｜DSML｜function_calls>",
        end="</｜DSML｜function_calls>",
        call='<｜DSML｜invoke name="',
        name_end='">',
        call_end="</｜DSML｜invoke>",
        key='<｜DSML｜parameter name="',
        key_end='">',
        value_end="</｜DSML｜parameter>",
        flag='" string="',
    ),
    "\n",
    ("｜DSML｜",),
)

_STEP_CALL, _STEP_CALL_END, _STEP_SEP = "<｜tool_call_begin｜>", "<｜tool_call_end｜>", "<｜tool_sep｜>"
STEP3 = _format(
    Tagged(
        begin="<｜tool_calls_begin｜>",
        end="<｜tool_calls_end｜>",
        call=f'{_STEP_CALL}function{_STEP_SEP}<steptml:invoke name="',
        name_end='">',
        call_end=f"</steptml:invoke>{_STEP_CALL_END}",
        key='<steptml:parameter name="',
        key_end='">',
        value_end="</steptml:parameter>",
    ),
    "",
    (_STEP_CALL, _STEP_CALL_END, _STEP_SEP),
)

"""A chat template that came with a request, rendered in a process of its own: it can loop for ever or fill the memory.

`python -m raysgl.api.request_template` is that process: its arguments as JSON on stdin, the prompt or the template's complaint on stdout.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from typing import Any

import orjson

from raysgl.api.chat_template import ChatTemplate, TemplateError

MAX_SOURCE_CHARS = 65_536
MAX_PROMPT_BYTES = 8 * 2**20
MAX_MEMORY_BYTES = 1 * 2**30
"""Of address space, the interpreter's own (about 100 MB) included."""
LIMIT_S = 3.0
"""A start of Python with Jinja takes 0.2 s; no real template needs a tenth of the rest."""
AT_A_TIME = 2

_slots: asyncio.Semaphore | None = None


async def render_untrusted(
    source: str, special_tokens: dict[str, str], messages: list[dict[str, Any]], settings: dict[str, Any]
) -> str:
    """`ChatTemplate(source, special_tokens).render(messages, **settings)` within limits of time and memory. TemplateError."""
    global _slots
    _slots = _slots or asyncio.Semaphore(AT_A_TIME)
    if len(source) > MAX_SOURCE_CHARS:
        raise TemplateError(f"the chat template is longer than {MAX_SOURCE_CHARS} characters")
    job = orjson.dumps([source, special_tokens, messages, settings])
    async with _slots:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", __name__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # and no secrets
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                answer, _ = await process.communicate(job)
        except TimeoutError:
            raise TemplateError(f"the chat template took longer than {LIMIT_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode != 0:
        raise TemplateError("the chat template needs too much memory")
    result = orjson.loads(answer)
    if "error" in result:
        raise TemplateError(result["error"])
    return result["prompt"]


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(LIMIT_S) + 1, int(LIMIT_S) + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    source, special_tokens, messages, settings = orjson.loads(sys.stdin.buffer.read())
    try:
        answer = {"prompt": ChatTemplate(source, special_tokens).render(messages, **settings)}
        if len(answer["prompt"]) > MAX_PROMPT_BYTES:
            answer = {"error": f"the chat template's prompt is longer than {MAX_PROMPT_BYTES} characters"}
    except ValueError as error:
        answer = {"error": str(error)[:1000]}
    sys.stdout.buffer.write(orjson.dumps(answer))


if __name__ == "__main__":
    _main()

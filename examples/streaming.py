"""A conversation in the terminal; answers appear as they are written. An empty line or Ctrl-D ends it.

    make serve                                # in one terminal
    .venv/bin/python examples/streaming.py    # in another

Every turn sends the whole conversation. The server has its beginning cached, so that only the new turn is computed: see the
cached tokens after each answer.
"""

import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000/v1", api_key="none")
model = client.models.list().data[0].id
messages = []

while True:
    try:
        question = input("> ").strip()
    except EOFError:
        break
    if not question:
        break
    messages.append({"role": "user", "content": question})
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=300,
        stream=True,
        stream_options={"include_usage": True},
    )
    answer = ""
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            answer += chunk.choices[0].delta.content
            print(chunk.choices[0].delta.content, end="", flush=True)
        if chunk.usage:
            cached = chunk.usage.prompt_tokens_details.cached_tokens
            print()
            print(f"[{cached} of {chunk.usage.prompt_tokens} prompt tokens were cached]", file=sys.stderr)
    messages.append({"role": "assistant", "content": answer})

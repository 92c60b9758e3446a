"""One question, one answer.

make serve                                # in one terminal
.venv/bin/python examples/chat.py "What is the capital of France? Answer briefly."
"""

import sys

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:30000/v1", api_key="none")
model = client.models.list().data[0].id
question = " ".join(sys.argv[1:]) or "What is the capital of France? Answer briefly."

answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    temperature=0,
    max_tokens=200,
)
print(answer.choices[0].message.content)
print(f"[{answer.usage.prompt_tokens} prompt tokens, {answer.usage.completion_tokens} generated]", file=sys.stderr)

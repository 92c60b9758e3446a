"""Two replicas behind one server: questions about the same document go where its beginning is cached already.

    make serve CONFIG=serve_configs/two_replicas.yaml       # in one terminal
    .venv/bin/python examples/two_replicas.py               # in another

Two documents, three questions each. The first question about a document computes it on one of the replicas; the others
find it there: `cached` is how many tokens of the prompt did not have to be computed.
"""

import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000/v1", api_key="none")
model = client.models.list().data[0].id

documents = {
    "the lighthouse": "The lighthouse of Saint Mary was built in 1871 by three brothers who had never seen the sea. " * 15,
    "the railway": "The mountain railway climbs nine hundred metres through twelve tunnels and stops at two villages. " * 15,
}
questions = ["When was it built?", "Who would visit it?", "Describe it in one sentence."]

for question in questions:
    for name, text in documents.items():
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "system", "content": text}, {"role": "user", "content": question}],
            temperature=0,
            max_tokens=24,
        )
        usage = answer.usage
        print(f"{name}: {question}  prompt {usage.prompt_tokens}, cached {usage.prompt_tokens_details.cached_tokens} tokens")
        print(f"    {answer.choices[0].message.content!r}")

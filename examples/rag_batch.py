"""Many questions about one retrieved context, all at once: the context is computed once and shared.

    make serve                                # in one terminal
    .venv/bin/python examples/rag_batch.py    # in another

The context comes first in every prompt and is the same to the letter, so that all prompts begin with the same tokens. The
first request computes it, the others wait for that and go on from there.
"""

import asyncio
import sys
import time

from openai import AsyncOpenAI

PASSAGES = [
    "Passage 1. The harbour of Port Ellin freezes from December to March, so ships unload at Greywater, forty kilometres south.",
    "Passage 2. The railway between Greywater and Port Ellin was finished in 1904 and carries twelve trains a day in winter.",
    "Passage 3. In 1951 a second track was laid, after an avalanche had closed the line for nine days.",
    "Passage 4. The line's oldest locomotive, called Marigold, is kept in the museum of Port Ellin, which opens on Sundays.",
]
QUESTIONS = [
    "In which months does the harbour freeze?",
    "Where do ships unload in winter?",
    "How far is Greywater from Port Ellin?",
    "When was the railway finished?",
    "How many trains run a day in winter?",
    "Why was a second track laid?",
    "What is the oldest locomotive called?",
    "On which day does the museum open?",
]
CONTEXT = "Answer in one short sentence, only from these passages.\n\n" + "\n".join(PASSAGES * 3)


async def ask(client: AsyncOpenAI, model: str, question: str):
    return await client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": CONTEXT}, {"role": "user", "content": question}],
        temperature=0,
        max_tokens=40,
    )


async def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000/v1"
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        model = (await client.models.list()).data[0].id
        start = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, model, question) for question in QUESTIONS))
        seconds = time.perf_counter() - start
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n    {answer.choices[0].message.content.strip()}")
    prompt = sum(answer.usage.prompt_tokens for answer in answers)
    cached = sum(answer.usage.prompt_tokens_details.cached_tokens for answer in answers)
    print(f"{len(answers)} answers in {seconds:.1f} s; {cached} of {prompt} prompt tokens came from the cache")


asyncio.run(main())

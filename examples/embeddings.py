"""Search by meaning: a few texts as vectors, and the one that fits a question best.

make serve CONFIG=serve_configs/embeddings.yaml     # in another terminal
python examples/embeddings.py
"""

from __future__ import annotations

from openai import OpenAI

TEXTS = [
    "The committee meets on the first Monday of each month.",
    "Paris has been the capital of France since 987, with short breaks.",
    "Bread rises because yeast makes gas in the dough.",
    "The Danube flows through ten countries.",
]
QUESTION = "Which city is the seat of the French government?"


def main() -> None:
    client = OpenAI(base_url="http://127.0.0.1:30000/v1", api_key="none")
    answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=[QUESTION, *TEXTS])
    question, *vectors = (entry.embedding for entry in answer.data)
    # The vectors have length 1, so their product is the cosine.
    fits = [sum(a * b for a, b in zip(question, vector)) for vector in vectors]
    for fit, text in sorted(zip(fits, TEXTS), reverse=True):
        print(f"{fit:6.3f}  {text}")


if __name__ == "__main__":
    main()

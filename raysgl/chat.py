"""`raysgl chat`: a small conversation with a running server, through the openai package."""

from __future__ import annotations

import contextlib
import sys

import openai

DIM = "\x1b[2m{}\x1b[0m"


def run(url: str, model: str | None, system: str | None, temperature: float | None) -> str | None:
    """Read lines from stdin, stream the answers to stdout. Returns a sentence when it could not, else None."""
    url = url if "://" in url else f"http://{url}"
    client = openai.OpenAI(base_url=url.rstrip("/").removesuffix("/v1") + "/v1", api_key="none", max_retries=0)
    try:
        served = [entry.id for entry in client.models.list()]
    except openai.APIConnectionError:
        return f"no server answers at {url}; start one with `make serve`, or say --url"
    except openai.APIError as error:
        return f"{url}: {error.message}"
    if not served:
        return f"{url} serves no models"
    if model is not None and model not in served:
        return f"{url} does not serve {model!r}, but: {', '.join(served)}"
    model = model or served[0]
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing in input())
    if sys.stdin.isatty():
        print(f"{model} at {url}; /reset forgets the conversation, Ctrl-C stops an answer, Ctrl-D leaves")
    opening: list = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while True:
        line = _read()
        if line is None:
            return None
        if line == "/reset":
            messages = list(opening)
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        try:
            answer = _answer(client, model, messages, temperature)
        except openai.APIStatusError as error:
            messages.pop()
            print(error.message, file=sys.stderr)
            continue
        except openai.APIError as error:
            return f"the server went away: {error}"
        messages.append({"role": "assistant", "content": answer})


def _read() -> str | None:
    """One line of the user, or None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _answer(client: openai.OpenAI, model: str, messages: list, temperature: float | None) -> str:
    """Print an answer while it comes, and return it. Ctrl-C ends it early; the server then stops computing it. What the model thinks is
    printed too, in grey."""
    pieces, thinking = [], False
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, temperature=openai.omit if temperature is None else temperature
    )
    try:
        for chunk in stream:
            if not chunk.choices:
                continue
            delta = chunk.choices[0].delta
            if thought := (delta.model_extra or {}).get("reasoning_content"):
                print(DIM.format(thought) if sys.stdout.isatty() else thought, end="", flush=True)
                thinking = True
            if delta.content:
                print("\n\n" * thinking + delta.content, end="", flush=True)
                pieces.append(delta.content)
                thinking = False
    except KeyboardInterrupt:
        pass
    finally:
        stream.close()
    print()
    return "".join(pieces)

"""Where a model's chat templates are: files of their own, or tokenizer_config.json; one, or several by name."""

from __future__ import annotations

import json
from pathlib import Path

DEFAULT, TOOL_USE = "default", "tool_use"
"""The names that have a meaning: `tool_use` is for requests with tools."""


def model_templates(folder: Path, in_config: object) -> dict[str, str]:
    """Name -> Jinja source of all that a checkpoint brings; of two places for a name the file of its own wins.

    in_config: what tokenizer_config.json has as chat_template.
    """
    found = _by_name(in_config)
    for file in ("chat_template.json", "chat_template.jinja"):
        if (folder / file).is_file():
            found |= read_templates(folder / file)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    return found


def read_templates(path: Path) -> dict[str, str]:
    """A file of Jinja text, or of JSON that has chat_template. FileNotFoundError; ValueError for JSON without one."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return {DEFAULT: text}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = _by_name(data.get("chat_template") if isinstance(data, dict) else data)
    if not found:
        raise ValueError(f"{path} has no chat_template")
    return found


def _by_name(found: object) -> dict[str, str]:
    """One source, a mapping of names to sources, or Hugging Face's list of {name, template}."""
    if isinstance(found, str):
        return {DEFAULT: found}
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}
    return dict(found) if isinstance(found, dict) else {}

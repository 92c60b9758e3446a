"""Prints docs/configuration.md, made from raysgl/config.py. `make docs` writes it; tests/test_house.py compares."""

from __future__ import annotations

import typing

from pydantic.fields import FieldInfo

from raysgl.config import AppConfig, EngineConfig, ModelConfig, ServerConfig, Settings

HEAD = """\
# Configuration

A config file is a Ray Serve config whose one application has `import_path: raysgl.app:build`; its `args:` are the settings below.
A file with the settings alone (`server:` and `models:` at the top) works too, with `raysgl serve` and `raysgl check`.

An unknown setting, a key given twice, a value that is not allowed or a contradiction is an error that names the field, the value
and what is allowed, before anything starts. That includes the top level of the file, `http_options`, `grpc_options` and
`logging_config`, where Ray Serve itself says nothing. `raysgl check FILE` looks further: it reads each model's config, and says
what would start where and what it would ask for.

<!-- made by `make docs` from raysgl/config.py -->
"""

GROUPS: list[tuple[str, type[Settings], str]] = [
    ("args", AppConfig, "Everything."),
    ("args.server", ServerConfig, "The HTTP side. `raysgl serve --host --port` take precedence."),
    ("args.models[]", ModelConfig, "A model: its engine, and how many replicas of it run where."),
    ("args.models[].engine", EngineConfig, "One replica's engine. The names are SGLang's."),
]


def main() -> None:
    print(HEAD)
    for where, group, summary in GROUPS:
        print(f"## `{where}`\n\n{summary}\n")
        print("| setting | type | default | meaning |\n| --- | --- | --- | --- |")
        for name, field in group.model_fields.items():
            cells = (f"`{name}`", _type(field), _default(field), field.description or "")
            print("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
        print()


def _type(field: FieldInfo) -> str:
    return _named(field.annotation) + "".join(f", {_bound(limit)}" for limit in field.metadata if _bound(limit))


def _named(annotation: object) -> str:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if type(None) in arguments:
        return _named(next(kind for kind in arguments if kind is not type(None)))
    if typing.get_origin(annotation) is list:
        return f"list of {_named(arguments[0])}"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "SecretStr": "text"}.get(
        annotation.__name__, annotation.__name__
    )


def _bound(limit: object) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "at least"}
    return next((f"{word} {getattr(limit, name)}" for name, word in words.items() if hasattr(limit, name)), "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "all defaults"
    return (
        "" if field.default is None else f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
    )


if __name__ == "__main__":
    main()

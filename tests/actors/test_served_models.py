"""What an ingress learns of a model before an engine runs."""

from __future__ import annotations

import logging

import pytest

from raysgl.actors.served_models import load_served_model
from raysgl.bench.server import DEFAULT_MODEL
from raysgl.config import EngineConfig

from ..api.conftest import TEMPLATES


@pytest.mark.parametrize(
    ("template", "settings", "expected"),
    [
        (None, {}, (None, None)),
        ("qwen3", {}, ("hermes", None)),
        ("qwen3", {"reasoning_parser": "auto"}, ("hermes", "qwen3")),
        ("qwen3", {"tool_call_parser": "none", "reasoning_parser": "deepseek-r1"}, (None, "deepseek-r1")),
        ("gpt_oss", {"reasoning_parser": "auto"}, ("gpt-oss", "gpt-oss")),
        ("smollm2", {"tool_call_parser": "pythonic", "reasoning_parser": "auto"}, ("pythonic", None)),
    ],
)
def test_the_formats_of_its_answers(template, settings, expected, caplog):
    caplog.set_level(logging.INFO, "raysgl.actors.served_models")
    path = None if template is None else str(TEMPLATES / f"{template}.jinja")
    model = load_served_model(EngineConfig(model_path=DEFAULT_MODEL, chat_template=path, **settings))
    assert (model.tool_call_parser, model.reasoning_parser) == expected
    auto = [name for name in ("tool_call_parser", "reasoning_parser") if getattr(model.config, name) == "auto"]
    assert [record.args[1] for record in caplog.records] == auto

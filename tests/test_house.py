"""The house itself: import contracts, dependencies, docs, tasks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "raysgl").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Distributions whose import name is another. (PyPI's names, with - and _ the same, else.)
DISTRIBUTIONS = {"yaml": "pyyaml", "zmq": "pyzmq"}
# Used where they are installed, in the function that needs them: kernels that no package on PyPI has alone, and an extra.
OPTIONAL = {
    "opentelemetry",
    "xgrammar",
    "flashinfer",
    "triton",
    "vllm",
    "flash_attn",
    "vllm_flash_attn",
    "flash_attn_interface",
    "accelerate",
    "matplotlib",
}


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


def third_party_imports() -> dict[str, Path]:
    """Top-level module -> a file that imports it."""
    found: dict[str, Path] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                if top not in sys.stdlib_module_names and top not in ("raysgl", "__future__"):
                    found[top] = path
    return found


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    imported = {DISTRIBUTIONS.get(module, module).replace("_", "-"): path for module, path in third_party_imports().items()}
    declared = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    optional = {name.replace("_", "-") for name in OPTIONAL}
    assert not set(imported) - declared - optional, "imported, but not in pyproject.toml"
    # uvicorn picks uvloop and httptools up itself, by name.
    assert not declared - set(imported) - {"httptools", "uvloop"}, "in pyproject.toml, but not imported"


def test_every_dependency_is_pinned():
    pins = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert not {name_of(requirement) for group in groups for requirement in group} - pins - {"raysgl"}


def test_pins_are_exact_and_name_no_registry():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+]+", line), line


def test_import_contracts():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "raysgl.api",
        "raysgl.cache.radix_tree",
        "raysgl.check",
        "raysgl.config_file",
        "raysgl.engine.scheduler",
        "raysgl.messages",
        "raysgl.models.checkpoint",
        "raysgl.routing",
        "raysgl.sampling.params",
    ],
)
def test_light_modules_load_neither_ray_nor_torch(module):
    """The contracts are about imports as written; this is about what really gets loaded."""
    script = f"import sys, {module}; print(*[name for name in ('ray', 'torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_setting_has_an_effect():
    """Each field of the config is read somewhere: nothing is accepted and ignored."""
    from raysgl.config import EngineConfig, ModelConfig, ServerConfig

    texts = [
        path.read_text()
        for path in SOURCES
        if path.name not in ("check.py", "launcher.py") and "bench" not in path.relative_to(ROOT).parts
    ]
    code = "\n".join(texts)
    for group in (ServerConfig, ModelConfig, EngineConfig):
        unread = [name for name in group.model_fields if not re.search(rf"\.{name}\b", code)]
        assert not unread, f"{group.__name__}: {unread}"


def test_configuration_is_documented():
    done = subprocess.run([sys.executable, "docs/make_configuration.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "configuration.md").read_text() == done.stdout, "run `make docs` and commit docs/configuration.md"


def test_every_request_field_is_documented():
    from raysgl.api import native_protocol, protocol, unsupported
    from raysgl.api.anthropic.protocol import MessagesRequest
    from raysgl.api.pooling import protocol as pooling
    from raysgl.api.responses_api.protocol import ResponsesRequest

    kinds = (
        protocol.ChatCompletionRequest,
        protocol.CompletionRequest,
        protocol.TokenizeRequest,
        protocol.TokenizeChatRequest,
        protocol.DetokenizeRequest,
        protocol.AbortRequest,
        protocol.StartProfileRequest,
        protocol.StopProfileRequest,
        protocol.ConfigureLoggingRequest,
        protocol.StreamOptions,
        ResponsesRequest,
        MessagesRequest,
        pooling.EmbeddingsRequest,
        pooling.EncodeRequest,
        pooling.RerankRequest,
        pooling.ScoreRequest,
        pooling.LabelScoreRequest,
        pooling.ClassifyRequest,
        native_protocol.GenerateRequest,
        native_protocol.NativeSampling,
    )
    accepted, refused = (ROOT / "docs" / "api.md").read_text().split("## Refused")
    assert {name for kind in kinds for name in kind.model_fields} <= set(re.findall(r"`(\w+)", accepted))
    assert set(unsupported.ASKS_FOR_NOTHING) <= set(re.findall(r"`(\w+)`", refused))


def test_every_setting_has_a_description():
    from raysgl.config import AppConfig, EngineConfig, ModelConfig, ServerConfig

    for group in (AppConfig, ServerConfig, ModelConfig, EngineConfig):
        assert [name for name, field in group.model_fields.items() if not field.description] == []


def test_links_in_the_docs_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_make_help_lists_every_task():
    makefile = (ROOT / "Makefile").read_text()
    tasks = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    listed = {
        line.split()[1]
        for line in subprocess.check_output(["make", "--no-print-directory", "help"], cwd=ROOT, text=True).splitlines()
    }
    assert tasks == listed


def test_every_package_says_what_belongs_there():
    for init in (ROOT / "raysgl").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), init

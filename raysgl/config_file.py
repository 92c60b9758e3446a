"""Reading a config file: a Ray Serve config whose application is raysgl's, or its `args:` alone.

Ray Serve ignores what it does not know at the top of the file, in `http_options` and elsewhere; here it is an error.
A leaf: imports `raysgl.config` and a YAML reader, neither Ray nor torch.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from raysgl.config import AppConfig, explain, unknown

IMPORT_PATH = "raysgl.app:build"

# What Ray Serve 2.60 knows (ray.serve.schema), group by group; tests/test_config.py compares.
SERVE_KEYS: dict[str, tuple[str, ...]] = {
    "": (
        "proxy_location",
        "http_options",
        "grpc_options",
        "controller_options",
        "logging_config",
        "tracing_config",
        "applications",
        "target_capacity",
    ),
    "http_options": (
        "host",
        "port",
        "root_path",
        "request_timeout_s",
        "keep_alive_timeout_s",
        "ssl_keyfile",
        "ssl_certfile",
        "ssl_keyfile_password",
        "ssl_ca_certs",
    ),
    "grpc_options": ("port", "grpc_servicer_functions", "request_timeout_s", "enable_reflection"),
    "logging_config": ("encoding", "log_level", "logs_dir", "enable_access_log", "additional_log_standard_attrs"),
    "applications": (
        "name",
        "route_prefix",
        "import_path",
        "runtime_env",
        "host",
        "port",
        "deployments",
        "autoscaling_policy",
        "args",
        "logging_config",
        "external_scaler_enabled",
    ),
}


class ConfigError(ValueError):
    """A config file that cannot be served. `problems` holds one sentence each, beginning with the field."""

    def __init__(self, path: str | Path, problems: list[str]):
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))
        self.path = str(path)
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice; PyYAML would keep the last one and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.constructor.ConstructorError(problem=f"{key!r} is given twice", problem_mark=key_node.start_mark)
            if isinstance(key, (str, int)):
                seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: str | Path) -> AppConfig:
    """The validated config in a YAML file. Raises `ConfigError` with every problem found."""
    document = read(path)
    if "applications" not in document and ("models" in document or "server" in document):
        args, prefix = document, ""
    else:
        args, prefix = _application_args(path, document), "applications.0.args."
    try:
        return AppConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigError(path, explain(error, prefix=prefix).splitlines()) from None


def read(path: str | Path) -> dict:
    """A YAML file's mapping. Raises `ConfigError` where there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(path, [f"cannot be read: {reason}"]) from None
    try:
        document = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(path, [f"{line}{error.problem}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError(path, [f"is not YAML: {error}"]) from None
    if not isinstance(document, dict):
        raise ConfigError(path, [f"holds {type(document).__name__}, but must hold settings (`applications:` or `models:`)"])
    return document


def _application_args(path: str | Path, document: dict) -> dict:
    """The `args:` of the one application. Raises `ConfigError` for anything that Serve would ignore or fail on later."""
    problems = _unknown_keys(document, "", "")
    for group in ("http_options", "grpc_options", "logging_config"):
        if document.get(group) is not None:
            problems += _unknown_keys(document[group], group, f"{group}.")
    http_options = document.get("http_options")
    if isinstance(http_options, dict) and http_options.get("request_timeout_s") is not None:
        problems.append("http_options.request_timeout_s: cuts streams that are still running; leave it out")
    applications = document.get("applications")
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], dict):
        problems.append(f"applications: must be a list of one application, with import_path {IMPORT_PATH}")
        raise ConfigError(path, problems)
    application = applications[0]
    problems += _unknown_keys(application, "applications", "applications.0.")
    if application.get("import_path") != IMPORT_PATH:
        problems.append(f"applications.0.import_path: is {application.get('import_path')!r}, but must be {IMPORT_PATH!r}")
    args = application.get("args")
    if not isinstance(args, dict):
        problems.append("applications.0.args: is required: the settings of docs/configuration.md (server, models)")
    if problems:
        raise ConfigError(path, problems)
    assert isinstance(args, dict)
    return args


def _unknown_keys(found: object, group: str, prefix: str) -> list[str]:
    if not isinstance(found, dict):
        return [f"{prefix.rstrip('.')}: is {found!r}, but must be a mapping"]
    known = SERVE_KEYS[group]
    return [unknown(f"{prefix}{key}", str(key), known) for key in found if key not in known]

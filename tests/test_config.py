"""Config: what is refused and in which words, and that nothing is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raysgl.config import VLLM_NAMES, AppConfig, EngineConfig
from raysgl.config_file import SERVE_KEYS, ConfigError, load

ROOT = Path(__file__).parents[1]
MODEL = {"engine": {"model_path": "some/model"}}


def problems(tmp_path: Path, document: object) -> list[str]:
    """What `load` says about a document (or a text); fails if it accepts it."""
    path = tmp_path / "config.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())
    return caught.value.problems


def serve_file(args: object = None, **changes) -> dict:
    application = {"name": "raysgl", "import_path": "raysgl.app:build", "args": {"models": [MODEL]} if args is None else args}
    return {"proxy_location": "Disabled", "applications": [application | changes.pop("application", {})]} | changes


@pytest.mark.parametrize("path", sorted((ROOT / "serve_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    assert load(path).models


@pytest.mark.parametrize("document", [{"models": [MODEL]}, serve_file(), serve_file(http_options={"port": 8000})])
def test_both_forms_of_a_file(tmp_path, document):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    assert load(path).models[0].engine.name == "model"


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"tp_sizee": 2}, ["tp_sizee: unknown setting; did you mean tp_size?"]),
        ({"max_model_len": 2048}, ["max_model_len: unknown setting; did you mean context_length?"]),
        ({"colour": 1}, ["colour: unknown setting; allowed: model_path, served_model_name"]),
        ({"dtype": "int8"}, ["dtype: is 'int8', but must be 'auto', 'float32'"]),
        ({"tp_size": 0}, ["tp_size: is 0, but must be greater than or equal to 1"]),
        ({"tp_size": "two"}, ["tp_size: is 'two', but must be a whole number"]),
        ({"page_size": [16]}, ["page_size: is 'list', but must be a whole number"]),
        ({"disable_radix_cache": "perhaps"}, ["disable_radix_cache: is 'perhaps', but must be true or false"]),
        ({"device": "cpu", "dtype": "float16"}, ["float16", "device cuda"]),
        ({"disable_radix_cache": True, "schedule_policy": "lpm"}, ["lpm", "disable_radix_cache"]),
        ({"chunked_prefill_size": 0}, ["chunked_prefill_size is 0", "at least 1, or -1"]),
        ({"load_format": "gguf"}, ["load_format is gguf", "'some/model'"]),
        ({"max_total_tokens": 8}, ["max_total_tokens is 8", "page_size 16"]),
        (
            {"kv_cache_dtype": "fp8_e4m3", "decode_attention_backend": "flashinfer"},
            ["decode_attention_backend flashinfer", "auto, triton or torch"],
        ),
    ],
)
def test_bad_engine_settings_name_field_value_and_what_is_allowed(tmp_path, engine, said):
    (problem,) = problems(tmp_path, serve_file({"models": [{"engine": MODEL["engine"] | engine}]}))
    assert problem.startswith("applications.0.args.models.0.engine")
    for part in said:
        assert part in problem


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (serve_file(proxy_locaton="Disabled"), "proxy_locaton: unknown setting; did you mean proxy_location?"),
        (serve_file(http_options={"prot": 1}), "http_options.prot: unknown setting; did you mean port?"),
        (serve_file(http_options=[1]), "http_options: is [1], but must be a mapping"),
        (serve_file(http_options={"request_timeout_s": 60}), "http_options.request_timeout_s: cuts streams"),
        (serve_file(logging_config={"loglevel": "INFO"}), "logging_config.loglevel: unknown setting; did you mean log_level?"),
        (
            serve_file(application={"routeprefix": "/"}),
            "applications.0.routeprefix: unknown setting; did you mean route_prefix?",
        ),
        (
            serve_file(application={"import_path": "a:b"}),
            "applications.0.import_path: is 'a:b', but must be 'raysgl.app:build'",
        ),
        (serve_file(application={"args": None}), "applications.0.args: is required"),
        (serve_file({"models": []}), "applications.0.args.models: is 'list', but must be a list of at least one"),
        (serve_file({}), "applications.0.args.models: is required, but missing"),
        ({"applications": []}, "applications: must be a list of one application"),
        ({"modelz": []}, "modelz: unknown setting"),
        ({"models": [{"engine": {}}]}, "models.0.engine.model_path: is required, but missing"),
        ({"models": [MODEL, MODEL]}, "two models are served as 'model'; set served_model_name"),
        ({"models": [MODEL], "server": {"port": 70000}}, "server.port: is 70000"),
        ("[1, 2]", "holds list"),
        ("", "holds NoneType"),
        ("models: [", "line 1: "),
        ("models: []\nmodels: []", "line 2: 'models' is given twice"),
        ("a: b: c", "line 1: "),
    ],
)
def test_bad_files(tmp_path, document, said):
    assert any(problem.startswith(said) or said in problem for problem in problems(tmp_path, document))


def test_all_problems_are_told_at_once(tmp_path):
    engine = {"tp_size": 0, "dtype": "int8"}
    assert len(problems(tmp_path, {"models": [{"engine": engine}], "server": {"hots": "x"}})) == 4


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read: No such file"):
        load(tmp_path / "missing.yaml")


def test_names():
    assert EngineConfig(model_path="a/b/").name == "b"
    assert EngineConfig(model_path="package://m/Some-Model.gguf").name == "Some-Model"
    assert EngineConfig(model_path="x", served_model_name="y").name == "y"


def test_names_of_vllm_lead_to_settings_that_exist():
    assert set(VLLM_NAMES.values()) <= set(EngineConfig.model_fields)
    assert not set(VLLM_NAMES) & set(EngineConfig.model_fields)


def test_serve_keys_are_those_of_the_installed_ray():
    schema = pytest.importorskip("ray.serve.schema")
    kinds = {
        "": schema.ServeDeploySchema,
        "http_options": schema.HTTPOptionsSchema,
        "grpc_options": schema.gRPCOptionsSchema,
        "logging_config": schema.LoggingConfig,
        "applications": schema.ServeApplicationSchema,
    }
    assert {group: set(kind.model_fields) for group, kind in kinds.items()} == {
        group: set(keys) for group, keys in SERVE_KEYS.items()
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
keys = st.sampled_from(["server", "models", "applications", "http_options", "engine", "model_path", "tp_size", "0", "args"])


@given(st.recursive(json_values, lambda inner: st.dictionaries(keys, inner | st.lists(inner, max_size=2), max_size=4)))
def test_whatever_is_in_a_file_there_is_a_config_or_a_reason(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("fuzz") / "config.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    try:
        assert isinstance(load(path), AppConfig)
    except ConfigError as error:
        assert error.problems and all(error.problems)

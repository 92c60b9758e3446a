"""What the server says of itself, and what changes it while it runs."""

from __future__ import annotations

import pytest

from raysgl.api import probe
from raysgl.api.backend import QueueFull, Unavailable
from raysgl.config import EngineConfig
from raysgl.messages import Finish, Load, LoadedWeights, LogSettings, MemoryChange, WeightsUpdate

from .fake_backend import Script
from .test_errors import error_of
from .test_shapes import post


async def get(server, path: str):
    async with server.client() as client:
        return await client.get(path)


@pytest.fixture
def configured(server, model):
    model.config = EngineConfig(model_path="/models/tiny", served_model_name="tiny", tp_size=2)
    model.model_type, model.architectures = "llama", ("LlamaForCausalLM",)
    return server()


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info", "/model_info?model=tiny"])
async def test_model_info(configured, path):
    assert (await get(configured, path)).json() == {
        "model_path": "/models/tiny",
        "served_model_name": "tiny",
        "tokenizer_path": "/models/tiny",
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": "default",
        "load_format": "auto",
        "reasoning_parser": None,
        "tool_call_parser": None,
        "disaggregation_mode": "null",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
    }


async def test_another_model_is_not_found(configured):
    for path in ("/model_info?model=x", "/server_info?model=x", "/v1/loads?model=x"):
        assert (await get(configured, path)).status_code == 404


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
async def test_server_info(configured, path):
    body = (await get(configured, path)).json()
    assert (body["tp_size"], body["port"], body["page_size"]) == (2, 30000, 16)
    (state,) = body["internal_states"]
    assert (state["replica"], state["world_size"], state["tp_size"]) == ("replica-0", 2, 2)
    assert state["memory_usage"]["token_capacity"] == 1600
    assert (state["started_at"], state["startup_seconds"]) == (5.0, {"weights": 2.5})
    assert not [name for name in body if name.endswith("key")]


async def test_loads(configured):
    body = (await get(configured, "/v1/loads")).json()
    assert (body["accelerator"], body["num_accelerators"]) == ("cpu", 2)
    (load,) = body["loads"]
    assert (load["model"], load["replica"], load["dp_rank"]) == ("tiny", "replica-0", 0)
    assert (load["num_running_reqs"], load["num_waiting_reqs"]) == (3, 2)
    assert (load["token_usage"], load["cache_hit_rate"], load["num_used_tokens"]) == (0.2, 0.25, 320)
    assert load["memory"] == {"token_capacity": 1600, "free_tokens": 800, "cached_tokens": 480, "hot_tokens": 0, "released": []}
    assert load["queues"] == {"waiting": 2, "expected_wait": 0.0, "full": False, "retractions": 0}
    (core,) = (await get(configured, "/v1/loads?include=core")).json()["loads"]
    assert "memory" not in core and "queues" not in core and core["num_running_reqs"] == 3
    (memory,) = (await get(configured, "/v1/loads?include=memory,queues")).json()["loads"]
    assert "num_running_reqs" not in memory and {"memory", "queues"} <= set(memory)
    for include, keys in (("core", set()), ("prefixes", {"hot_prefixes"}), ("scaling,core", {"scaling_decisions"})):
        asked = (await get(configured, f"/v1/loads?include={include}")).json()
        assert set(asked) & {"hot_prefixes", "scaling_decisions"} == keys
    text = (await get(configured, "/v1/loads?format=prometheus")).text
    assert 'sglang:num_running_reqs{model_name="tiny",replica="replica-0"} 3.0' in text


@pytest.mark.parametrize("query", ["include=nonsense", "format=xml", "nonsense=1"])
async def test_wrong_queries_are_named(configured, query):
    response = await get(configured, f"/v1/loads?{query}")
    assert response.status_code == 400 and error_of(response)["param"] == query.split("=")[0]


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (Script([[5]]), 200),
        (Script([], error=QueueFull("full", 1)), 200),
        (Script([], error=Unavailable("nobody")), 503),
        (Script([], Finish("error", message="broken", status=500)), 503),
        (Script([], hang=True), 503),
    ],
)
async def test_health_generate(server, monkeypatch, script, status):
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(probe, "LOOK_EVERY_S", 0.05)
    served = server(script)
    assert (await get(served, "/health_generate")).status_code == status
    for stream in served.backend.streams:
        assert stream.finished | stream.aborted == {0}, "the probe is given back"


async def test_health_generate_while_not_ready(server):
    served = server()
    served.backend.is_ready = False
    assert (await get(served, "/health_generate")).status_code == 503
    assert not served.backend.streams
    assert (await get(served, "/ping")).status_code == 200


async def test_invocations_are_chats(server):
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert (await post(server(), "/invocations", body)).json()["object"] == "chat.completion"


async def test_debug_index(configured):
    assert (await get(configured, "/debug/index?model=tiny")).json() == {"status": "equal", "replicas": {}}
    assert (await get(configured, "/debug/index")).status_code == 200
    assert configured.backend.checked == ["tiny", None]
    assert error_of(await get(configured, "/debug/index?model=x"))["code"] == "model_not_found"
    assert error_of(await get(configured, "/debug/index?deep=1"))["param"] == "deep"
    assert len(configured.backend.checked) == 2


async def test_profile(configured):
    request = {"output_dir": "a/b", "num_steps": 5, "activities": ["CPU"], "profile_id": "x", "with_stack": True}
    answer = await post(configured, "/start_profile", request)
    assert answer.json() == {"replicas": {"replica-0": {"ok": True, "message": "said"}}}
    ((sent, model),) = configured.backend.profiles
    assert (sent.folder, sent.num_steps, sent.activities, sent.profile_id) == ("/tmp/a/b", 5, ["CPU"], "x")
    assert sent.with_stack and not sent.record_shapes and model is None
    async with configured.client() as client:
        assert (await client.post("/stop_profile")).status_code == 200
    assert configured.backend.profiles[-1] == (None, None)
    configured.backend.is_ready = False
    assert (await post(configured, "/start_profile", {})).status_code == 400


async def test_memory(configured):
    answer = await post(configured, "/release_memory_occupation", {"tags": ["kv_cache"], "model": "tiny"})
    assert answer.json() == {"replicas": {"replica-0": {"ok": True, "message": "said"}}}
    async with configured.client() as client:
        assert (await client.post("/resume_memory_occupation")).status_code == 200
    every = ["weights", "kv_cache", "cuda_graph"]
    assert configured.backend.memory_changes == [(MemoryChange(True, ["kv_cache"]), "tiny"), (MemoryChange(False, every), None)]
    configured.backend.is_ready = False
    busy = await post(configured, "/release_memory_occupation", {"tags": None})
    assert busy.status_code == 400 and busy.json()["error"]["code"] == "memory_unchanged"
    assert busy.json()["replicas"] == {"replica-0": {"ok": False, "message": "said"}}
    unknown = await post(configured, "/resume_memory_occupation", {"model": "x"})
    assert unknown.status_code == 404 and len(configured.backend.memory_changes) == 3


async def test_update_weights(configured, monkeypatch):
    answer = await post(configured, "/update_weights_from_disk", {"model_path": "/new", "weight_version": "7"})
    assert answer.json() == {"success": True, "message": "said", "replicas": {"replica-0": {"ok": True, "message": "said"}}}
    every = {"abort_all_requests": True, "flush_cache": False, "torch_empty_cache": True, "recapture_cuda_graph": True}
    plain = {"load_format": "safetensors", "is_async": False, "keep_pause": None, "token_step": 0, "model": "tiny"}
    assert (await post(configured, "/update_weights_from_disk", {"model_path": "/new"} | every | plain)).status_code == 200
    assert configured.backend.weight_updates == [
        (WeightsUpdate("/new", version="7"), "tiny"),
        (WeightsUpdate("/new", "safetensors", None, True, False, True, True), "tiny"),
    ]
    configured.backend.is_ready = False
    failed = await post(configured, "/update_weights_from_disk", {"model_path": "/new"})
    assert failed.status_code == 400 and failed.json()["success"] is False
    assert failed.json()["error"]["message"] == "replica-0: said" and failed.json()["error"]["code"] == "weights_unchanged"
    monkeypatch.setattr(configured.backend, "update_weights", no_replica)
    assert (await post(configured, "/update_weights_from_disk", {"model_path": "/new"})).status_code == 503


async def no_replica(update, model):
    return {}


async def test_answers_say_which_weights_made_them(configured):
    configured.backend.weight_version = "7"
    answer = (await post(configured, "/v1/completions", {"prompt": "x", "return_meta_info": True})).json()
    assert answer["metadata"] == {"weight_version": "7"} and answer["choices"][0]["meta_info"]["weight_version"] == "7"
    assert (await post(configured, "/generate", {"text": ["x", "y"]})).json()[1]["meta_info"]["weight_version"] == "7"


async def test_new_weights_are_shown(configured, monkeypatch):
    async def shown(**loads):
        monkeypatch.setattr(configured.backend, "loads", lambda: {"tiny": loads})
        found = (await get(configured, "/model_info")).json()
        return found["model_path"], found["weight_version"]

    old, new, named = (
        Load(),
        Load(weights=LoadedWeights("/new", "auto")),
        Load(weights=LoadedWeights("/new", "auto", "7")),
    )
    assert await shown() == await shown(a=old) == ("/models/tiny", "default")
    assert await shown(a=new, b=new) == ("/new", "default")
    assert await shown(a=named) == ("/new", "7")
    assert await shown(a=old, b=named) == ("/models/tiny, /new", "default, 7")
    await shown(**{"replica-0": named})
    (state,) = (await get(configured, "/server_info")).json()["internal_states"]
    assert (state["model_path"], state["weight_version"], state["released_memory"]) == ("/new", "7", [])


async def test_a_model_whose_memory_is_released_is_well(server, monkeypatch):
    served = server(lambda *_: Script([], error=Unavailable("released")))
    assert (await get(served, "/health_generate")).status_code == 503
    monkeypatch.setattr(served.backend, "loads", lambda: {"tiny": {"replica-0": Load(released=("weights",))}})
    assert (await get(served, "/health_generate")).status_code == 200
    asked = await post(served, "/v1/completions", {"prompt": "x"})
    assert asked.status_code == 503 and error_of(asked)["message"] == "released" and asked.headers["retry-after"] == "1"
    assert (await get(served, "/v1/loads")).json()["loads"][0]["memory"]["released"] == ["weights"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("release_memory_occupation", {"tags": ["weights", "adapters"]}, "tags.1"),
        ("release_memory_occupation", {"tags": []}, "tags"),
        ("resume_memory_occupation", {"tags": "weights"}, "tags"),
        ("resume_memory_occupation", {"level": 1}, "level"),
        ("update_weights_from_disk", {}, "model_path"),
        ("update_weights_from_disk", {"model_path": ""}, "model_path"),
        ("update_weights_from_disk", {"model_path": "/new", "load_format": "pt"}, "load_format"),
        ("update_weights_from_disk", {"model_path": "/new", "is_async": True}, "is_async"),
        ("update_weights_from_disk", {"model_path": "/new", "keep_pause": True}, "keep_pause"),
        ("update_weights_from_disk", {"model_path": "/new", "token_step": 5}, "token_step"),
        ("update_weights_from_disk", {"model_path": "/new", "manifest": {}}, "manifest"),
        ("start_profile", {"output_dir": "/etc"}, "output_dir"),
        ("start_profile", {"output_dir": "../x"}, "output_dir"),
        ("start_profile", {"activities": ["DISK"]}, "activities.0"),
        ("start_profile", {"profile_id": "a/b"}, "profile_id"),
        ("start_profile", {"profile_by_stage": True}, "profile_by_stage"),
        ("start_profile", {"num_steps": 0}, "num_steps"),
        ("stop_profile", {"x": 1}, "x"),
        ("configure_logging", {}, "log_level"),
        ("configure_logging", {"log_level": "loud"}, "log_level"),
    ],
)
async def test_what_is_wrong_is_named(configured, path, body, param):
    response = await post(configured, f"/{path}", body)
    assert response.status_code == 400 and error_of(response)["param"] == param
    assert not configured.backend.profiles and not configured.backend.log_changes
    assert not configured.backend.memory_changes and not configured.backend.weight_updates


async def test_the_log_level_goes_everywhere(configured):
    assert (await post(configured, "/configure_logging", {"log_level": "info"})).json()["log_level"] == "info"
    assert configured.backend.log_changes == [LogSettings("info")]


async def test_the_docs_list_all(server):
    schema = (await get(server(), "/openapi.json")).json()
    for path in (
        "/generate",
        "/model_info",
        "/server_info",
        "/v1/loads",
        "/health_generate",
        "/start_profile",
        "/invocations",
        "/release_memory_occupation",
        "/resume_memory_occupation",
        "/update_weights_from_disk",
    ):
        assert path in schema["paths"]
    assert schema["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]

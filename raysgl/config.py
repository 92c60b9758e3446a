"""Every setting of raysgl: one pydantic tree, validated before anything starts.

`raysgl.app.build` takes an `AppConfig` (the `args:` of a serve config file). Engine settings have SGLang's names.
Unknown settings are refused. `raysgl.config_file.load` reads a file; `explain` turns pydantic's errors into sentences with
the field, the value and what is allowed. `docs/configuration.md` lists every field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

Device = Literal["auto", "cpu", "cuda"]
AttentionName = Literal["auto", "flashinfer", "flash_attn", "triton", "torch"]
MetricsNames = Literal["sglang", "vllm", "both"]
DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]
# The names of `raysgl.api.parsers`, which a leaf cannot import; a test compares them.
ToolCallParser = Literal[
    "auto", "none", "deepseekv3", "deepseekv31", "deepseekv32", "glm", "glm45", "glm47", "gpt-oss", "hermes",
    "interns1", "json", "kimi_k2", "lfm2", "llama3", "mimo", "minimax-m2", "mistral", "pythonic", "qwen", "qwen25",
    "qwen3_coder", "step3",
]  # fmt: skip
ReasoningParser = Literal[
    "auto", "none", "deepseek-r1", "deepseek-v3", "glm45", "gpt-oss", "interns1", "kimi", "kimi_k2", "minimax",
    "minimax-m3", "mistral", "nemotron_3", "qwen3", "qwen3-thinking", "step3",
]  # fmt: skip


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class EngineConfig(Settings):
    """One replica's engine. None means: chosen from the model, the device or a measurement."""

    model_path: str = Field(description="a local folder, a hub id, a .gguf file, or package://<module>/<file>")
    served_model_name: str | None = Field(None, description="what clients call it; default: the last part of model_path")
    tokenizer_path: str | None = Field(None, description="folder or hub id of another tokenizer than the model's")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = Field(
        "auto", description="dummy: random weights of the real shape, for benchmarks"
    )
    weights_from: Literal["auto", "disk", "peer"] = Field(
        "auto",
        description="peer: a live replica of the model, and the disk where there is none; auto: the disk, and a live replica where "
        "the disk has not got them",
    )
    dtype: DType = Field("auto", description="of weights and activations; auto: the checkpoint's on cuda, float32 on cpu")
    context_length: int | None = Field(None, ge=1, description="default: the checkpoint's max_position_embeddings")
    chat_template: str | None = Field(
        None, description="instead of the model's default: a file (Jinja, or JSON that has one), or one of its own by name"
    )
    tool_call_parser: ToolCallParser = Field(
        "auto", description="how the model writes tool calls; auto: as its chat template does; none: they are not looked for"
    )
    reasoning_parser: ReasoningParser = Field(
        "none", description="how it marks what it thinks; auto: by its chat template; none: that stays in the text"
    )
    sampling_defaults: Literal["model", "openai"] = Field(
        "model", description="model: defaults from generation_config.json; openai: the API's"
    )

    is_embedding: bool | None = Field(
        None, description="answer with vectors instead of text; default: where the checkpoint says so"
    )
    pooling: Literal["auto", "last", "mean", "cls"] = Field(
        "auto", description="which token stands for a text, or their mean; auto: as the checkpoint says"
    )
    allow_auto_truncate: bool = Field(
        False, description="of models that make vectors: cut texts that are too long instead of refusing them"
    )
    matryoshka_dimensions: list[int] | None = Field(
        None, min_length=1, description="sizes that vectors may be cut to by `dimensions`; default: the checkpoint's"
    )

    device: Device = Field("auto", description="auto: cuda where the cluster has a GPU, else cpu")
    tp_size: int = Field(1, ge=1, description="tensor parallel shards of one replica")
    cpu_threads: int | None = Field(None, ge=1, description="torch threads of a shard on cpu; default: cores / tp_size")
    attention_backend: AttentionName = Field(
        "auto", description="auto: by what is installed, and measurements on this kind of GPU"
    )
    prefill_attention_backend: AttentionName | None = Field(
        None, description="of steps with prompts in them; default: attention_backend"
    )
    decode_attention_backend: AttentionName | None = Field(
        None, description="of steps of nothing but decode rows; default: attention_backend"
    )
    kv_cache_dtype: Literal["auto", "fp8_e4m3"] = Field(
        "auto",
        description="of keys and values; auto: dtype; fp8_e4m3: 8 bits, so twice the tokens, with the checkpoint's scales if any",
    )
    disable_cuda_graph: bool = Field(False, description="run decode steps kernel by kernel instead of replaying CUDA graphs")
    disable_custom_all_reduce: bool = Field(
        False, description="on cuda with tp_size > 1, leave all sums over ranks to NCCL instead of memory that the GPUs share"
    )
    disable_cascade_attention: bool = Field(
        False, description="on cuda, do not read a prefix that decoding sequences share once for all of them"
    )
    profile_dir: str = Field("/tmp", description="where /start_profile writes, on each shard's node")
    random_seed: int = Field(0, description="of dummy weights")

    page_size: int = Field(16, ge=1, description="tokens in a KV page")
    mem_fraction_static: float | None = Field(None, gt=0, lt=1, description="share of device memory for weights and KV")
    max_total_tokens: int | None = Field(None, ge=1, description="size of the KV pool in tokens; default: what memory allows")
    disable_radix_cache: bool = Field(False, description="compute every prompt from its first token")

    max_running_requests: int | None = Field(
        None, ge=1, description="sequences that run at a time; default 256 on cuda, 64 on cpu; texts to vectors: 256"
    )
    max_queued_requests: int | None = Field(
        None, ge=0, description="waiting requests a replica accepts before 429; default: 4 x max_running_requests; texts: 16384"
    )
    max_queue_seconds: float = Field(
        30.0,
        gt=0,
        description="requests that would wait longer for their turn get a 429, by how fast the queue has been moving",
    )
    chunked_prefill_size: int | None = Field(
        None,
        description="tokens computed in a step at most; default 8192 on cuda, 512 on cpu; -1: prompts are not chunked; of texts 16384 and 512",
    )
    schedule_policy: Literal["fcfs", "lpm"] = Field("fcfs", description="lpm: longest prefix match first")
    schedule_conservativeness: float = Field(1.0, gt=0, description="scales the expected output length at admission")
    disable_overlap_schedule: bool = Field(False, description="plan a step only when the one before is over (always so on cpu)")

    grammar_backend: Literal["auto", "llguidance", "xgrammar", "none"] = Field(
        "auto",
        description="of constrained decoding; auto: llguidance, and xgrammar for what it cannot read; none: refused",
    )
    grammar_compile_timeout_s: float = Field(10.0, gt=0, description="constraints that take longer to compile are refused")
    grammar_cache_entries: int = Field(256, ge=1, description="compiled constraints that are kept")
    grammar_cache_bytes: int = Field(512 * 2**20, ge=1, description="memory that they take at most, about")

    @model_validator(mode="after")
    def _consistent(self) -> EngineConfig:
        if self.chunked_prefill_size is not None and self.chunked_prefill_size < 1 and self.chunked_prefill_size != -1:
            raise ValueError(
                f"chunked_prefill_size is {self.chunked_prefill_size}, but must be at least 1, or -1 for no chunking"
            )
        if self.load_format == "dummy" and self.weights_from == "peer":
            raise ValueError("weights_from is peer, but with load_format dummy every replica makes its weights; set it to auto")
        if self.load_format == "gguf" and not self.model_path.endswith(".gguf"):
            raise ValueError(f"load_format is gguf, but model_path {self.model_path!r} does not end in .gguf")
        if self.device == "cpu" and self.dtype == "float16":
            raise ValueError("dtype float16 needs device cuda; on cpu use float32 or bfloat16")
        for field in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
            if self.kv_cache_dtype == "fp8_e4m3" and getattr(self, field) in ("flash_attn", "flashinfer"):
                raise ValueError(
                    f"kv_cache_dtype fp8_e4m3 is not for {field} {getattr(self, field)}; set it to auto, triton or torch"
                )
        if self.max_total_tokens is not None and self.max_total_tokens < 2 * self.page_size:
            raise ValueError(
                f"max_total_tokens is {self.max_total_tokens}, but must hold two pages of page_size {self.page_size}"
            )
        if self.disable_radix_cache and self.schedule_policy == "lpm":
            raise ValueError("schedule_policy lpm orders by cached prefix and contradicts disable_radix_cache")
        return self

    @property
    def name(self) -> str:
        """What clients put in `model`."""
        if self.served_model_name:
            return self.served_model_name
        return self.model_path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")

    @property
    def source(self) -> str:
        """Where it says that the model is."""
        return f"{self.model_path}@{self.revision or ''}"


class AutoscalingConfig(Settings):
    """How many replicas there are, by load. Scaling is by tokens and memory, not by numbers of requests."""

    min_replicas: int = Field(1, ge=0, description="0: none while nobody asks; the first request then waits for one to start")
    max_replicas: int = Field(ge=1, description="never more than so many")
    target_queue_s: float = Field(
        1.0, gt=0, description="more replicas when the uncached prompt tokens that wait take one longer than this to compute"
    )
    target_kv_use: float = Field(
        0.8, gt=0, le=1, description="more replicas when running sequences hold more than this share of the KV cache"
    )
    target_ttft_s: float | None = Field(None, gt=0, description="more replicas when the first token takes longer on average")
    upscale_delay_s: float = Field(5.0, ge=0, description="how long a signal must ask for more before there are more")
    downscale_delay_s: float = Field(
        300.0,
        ge=0,
        description="how long fewer must do before one goes; and only when the others have room for the prefixes in use",
    )

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, less than min_replicas {self.min_replicas}")
        return self


class ModelConfig(Settings):
    """One model: its engine, and how many replicas of it run where."""

    engine: EngineConfig = Field(description="see EngineConfig")
    num_replicas: int = Field(
        1, ge=1, description="engines with this model, each with tp_size shards; with autoscaling: how many to start with"
    )
    autoscaling: AutoscalingConfig | None = Field(None, description="see AutoscalingConfig; default: num_replicas, always")
    placement_strategy: Literal["STRICT_PACK", "PACK"] = Field(
        "STRICT_PACK", description="of a replica's shards; PACK lets them spread over nodes"
    )
    num_cpus_per_shard: float = Field(1.0, ge=0, description="logical CPUs that Ray reserves for a shard")
    node_labels: dict[str, str] = Field(
        default_factory=dict, description="only nodes with these Ray labels, such as ray.io/accelerator-type: H100"
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="how long a stopping replica lets its requests finish")
    max_surge_percent: int = Field(
        0, ge=0, le=100, description="replicas that an update may start before it stops old ones; 0: none, it needs no room"
    )
    hang_timeout_s: float = Field(
        60.0, gt=0, description="a replica with work whose steps do not end for so long is replaced; long steps get longer"
    )

    @property
    def most_replicas(self) -> int:
        return self.autoscaling.max_replicas if self.autoscaling is not None else self.num_replicas

    @model_validator(mode="after")
    def _within_bounds(self) -> ModelConfig:
        scaling = self.autoscaling
        if scaling is not None and not max(1, scaling.min_replicas) <= self.num_replicas <= scaling.max_replicas:
            raise ValueError(
                f"num_replicas is {self.num_replicas}, but autoscaling starts with {max(1, scaling.min_replicas)} to "
                f"{scaling.max_replicas} replicas"
            )
        return self


class ServerConfig(Settings):
    """The HTTP side."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all")
    port: int = Field(30000, ge=1, le=65535, description="of the HTTP API")
    num_ingress: int = Field(1, ge=1, description="ingress replicas; those of one node share the port")
    routing_policy: Literal["raysgl", "cache_aware", "least_loaded", "round_robin"] = Field(
        "raysgl", description="which replica a request goes to; the others are there to compare with"
    )
    coordinator_shards: int = Field(
        1, ge=1, le=64, description="actors that share the global index of cached prefixes, each a part of all prefixes"
    )
    stream_interval: int = Field(1, ge=1, description="tokens that a stream's chunk waits for, behind the first")
    incremental_streaming_output: bool = Field(
        False, description="streams of /generate carry what is new, instead of all the text so far"
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="larger request bodies get a 413")
    trust_request_chat_template: bool = Field(False, description="let requests bring a chat_template of their own")
    drain_timeout_s: float = Field(10.0, ge=0, description="how long a stopping ingress lets its answers finish")

    api_key: SecretStr | None = Field(None, min_length=1, description="what clients must send; without any key all may call")
    admin_api_key: SecretStr | None = Field(
        None, min_length=1, description="for the endpoints that change or inspect the server"
    )
    api_key_file: str | None = Field(
        None, description="YAML or JSON with more keys: names, limits, allowed models; read again when it changes"
    )

    ssl_certfile: str | None = Field(None, description="PEM file of the server's certificate chain: https instead of http")
    ssl_keyfile: str | None = Field(None, description="its private key, where the certificate's file has none")
    ssl_keyfile_password: SecretStr | None = Field(None, description="of the private key")
    ssl_ca_certs: str | None = Field(None, description="PEM file; clients must show a certificate that one of these signed")
    cors_allow_origins: list[str] = Field(
        [], description="web origins whose pages may call, such as https://chat.example; *: all"
    )
    max_header_bytes: int = Field(64 * 1024, ge=1024, description="larger requests' heads (URL and headers) get a 431")

    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field("info", description="of every process")
    log_format: Literal["text", "json"] = Field("text", description="json: each line an object")
    log_folder: str | None = Field(None, description="every process writes a file of its own there; default: Ray's log files")
    log_requests: bool = Field(False, description="a line for every request when it is over")
    log_requests_level: int = Field(
        1, ge=0, le=3, description="0: times and tokens; 1: and numbers of sampling; 2: and beginnings of texts; 3: all"
    )
    otlp_traces_endpoint: str | None = Field(
        None, pattern=r"^https?://", description="where OpenTelemetry traces go, such as http://127.0.0.1:4318/v1/traces"
    )
    otlp_traces_sample_ratio: float = Field(
        1.0, ge=0, le=1, description="share of the requests that are traced, where the client has not decided"
    )
    show_hot_prefix_text: bool = Field(
        False,
        description="/v1/loads and raysgl top show how hot prefixes begin, to every client with a key: it is text of users",
    )
    metrics_names: MetricsNames = Field("sglang", description="whose names /metrics has")

    @model_validator(mode="after")
    def _tls(self) -> ServerConfig:
        for name in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs"):
            if getattr(self, name) is not None and self.ssl_certfile is None:
                raise ValueError(f"{name} needs ssl_certfile")
        return self

    @property
    def scheme(self) -> str:
        return "http" if self.ssl_certfile is None else "https"


class AppConfig(Settings):
    """The `args:` of a serve config file."""

    server: ServerConfig = Field(default_factory=lambda: ServerConfig(), description="the HTTP side")
    models: list[ModelConfig] = Field(min_length=1, description="what is served; clients choose by name")

    @model_validator(mode="after")
    def _unique_names(self) -> AppConfig:
        names = [model.engine.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are served as {name!r}; set served_model_name")
        return self


VLLM_NAMES = {
    "max_model_len": "context_length",
    "tensor_parallel_size": "tp_size",
    "gpu_memory_utilization": "mem_fraction_static",
    "max_num_seqs": "max_running_requests",
    "max_num_batched_tokens": "chunked_prefill_size",
    "block_size": "page_size",
    "tokenizer": "tokenizer_path",
    "model": "model_path",
    "seed": "random_seed",
    "enable_prefix_caching": "disable_radix_cache",
}
"""Names that people bring from vLLM, and what the nearest setting is called here."""


RULES = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "string_type": "a string",
    "too_short": "a list of at least one",
}
"""What is allowed, by pydantic's name of the problem, where its own words are not plain."""

SECRETS = frozenset({"api_key", "admin_api_key", "key", "sha256", "ssl_keyfile_password"})
"""Settings whose value nobody is shown."""


def explain(error: ValidationError, root: type[BaseModel] = AppConfig, prefix: str = "") -> str:
    """One line for each problem: the field's path, the value, and what is allowed. `root` is the model that refused."""
    lines = []
    for problem in error.errors():
        loc = problem["loc"]
        where = prefix + (".".join(str(part) for part in loc) or "config")
        value, kind, message = problem.get("input"), problem["type"], problem["msg"]
        if kind == "extra_forbidden":
            known = _fields_at(root, loc[:-1])
            lines.append(unknown(where, str(loc[-1]), known))
        elif kind == "missing":
            lines.append(f"{where}: is required, but missing")
        elif kind == "value_error":
            lines.append(f"{where}: {message.removeprefix('Value error, ')}")
        else:
            rule = RULES.get(kind) or message.removeprefix("Input should be ")
            shown = value if not isinstance(value, (dict, list)) else type(value).__name__
            secret = bool(loc) and loc[-1] in SECRETS
            lines.append(f"{where}: " + ("must be " if secret else f"is {shown!r}, but must be ") + rule)
    return "\n".join(lines)


def unknown(where: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a setting that does not exist: what was meant, or else all that there is."""
    known = list(known)
    near = [VLLM_NAMES[name]] if VLLM_NAMES.get(name) in known else difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"{where}: unknown setting; " + (f"did you mean {near[0]}?" if near else "allowed: " + ", ".join(known))


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings of the group at `loc`."""
    for part in loc:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            candidates = [annotation, *get_args(annotation)]
            model = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)

"""What a config would start where, and what it would ask for: `raysgl check`. Starts nothing, imports neither Ray nor torch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from raysgl.config import AppConfig, EngineConfig, ModelConfig, ServerConfig
from raysgl.models.checkpoint import resolve
from raysgl.models.encoder_config import EncoderConfig
from raysgl.models.hf_config import HFConfig, ModelError
from raysgl.models.pooling import PoolingSpec, pooling_spec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


class CheckError(ValueError):
    """The config is well formed, but cannot be served here. `problems` holds one sentence each, beginning with the field."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Machine:
    """This machine's memory in bytes: of the host, and of each GPU."""

    host_memory: int
    gpu_memory: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelPlan:
    """One model. Sizes are bytes and are of one shard.

    kv_tokens: tokens that the KV pool holds if the config says so; None: sized at start, by free memory.
    """

    config: ModelConfig
    hf: HFConfig | EncoderConfig
    pooling: PoolingSpec | None
    device: str
    dtype: str
    weights: int
    kv_per_token: int
    kv_tokens: int | None

    @property
    def gpus(self) -> int:
        """Of one replica."""
        return self.config.engine.tp_size if self.device == "cuda" else 0

    @property
    def cpus(self) -> float:
        """Logical CPUs that Ray reserves for one replica's shards."""
        return self.config.engine.tp_size * self.config.num_cpus_per_shard


@dataclass(frozen=True)
class Layout:
    server: ServerConfig
    models: list[ModelPlan]
    machine: Machine


def plan(config: AppConfig, machine: Machine | None = None) -> Layout:
    """Read every model's config.json and work out the layout. Raises `CheckError` with all problems found."""
    machine = machine or this_machine()
    problems: list[str] = []
    models = []
    for index, model in enumerate(config.models):
        where = f"models.{index}.engine"
        try:
            planned = _plan_model(model, machine)
        except ModelError as error:
            problems.append(f"{where}: {error}")
            continue
        problems += [f"{where}.{problem}" for problem in _problems(planned, machine)]
        models.append(planned)
    if problems:
        raise CheckError(problems)
    return Layout(config.server, models, machine)


def _plan_model(model: ModelConfig, machine: Machine) -> ModelPlan:
    engine = model.engine
    checkpoint = resolve(engine.model_path, engine.revision, engine.load_format, weights=False)
    hf, pooling = checkpoint.config(), pooling_spec(checkpoint.folder, engine)
    hf.check_tp(engine.tp_size)
    device = engine.device if engine.device != "auto" else "cuda" if machine.gpu_memory else "cpu"
    dtype: str = engine.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else hf.dtype if hf.dtype in BYTES else "bfloat16"
    tokens = engine.max_total_tokens
    return ModelPlan(
        config=model,
        hf=hf,
        pooling=pooling,
        device=device,
        dtype=dtype,
        weights=hf.num_parameters() * BYTES[dtype] // engine.tp_size,
        kv_per_token=0 if pooling else hf.kv_bytes_per_token(engine.tp_size, BYTES[dtype]),
        kv_tokens=tokens if tokens is None else tokens // engine.page_size * engine.page_size,
    )


def _problems(model: ModelPlan, machine: Machine) -> list[str]:
    """What would fail at start, each beginning with the setting it is about."""
    engine, found = model.config.engine, []
    if engine.device == "cuda" and not machine.gpu_memory:
        found.append("device: is 'cuda', but this machine has no NVIDIA GPU (nvidia-smi sees none); use auto or cpu")
    if model.device == "cpu" and model.dtype == "float16":
        found.append("dtype: is 'float16', but must be 'float32' or 'bfloat16' on cpu")
    if engine.context_length and engine.context_length > model.hf.max_position_embeddings:
        limit = model.hf.max_position_embeddings
        found.append(f"context_length: is {engine.context_length}, but must be at most the model's {limit}")
    template = engine.chat_template or "default"
    if not template.isidentifier() and not Path(template).is_file():  # an identifier: the name of one of the model's
        found.append(f"chat_template: {engine.chat_template!r} is not a file")
    need = model.weights + model.kv_per_token * (model.kv_tokens or engine.page_size)
    room = min(machine.gpu_memory, default=0) if model.device == "cuda" else machine.host_memory
    if room and need > room:
        setting = "max_total_tokens" if model.weights < room and engine.max_total_tokens else "tp_size"
        found.append(
            f"{setting}: each shard needs {_size(need)} ({_size(model.weights)} of weights), "
            f"but a {'GPU' if model.device == 'cuda' else 'host'} here has {_size(room)}"
        )
    return found


def this_machine() -> Machine:
    """Asks the system and nvidia-smi."""
    import psutil

    gpus: tuple[int, ...] = ()
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            gpus = tuple(int(line) * 2**20 for line in answer.stdout.split() if line.strip().isdigit())
    return Machine(psutil.virtual_memory().total, gpus)


# ------------------------------------------------------------------ in words


def describe(layout: Layout) -> str:
    """The layout as text for people."""
    server = layout.server
    lines = [
        f"URL            {server.scheme}://{server.host}:{server.port}/v1",
        f"ingress        {server.num_ingress} x Serve deployment, no GPU; listens on {server.host}:{server.port}",
        "coordinator    1 x Ray actor, no GPU",
    ]
    for model in layout.models:
        lines += ["", *_describe_model(model)]
    gpus = sum(model.gpus * model.config.most_replicas for model in layout.models)
    cpus = sum(model.cpus * model.config.most_replicas for model in layout.models)
    machine = f"{_size(layout.machine.host_memory)} of memory"
    if layout.machine.gpu_memory:
        machine += f", {len(layout.machine.gpu_memory)} GPU of {_size(layout.machine.gpu_memory[0])}"
    lines += ["", f"asks Ray for   {gpus} GPUs and {cpus:g} CPUs in all, for the shards", f"this machine   {machine}"]
    return "\n".join(lines)


def _describe_model(model: ModelPlan) -> list[str]:
    config, engine, hf = model.config, model.config.engine, model.hf
    gpu = "1 GPU and " if model.gpus else ""
    context = engine.context_length or (model.pooling.max_length if model.pooling else hf.max_position_embeddings)
    return [
        f"model          {engine.name}",
        f"  from         {engine.model_path}" + (" (random weights)" if engine.load_format == "dummy" else ""),
        f"  architecture {hf.architecture}, {hf.num_parameters() / 1e6:,.1f} M parameters, context {context} tokens",
        f"  runs on      {model.device}, {model.dtype}",
        *([f"  answers with {_numbers(model.pooling)}"] if model.pooling else []),
        (
            f"  replicas     {_count(config)} x {engine.tp_size} {'shard' if engine.tp_size == 1 else 'shards'},"
            f" placed {config.placement_strategy}{_where(config)}"
        ),
        f"  each shard   {gpu}{config.num_cpus_per_shard:g} CPU, {_size(model.weights)} of weights, {_kv(model, engine)}",
    ]


def _count(config: ModelConfig) -> str:
    scaling = config.autoscaling
    return str(config.num_replicas) if scaling is None else f"{scaling.min_replicas} to {scaling.max_replicas}"


def _where(config: ModelConfig) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in config.node_labels.items())
    return f" on nodes with {labels}" if labels else ""


def _numbers(pooling: PoolingSpec) -> str:
    if pooling.task == "classify":
        return f"a number for each of {pooling.size} labels" if pooling.size > 1 else "a score"
    return f"vectors of {pooling.size} numbers, pooling {pooling.pooling}"


def _kv(model: ModelPlan, engine: EngineConfig) -> str:
    if model.pooling is not None:
        return "no KV cache"
    if model.kv_tokens is not None:
        return f"{_size(model.kv_tokens * model.kv_per_token)} of KV for {model.kv_tokens} tokens"
    share = "" if engine.mem_fraction_static is None else f" within {engine.mem_fraction_static:g} of its memory"
    return f"KV sized at start{share}, {_size(model.kv_per_token)} a token"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"

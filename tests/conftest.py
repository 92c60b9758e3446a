"""What all tests share: a quiet, offline, small environment, the gpu marker, and tiny checkpoints made by transformers.

Environment variables are set before anything imports torch, transformers or ray, and child processes inherit them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import hypothesis
import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ADDRESS="local",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore = ["clients"]  # they have an environment of their own: `make test-clients`

# Timing is the machine's, not the code's: no deadlines. `ci` repeats the same examples; `thorough` is for the night.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def have_gpu() -> bool:
    """Whether an NVIDIA GPU can be used here. Asks the driver, so that collecting tests imports no torch."""
    if shutil.which("nvidia-smi") is None:
        return False
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return found.returncode == 0 and "GPU" in found.stdout


if not have_gpu():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels then run on the CPU; it looks when it is first imported


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not have_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))
        config.stash[SKIPPED_GPU] = len(marked)


SKIPPED_GPU: pytest.StashKey[int] = pytest.StashKey()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    skipped = config.stash.get(SKIPPED_GPU, 0)
    if skipped:
        terminalreporter.section("GPU tests skipped", sep="!", red=True)
        terminalreporter.line(
            f"{skipped} tests need an NVIDIA GPU and did not run; on a machine with one: make test ARGS='-m gpu'"
        )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """make(family, **config) -> folder of a tiny random float32 checkpoint, made by transformers, once per session.

    `family` is llama, mistral, qwen2 or qwen3; `config` overrides fields of the transformers config.
    """
    made: dict[tuple, Path] = {}

    def make(family: str = "llama", **overrides) -> Path:
        key = (family, repr(sorted(overrides.items())))
        if key not in made:
            made[key] = _make_checkpoint(tmp_path_factory.mktemp(family), family, overrides)
        return made[key]

    return make


def _make_checkpoint(folder: Path, family: str, overrides: dict) -> Path:
    import torch
    import transformers

    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    sizes = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(transformers, f"{name}Config")(**{**sizes, **overrides})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    model.save_pretrained(folder)
    return folder

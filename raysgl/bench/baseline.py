"""transformers `generate` in a process of its own: greedy, float32, one sequence, a fixed number of tokens.

Run as `python -m raysgl.bench.baseline '<json of Job>'`; prints {"seconds": [...]} with one figure for each prompt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from raysgl.bench.load import TEXT, shuffled_prompts


@dataclass
class Job:
    """`path`: a checkpoint folder or a .gguf file. `prompts` of `input_len` tokens each, `output_len` tokens generated."""

    path: str
    threads: int
    prompts: int
    input_len: int
    output_len: int


def measure(job: Job) -> list[float]:
    """Seconds that `generate` took for each prompt, after a warm-up. Runs alone: nothing else should use the cores."""
    done = subprocess.run(
        [sys.executable, "-m", "raysgl.bench.baseline", json.dumps(asdict(job))],
        env={**os.environ, "OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError("transformers failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def _main(job: Job) -> None:
    import torch
    import transformers

    torch.set_num_threads(job.threads)
    path = Path(job.path)
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = str(path.parent if where else path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    seconds = []
    for prompt in shuffled_prompts(ids, job.prompts + 1, job.input_len):
        input_ids = torch.tensor([prompt])
        started = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                min_new_tokens=job.output_len,
                max_new_tokens=job.output_len,
                pad_token_id=0,
            )
        seconds.append(time.perf_counter() - started)
        assert output.shape[1] == job.input_len + job.output_len, output.shape
    print(json.dumps({"seconds": seconds[1:]}))


if __name__ == "__main__":
    _main(Job(**json.loads(sys.argv[1])))

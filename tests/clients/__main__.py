"""`python -m tests.clients PYTHON [pytest's arguments]`: start a server, then run these tests with that interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from raysgl.bench.server import DEFAULT_MODEL, running
from raysgl.models.checkpoint import resolve

HERE = Path(__file__).parent
MODEL = "smollm2"
ENGINE = {
    "model_path": DEFAULT_MODEL,
    "served_model_name": MODEL,
    "chat_template": str(HERE / "tools.jinja"),  # the model's own knows no tools
    "tool_call_parser": "hermes",
    "reasoning_parser": "qwen3",
}
BREAKS_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def main() -> int:
    python, *arguments = sys.argv[1:]
    python = os.path.abspath(python)  # the tests run in another folder
    with running(ENGINE) as server:
        environment = {name: value for name, value in os.environ.items() if name not in BREAKS_OUT} | {
            "RAYSGL_URL": f"http://{server.target.host}:{server.target.port}",
            "RAYSGL_MODEL": MODEL,
            "RAYSGL_TOKENIZER": str(resolve(DEFAULT_MODEL, weights=False).folder),
            "HF_HUB_OFFLINE": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        command = [python, "-m", "pytest", "-c", str(HERE / "pytest.ini"), "--rootdir", str(HERE), str(HERE), *arguments]
        return subprocess.run(command, env=environment, cwd=HERE, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

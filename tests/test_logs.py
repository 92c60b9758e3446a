"""Where a process's log goes, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import logging, sys
from raysgl.logs import log_settings, set_logs
from raysgl.config import ServerConfig
from raysgl.messages import LogSettings
set_logs(log_settings(ServerConfig(log_format="json", log_folder=sys.argv[1] or None, log_level="warning")))
logging.getLogger("raysgl.a").info("hidden")
logging.getLogger("raysgl.a").warning("seen")
set_logs(LogSettings(level="debug", form="text"))
logging.getLogger("raysgl.a").debug("also seen")
"""


def run(folder) -> str:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    return done.stderr


def check(text: str) -> None:
    first, second = text.splitlines()
    assert json.loads(first)["message"] == "seen"
    assert second.endswith("DEBUG raysgl.a: also seen")


def test_stderr():
    check(run(""))


def test_a_folder(tmp_path):
    assert run(tmp_path / "logs") == ""
    (file,) = (tmp_path / "logs").iterdir()
    check(file.read_text())

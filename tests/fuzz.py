"""`make fuzz`: schemathesis against a server of its own, whatever its OpenAPI description lists; no 5xx, no hang.

SmolLM2 with a short context, so that an answer without a limit ends within seconds on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from raysgl.bench.server import DEFAULT_MODEL, Server, running

ENGINE = {"model_path": DEFAULT_MODEL, "context_length": 160, "max_queued_requests": 1000}
CHECKS = ("not_a_server_error", "content_type_conformance", "response_schema_conformance", "status_code_conformance")
HANG_S = 90
"""No answer takes so long: 160 tokens, a few requests at a time."""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--time", type=int, default=600, help="seconds")
    arguments.add_argument("--seed", type=int, help="of an earlier run, to repeat it")
    arguments.add_argument("--report", type=Path, default=Path("fuzz-report.xml"), help="JUnit file to write")
    options, more = arguments.parse_known_args()
    with running(ENGINE) as server:
        code = fuzz(server, options, more)
        return code or still_serves(server)


def fuzz(server: Server, options: argparse.Namespace, more: list[str]) -> int:
    """schemathesis' own exit code and report; it prints the seed and curl commands of what failed."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{_url(server)}/openapi.json"),
        *("--checks", ",".join(CHECKS)),
        *("--max-time", str(options.time)),
        *("--request-timeout", str(HANG_S)),
        *("--workers", "2"),
        *("--exclude-path", "/start_profile"),  # it would record every step from then on
        *("--exclude-path", "/release_memory_occupation"),  # nothing would be served from then on
        *("--exclude-path", "/update_weights_from_disk"),  # "dummy" weights would be
        *("--continue-on-failure", "--warnings", "off", "--no-shrink"),
        *("--max-examples", "100000", "--suppress-health-check", "all"),
        *("--report-junit-path", str(options.report)),
    ]
    if options.seed is not None:
        command += ["--seed", str(options.seed)]
    return subprocess.run([*command, *more], check=False).returncode


def still_serves(server: Server) -> int:
    """One chat afterwards, and no exception in the log."""
    body = json.dumps({"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}).encode()
    request = urllib.request.Request(f"{_url(server)}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=HANG_S) as answer:
        print("afterwards:", json.load(answer)["choices"][0]["message"]["content"])
    log = server.log.read_text(errors="replace")
    if "Traceback" in log:
        print(log[log.index("Traceback") - 500 :][:5000], file=sys.stderr)
        return 1
    return 0


def _url(server: Server) -> str:
    return f"http://{server.target.host}:{server.target.port}"


if __name__ == "__main__":
    sys.exit(main())

"""The `raysgl` command: quick to start, and problems are one sentence on stderr with exit code 1."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

CHUNK = 'data: {{"id":"1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{{"index":0,"delta":{{{0}}}}}]}}\n\n'


def raysgl(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "raysgl.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
    )


@pytest.mark.parametrize(
    "command",
    ["", "serve", "check", "chat", "bench", "bench serve", "bench workloads", "bench cpu", "bench startup", "bench stream"],
)
def test_help(command):
    done = raysgl(*command.split(), "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout


def test_help_imports_little():
    script = (
        "import sys\nfrom raysgl.cli import app\n"
        "heavy = ('ray', 'torch', 'transformers', 'openai', 'fastapi', 'numpy', 'zmq', 'pydantic', 'tokenizers')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_version():
    assert raysgl("--version").stdout.startswith("raysgl 0.")


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("models: [{engine: {model_path: x, tp: 2}}]", "models.0.engine.tp: unknown setting"),
        ("models: [{engine: {model_path: /no/such}}]", "'/no/such' does not exist"),
    ],
)
def test_bad_configs_exit_with_one_sentence(tmp_path, command, text, said):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    done = raysgl(command, str(path))
    assert done.returncode == 1
    assert said in done.stderr and str(path) in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_check_explains(tmp_path, tiny_checkpoint):
    path = tmp_path / "config.yaml"
    path.write_text(f"models: [{{engine: {{model_path: {tiny_checkpoint()}, device: cpu, max_total_tokens: 1000}}}}]")
    done = raysgl("check", str(path))
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM" in done.stdout and "KV for 992 tokens" in done.stdout


def test_chat_says_when_nobody_is_there():
    done = raysgl("chat", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1 and "no server answers at http://127.0.0.1:1" in done.stderr


class Answers(BaseHTTPRequestHandler):
    """A server with one model that says what it was told last, in two chunks."""

    def do_GET(self):
        self.reply("application/json", '{"object":"list","data":[{"id":"tiny","object":"model","created":1,"owned_by":"x"}]}')

    def do_POST(self):
        import json

        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        said = body["messages"][-1]["content"]
        thought = [CHUNK.format('"reasoning_content":"hm"')] * said.startswith("think")
        chunks = thought + [CHUNK.format(f'"content":"{part}"') for part in ("you said ", said)]
        self.reply("text/event-stream", "".join(chunks) + "data: [DONE]\n\n")

    def reply(self, kind, text):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    httpd.asked = []
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_chat_keeps_the_conversation(server):
    url = f"http://127.0.0.1:{server.server_port}"
    done = raysgl("chat", "--url", url, "--system", "be brief", stdin="hello\nagain\n/reset\nnew\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["you said hello", "you said again", "you said new"]
    contents = [[message["content"] for message in body["messages"]] for body in server.asked]
    assert contents == [
        ["be brief", "hello"],
        ["be brief", "hello", "you said hello", "again"],
        ["be brief", "new"],
    ]


def test_chat_shows_what_the_model_thinks_and_forgets_it(server):
    done = raysgl("chat", "--url", f"http://127.0.0.1:{server.server_port}", stdin="think\nwell\n")
    assert done.stdout.split("\n")[:4] == ["hm", "", "you said think", "you said well"]
    assert server.asked[-1]["messages"][1] == {"role": "assistant", "content": "you said think"}


def test_chat_refuses_a_model_that_is_not_served(server):
    done = raysgl("chat", "--url", f"127.0.0.1:{server.server_port}/v1", "--model", "huge")
    assert done.returncode == 1 and "does not serve 'huge', but: tiny" in done.stderr

"""Tokenizers, templates and a model for the API's tests. Nothing here needs torch."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx
import openai
import pytest
import tokenizers
import uvicorn
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from raysgl.api.app import create_app
from raysgl.api.chat_template import ChatTemplate
from raysgl.api.served_model import ServedModel
from raysgl.api.tokenizer import Tokenizer
from raysgl.config import ServerConfig
from raysgl.messages import Finish

from .fake_backend import FakeBackend, Script
from .tooled import MARKS, SAID

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. The capital of France is Paris.",
    "Numbers such as 12345 and 67890, punctuation: (a), [b], {c}; and code: for i in range(10): print(i)",
    "Größe, naïve, façade, 東京 は 日本 の 首都 です。 Привет, мир! 👩‍👩‍👧 🙂 e\u0301",
]


TEMPLATES = Path(__file__).parent / "chat_templates"


def byte_level_tokenizer(folder: Path) -> Path:
    """A small real byte-level BPE tokenizer with ChatML's special tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def pieces_tokenizer(folder: Path) -> Path:
    """A tokenizer of Llama 2's kind: ▁ for spaces, byte fallback, a decoder that strips the first space, BOS."""
    words = ["▁The", "▁quick", "▁fox", "▁", "T", "h", "e", "q", "u", "i", "c", "k", "f", "o", "x", "▁t", "t", "▁Th", "▁q", "▁f"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab |= {word: 259 + i for i, word in enumerate(words)}
    merges = [("▁", "t"), ("▁", "T"), ("▁T", "h")]
    vocab |= {"▁T": len(vocab), "▁The": vocab["▁The"]}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, [*merges, ("▁Th", "e")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def metaspace_tokenizer(folder: Path) -> Path:
    """A kind that the detokeniser has no table for."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], show_progress=False))
    backend.save(str(folder / "tokenizer.json"))
    return folder


def with_marks(folder: Path, marks: tuple[str, ...], special: bool) -> Tokenizer:
    """The tokenizer of `folder`, in which these marks are tokens: special ones, or such as any word's."""
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    add = backend.add_special_tokens if special else backend.add_tokens
    add([tokenizers.AddedToken(mark, special=special, normalized=False) for mark in marks])
    return Tokenizer(backend)


MAKERS = {"bytes": byte_level_tokenizer, "pieces": pieces_tokenizer, "metaspace": metaspace_tokenizer}


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.load(tokenizer_folders["bytes"])


@pytest.fixture
def model(tokenizer: Tokenizer, tokenizer_folders: dict[str, Path]) -> ServedModel:
    template = ChatTemplate.load(tokenizer_folders["bytes"], tokenizer)
    return ServedModel("tiny", "/models/tiny", tokenizer, template, 512, tokenizer.vocab_size, (2,), created=1_700_000_000)


class Server:
    """A backend behind the app: `client` calls it in-process, `live` starts uvicorn on a free port."""

    def __init__(self, backend: FakeBackend, **settings: object):
        self.backend = backend
        self.app = create_app(backend, ServerConfig(**settings))

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    @contextmanager
    def live(self) -> Iterator[int]:
        """The port."""
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", loop="uvloop", http="httptools"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)
            listener.close()
            assert not thread.is_alive()


@pytest.fixture
def server(model: ServedModel) -> Callable[..., Server]:
    """make(script, **settings): `script` is a Script, or a function of (input_ids, sampling, index)."""

    def make(script: object = None, **settings: object) -> Server:
        if script is None:
            script = Script([[token] for token in model.tokenizer.encode("Hello 👩‍👩‍👧 world")], Finish("stop", 2))
            script.steps.append([2])
        return Server(FakeBackend(model, script if callable(script) else lambda *_: script), **settings)

    return make


@pytest.fixture
def thinking(model, tokenizer_folders):
    """The model, with marks that are special tokens, Qwen3's template and both parsers."""
    model.tokenizer = with_marks(tokenizer_folders["bytes"], MARKS, special=True)
    model.vocab_size = model.tokenizer.vocab_size
    model.context_length = 8192
    model.chat_template = ChatTemplate((TEMPLATES / "qwen3.jinja").read_text(), {"eos_token": "<|im_end|>"})
    model.tool_call_parser, model.reasoning_parser = "hermes", "qwen3"
    return model


@pytest.fixture
def saying(thinking, server):
    """saying(text, cuts): the server, which says it in groups of tokens that end there; then the stop token."""
    one = server()

    def make(text: str = SAID, cuts: list[int] | None = None, finish: Finish | None = None):
        ids = thinking.tokenizer.encode(text, add_special_tokens=False)
        bounds = sorted({0, len(ids), *(cut for cut in (range(len(ids)) if cuts is None else cuts) if cut < len(ids))})
        groups = [ids[a:b] for a, b in pairwise(bounds)]
        last = [[2]] if finish is None else [[]]
        script = Script([*groups, *last], finish or Finish("stop", 2))
        one.backend.script = lambda *_: script
        return one

    return make


@pytest.fixture
def tool_client(saying):
    with saying().live() as port, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client:
        yield client

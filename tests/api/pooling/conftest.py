"""A server whose models make numbers of texts: a tokenizer of BERT's kind, and made-up numbers that say what they were made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from raysgl.api.served_model import ServedModel
from raysgl.api.tokenizer import Tokenizer
from raysgl.messages import Finish, SequenceOutput
from raysgl.models.pooling import PoolingSpec

from ..conftest import Server
from ..fake_backend import FakeBackend, FakeStream, Script

CLS, SEP = 1, 2
CONTEXT = 32
EMBED = PoolingSpec("embed", "mean", True, 4, CONTEXT, "BertModel")
SCORE = PoolingSpec("classify", "cls", False, 1, CONTEXT, "BertForSequenceClassification", "sigmoid", ("LABEL_0",), True)
LABELS = PoolingSpec("classify", "cls", False, 3, CONTEXT, "BertForSequenceClassification", "softmax", ("bad", "so-so", "good"))


def numbers_of(ids: list[int], first_segment: int, size: int) -> np.ndarray:
    """What the made-up model makes of a text."""
    seed = sum((i + 1) * token for i, token in enumerate(ids)) * 7 + first_segment
    numbers = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    return numbers / np.linalg.norm(numbers) if size == EMBED.size else numbers


class PoolingBackend(FakeBackend):
    """`hang`: nothing is ever computed. `finish`: how texts end. `error`: raised by submit."""

    def __init__(self, *served: ServedModel):
        super().__init__(served[0], lambda *_: Script([[5], [6]]))
        self.models = {model.name: model for model in served}
        self.finish, self.error, self.hang = Finish("stop"), None, False

    async def submit(self, model, request_id, input_ids, sampling, **settings) -> FakeStream:
        if model.pooling is None:
            return await super().submit(model, request_id, input_ids, sampling, **settings)
        if self.error is not None:
            raise self.error
        await asyncio.sleep(0)
        stream = FakeStream(request_id, input_ids, sampling, **settings)
        self.streams.append(stream)
        if not self.hang:
            numbers = numbers_of(input_ids, settings.get("first_segment", 0), model.pooling.size).tobytes()
            stream.deliver(0, SequenceOutput(0, [], self.finish, cached_tokens=0, timing=(0.1, 0.2), numbers=numbers))
        return stream


@pytest.fixture(scope="session")
def bert_tokenizer() -> Tokenizer:
    """A token a character, lower case; [CLS] a [SEP] b [SEP]."""
    vocab = {"[PAD]": 0, "[CLS]": CLS, "[SEP]": SEP, "[UNK]": 3} | {chr(c): 4 + i for i, c in enumerate(range(ord(" "), 127))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return Tokenizer(backend, {"cls_token": "[CLS]", "sep_token": "[SEP]"})


@pytest.fixture
def pooling_server(bert_tokenizer: Tokenizer, model: ServedModel) -> Callable[..., Server]:
    """make(spec, ...): models named by their kind (embed, score, classify), and, where asked for, one that generates (tiny)."""

    def make(*specs: PoolingSpec, generator: bool = False, **settings: object) -> Server:
        served = [
            ServedModel(spec.kind, "/models/x", bert_tokenizer, None, CONTEXT, bert_tokenizer.vocab_size, (), pooling=spec)
            for spec in specs
        ]
        return Server(PoolingBackend(*served, *([model] if generator else [])), **settings)

    return make

"""A model that makes vectors gives its memory back and takes other weights, like one that generates."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raysgl.config import EngineConfig
from raysgl.distributed import single
from raysgl.engine.defaults import resolve_text_defaults
from raysgl.engine.loop import EngineLoop
from raysgl.engine.occupation import Occupation
from raysgl.engine.pooling.runner import PoolingRunner
from raysgl.engine.pooling.texts import TextScheduler, TextsConfig
from raysgl.engine.weight_update import WeightUpdater
from raysgl.messages import MEMORY_TAGS, ChangeMemory, MemoryChange, Submit, UpdateWeights, WeightsUpdate, pack_ids
from raysgl.models import resolve
from raysgl.models.pooling import pooling_spec
from raysgl.sampling.params import SamplingParams
from tests.models.poolers import save

TEXT = [5, 6, 7, 8, 9]


class Embedder:
    def __init__(self, folder):
        config = EngineConfig(model_path=str(folder), cpu_threads=1)
        checkpoint = resolve(str(folder))
        spec = pooling_spec(checkpoint.folder, config)
        runner = self.runner = PoolingRunner(
            config, checkpoint, spec, resolve_text_defaults(config, "cpu", spec.max_length), "cpu"
        )
        occupation = Occupation(runner, single())
        updater = WeightUpdater(runner, single(), occupation, config, checkpoint)

        def carry_out(message):
            if isinstance(message, UpdateWeights):
                return updater.update(message.update)
            change = message.change
            return occupation.release(change.tags) if change.release else occupation.resume(change.tags)

        self.inbox, self.outputs, self.answers = [], [], []
        self.loop = EngineLoop(
            TextScheduler(TextsConfig(100, 8, 100, 0)),
            runner,
            receive=lambda timeout: [self.inbox.pop(0)] if self.inbox else [],
            emit=lambda news: self.outputs.extend(news["i"]),
            publish=lambda events, load: None,
            answer=lambda ingress, done: self.answers.append(done),
            command=carry_out,
        )

    def submit(self, uid=1):
        self.inbox.append(Submit(uid, "r", "i", pack_ids(TEXT), SamplingParams(), []))

    def run(self):
        while self.inbox or not self.loop.idle:
            self.loop.run_once()
        outputs, self.outputs = self.outputs, []
        return outputs

    def vector(self):
        self.submit()
        (output,) = self.run()
        return np.frombuffer(output.numbers, "<f4")

    def tell(self, command):
        self.inbox.append(command)
        self.loop.run_once()
        return self.answers.pop()


@pytest.mark.parametrize("kind", ["BertModel", "LlamaModel"])
def test_vectors_are_those_of_the_weights_that_are_there(tmp_path, kind):
    first = save(tmp_path / "first", kind)
    second = shutil.copytree(first, tmp_path / "second")
    tensors = load_file(second / "model.safetensors")
    save_file({name: tensor.flip(0).contiguous() for name, tensor in tensors.items()}, second / "model.safetensors")
    engine = Embedder(first)
    old, new = engine.vector(), Embedder(second).vector()
    assert not np.allclose(old, new)

    assert engine.tell(ChangeMemory("i", 1, MemoryChange(True, list(MEMORY_TAGS)))).ok
    assert all(parameter.untyped_storage().nbytes() == 0 for parameter in engine.runner.model.parameters())
    engine.submit()
    assert engine.run()[0].finish.status == 503
    assert engine.tell(ChangeMemory("i", 1, MemoryChange(False, list(MEMORY_TAGS)))).ok
    assert np.array_equal(engine.vector(), old)

    assert engine.tell(UpdateWeights("i", 1, WeightsUpdate(str(second)))).ok
    assert np.array_equal(engine.vector(), new)
    missing = save(tmp_path / "third", kind, hidden_size=16, head_dim=4)
    done = engine.tell(UpdateWeights("i", 1, WeightsUpdate(str(missing))))
    assert not done.ok and "hidden_size (16 instead of 32)" in done.message
    assert np.array_equal(engine.vector(), new)
    assert torch.is_grad_enabled()

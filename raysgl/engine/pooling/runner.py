"""Runs steps of whole texts: where torch begins. Legend: `raysgl.kernels.attention.whole`."""

from __future__ import annotations

import numpy as np
import torch

from raysgl.config import EngineConfig
from raysgl.engine import memory
from raysgl.engine.defaults import EngineLimits
from raysgl.engine.launching import Launching
from raysgl.engine.pending import LaunchedStep
from raysgl.engine.pooling.texts import TextsPlan
from raysgl.kernels.attention.whole import WholeBatch
from raysgl.models import Checkpoint
from raysgl.models.checkpoint import Progress
from raysgl.models.loader import choose_dtype
from raysgl.models.pooled import load_pooled
from raysgl.models.pooling import PoolingSpec
from raysgl.sampling.transfer import download, upload

WARM_UP_TOKENS = 8


class LaunchedTexts(LaunchedStep):
    """A step on its way. order: of the results, as the step's texts were sorted."""

    def __init__(self, results_SR: torch.Tensor, order: np.ndarray):
        super().__init__()
        self._order = order
        self._results_SR = download(results_SR)
        if results_SR.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def result(self) -> np.ndarray:
        """float32, a row for each text, in the plan's order."""
        self.wait(None)
        results_SR = np.empty(self._results_SR.shape, dtype=np.float32)
        results_SR[self._order] = self._results_SR.numpy()
        return results_SR


class PoolingRunner(Launching):
    """See `raysgl.engine.plan.Runner`; its plans are `TextsPlan`s. Not thread safe: one thread launches.

    Raises `ModelError` for a model that cannot be served, or a step that does not fit.
    """

    num_pages = 0

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        spec: PoolingSpec,
        limits: EngineLimits,
        device: torch.device | str,
        progress: Progress | None = None,
    ):
        self.device = torch.device(device)
        self._threads = limits.cpu_threads if self.device.type == "cpu" else 0
        self._use_threads()
        dtype = choose_dtype(config.dtype, checkpoint.config(), self.device)
        with memory.explaining("loading the weights", "choose a smaller model or dtype", self.device):
            self._model = load_pooled(config, checkpoint, spec, self.device, dtype, progress)
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)
            self._stream.wait_stream(torch.cuda.default_stream(self.device))
        if progress is not None:
            progress(0.0, "warming up")
        self._warm_up(limits)

    @property
    def model(self) -> torch.nn.Module:
        """With its weights."""
        return self._model

    def launch(self, plan: TextsPlan) -> LaunchedTexts:
        """Start a step. On a GPU it returns before the step has run."""
        self._use_threads()
        with self._in_stream():
            lengths = np.array([len(ids) for ids in plan.token_ids])
            order = np.argsort(-lengths, kind="stable")
            return LaunchedTexts(self._model(self._batch(plan, order, lengths[order])), order)

    def sample(self, masks: object) -> None:
        """Nothing is sampled."""

    def _batch(self, plan: TextsPlan, order: np.ndarray, lengths: np.ndarray) -> WholeBatch:
        positions_T = np.concatenate([np.arange(length) for length in lengths])
        # A text of its own is all of the first type.
        firsts = np.array([plan.first_segments[i] for i in order])
        types_T = positions_T >= np.repeat(np.where(firsts > 0, firsts, lengths), lengths)
        ids_T = np.concatenate([plan.token_ids[i] for i in order]).astype(np.int64)
        return WholeBatch(
            upload(ids_T, self.device),
            upload(positions_T, self.device),
            upload(types_T.astype(np.int64), self.device),
            lengths.tolist(),
        )

    def _warm_up(self, limits: EngineLimits) -> None:
        """Libraries do their first-time work here. On a GPU the largest step is tried too."""
        self.launch(_plan([min(WARM_UP_TOKENS, limits.context_length)])).result()
        if self._stream is None:
            return
        length = limits.context_length
        count = max(1, min(limits.max_running, limits.step_tokens // length))
        with memory.explaining("running the largest step", "lower chunked_prefill_size or context_length", self.device):
            self.launch(_plan([length] * count)).result()


def _plan(lengths: list[int]) -> TextsPlan:
    return TextsPlan([np.ones(length, dtype=np.int32) for length in lengths], [0] * len(lengths))

"""Runs a blocking runner's steps in a thread of their own, so that the loop stays awake while the CPU computes.

On a GPU `launch` returns at once anyway. On a CPU a prefill chunk may take a second; with this, requests that went away give their
pages back meanwhile, and what was sampled is sent without delay.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from queue import SimpleQueue

from raysgl.engine.plan import Runner, StepPlan, StepResult


class BackgroundStep:
    """A step that the thread has run, runs, or will run."""

    def __init__(self, future: Future[StepResult]):
        self._future = future

    def wait(self, timeout: float | None) -> bool:
        return bool(wait([self._future], timeout).done)

    def result(self) -> StepResult:
        return self._future.result()


class BackgroundRunner:
    """Runs `launch` of `runner` to its end in one thread, in order."""

    def __init__(self, runner: Runner):
        self.num_pages = runner.num_pages
        self._runner = runner
        self._queue: SimpleQueue[tuple[StepPlan, Future[StepResult]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="step", daemon=True).start()

    def launch(self, plan: StepPlan) -> BackgroundStep:
        future: Future[StepResult] = Future()
        self._queue.put((plan, future))
        return BackgroundStep(future)

    def close(self) -> None:
        """End the thread after what is queued."""
        self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            plan, future = item
            try:
                future.set_result(self._runner.launch(plan).result())
            except BaseException as error:  # noqa: BLE001  (it belongs to whoever asks for the result)
                future.set_exception(error)

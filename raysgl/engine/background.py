"""Runs a blocking runner's steps in a thread of their own, so that the loop stays awake while the CPU computes.

On a GPU `launch` returns at once anyway. On a CPU a prefill chunk may take a second; with this, requests that went away give their
pages back meanwhile, and what was sampled is sent without delay.

The runner is also made in that thread, and everything else that computes in parallel must be: OpenMP keeps a team of threads for each
thread that ever led one, and where teams have more threads than there are cores, none of them spins between two parallel
regions any more. A decode step of SmolLM2 on 2 cores took 47 ms with the runner made in another thread, and 29 ms like this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from raysgl.engine.plan import Runner, StepPlan, StepResult
from raysgl.sampling.token_masks import TokenMasks

R = TypeVar("R", bound=Runner)
T = TypeVar("T")


class BackgroundStep:
    """A step that the thread has run, runs, or will run."""

    def __init__(self, future: Future[StepResult]):
        self._future = future

    def wait(self, timeout: float | None) -> bool:
        return bool(wait([self._future], timeout).done)

    def ending(self) -> bool:
        return True

    def result(self) -> StepResult:
        return self._future.result()


class BackgroundRunner(Generic[R]):
    """Makes a runner by `make()` and runs its `launch` to the end, in one thread, in order. `runner` is the one made.

    samples: whether this rank samples, and so is given masks; the others get rank 0's tokens.

    Raises what `make` raises.
    """

    def __init__(self, make: Callable[[], R], samples: bool = True):
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._masks: SimpleQueue[TokenMasks | None] = SimpleQueue()
        self._samples = samples
        made: Future[R] = Future()
        threading.Thread(target=self._work, args=(make, made), name="step", daemon=True).start()
        self.runner = made.result()
        self.num_pages = self.runner.num_pages

    def launch(self, plan: StepPlan) -> BackgroundStep:
        return BackgroundStep(self._submit(lambda: self._run(plan)))

    def call(self, function: Callable[[], T]) -> T:
        """Run it in the thread, behind the steps that have been launched. Raises what it raises."""
        return self._submit(function).result()

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put((work, future))
        return future

    def sample(self, masks: TokenMasks | None) -> None:
        self._masks.put(masks)

    def _run(self, plan: StepPlan) -> StepResult:
        step = self.runner.launch(plan)
        if plan.guided and self._samples:
            self.runner.sample(self._masks.get())
        return step.result()

    def close(self) -> None:
        """End the thread after what is queued."""
        self._queue.put(None)

    def _work(self, make: Callable[[], R], made: Future[R]) -> None:
        try:
            runner = make()
        except BaseException as error:  # noqa: BLE001  (it belongs to whoever asked for the runner)
            made.set_exception(error)
            return
        made.set_result(runner)
        while (item := self._queue.get()) is not None:
            work, future = item
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  (it belongs to whoever asks for the result)
                future.set_exception(error)

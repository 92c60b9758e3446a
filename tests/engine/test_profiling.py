"""torch's profiler around steps: it writes a trace of them, and leaves the runner as it was."""

from __future__ import annotations

import gzip
import json

import torch

from raysgl.engine.background import BackgroundRunner
from raysgl.engine.plan import StepPlan
from raysgl.engine.profiling import StepProfiler
from raysgl.messages import ProfileRequest

PLAN = StepPlan(0, b"", b"", b"", b"", 0, b"", b"", b"", b"", [])


class Step:
    def wait(self, timeout):
        return True

    def result(self):
        return None


class Runner:
    num_pages = 1

    def launch(self, plan):
        torch.ones(3).cumsum(0)
        return Step()


def names(path: str) -> set[str]:
    return {event.get("name") for event in json.loads(gzip.open(path).read())["traceEvents"]}


def test_steps_are_recorded_in_the_thread_that_runs_them(tmp_path):
    runner = BackgroundRunner(Runner)
    profiler = StepProfiler(runner.runner, "model#1", 0)
    request = ProfileRequest(str(tmp_path / "new"), "p", ["CPU"])
    assert runner.call(profiler.stop) == (False, "no profile is being recorded")
    assert runner.call(lambda: profiler.start(request))[0]
    assert not runner.call(lambda: profiler.start(request))[0], "one at a time"
    runner.launch(PLAN).result()
    ok, path = runner.call(profiler.stop)
    assert ok and path == str(tmp_path / "new" / "p-model_1-TP-0.trace.json.gz")
    assert "aten::cumsum" in names(path)
    runner.close()


def test_it_stops_after_so_many_steps(tmp_path):
    runner = Runner()
    profiler = StepProfiler(runner, "r", 1)
    assert profiler.start(ProfileRequest(str(tmp_path), "p", ["CPU"], num_steps=2))[0]
    runner.launch(PLAN)
    assert not list(tmp_path.iterdir())
    runner.launch(PLAN)
    (path,) = tmp_path.iterdir()
    assert "aten::cumsum" in names(str(path))
    assert "launch" not in vars(runner)
    assert not profiler.stop()[0]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    ok, message = StepProfiler(Runner(), "r", 0).start(ProfileRequest(str(tmp_path / "file" / "x"), "p", ["CPU"]))
    assert not ok and "cannot be made" in message

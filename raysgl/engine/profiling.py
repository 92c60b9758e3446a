"""torch's profiler around a shard's steps, switched on and off while it serves. Costs nothing while it is off."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from raysgl.engine.plan import Runner, StepPlan
from raysgl.messages import ProfileRequest

log = logging.getLogger(__name__)

ACTIVITIES = {"CPU": ProfilerActivity.CPU, "GPU": ProfilerActivity.CUDA}


class StepProfiler:
    """Records what `runner` launches. Must be called in the thread that launches, whose operations torch records."""

    def __init__(self, runner: Runner, replica: str, rank: int):
        self._runner, self._replica, self._rank = runner, replica, rank
        self._profile: profile | None = None
        self._request: ProfileRequest | None = None
        self._left = 0

    def start(self, request: ProfileRequest) -> tuple[bool, str]:
        """Whether it has begun, and a sentence about it. With `num_steps` it ends by itself."""
        if self._profile is not None:
            return False, "a profile is being recorded already; stop it first"
        activities = [ACTIVITIES[name] for name in request.activities if name != "GPU" or torch.cuda.is_available()]
        if not activities:
            return False, "there is no GPU to profile"
        try:
            Path(request.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return False, f"{request.folder} cannot be made: {error.strerror}"
        self._request, self._left = request, request.num_steps
        self._profile = profile(activities=activities, with_stack=request.with_stack, record_shapes=request.record_shapes)
        self._profile.start()
        if request.num_steps:
            self._runner.launch = self._counted  # type: ignore[method-assign]
        return True, f"recording into {request.folder}"

    def stop(self) -> tuple[bool, str]:
        """Whether a trace has been written, and where."""
        if self._profile is None:
            return False, "no profile is being recorded"
        recorded, self._profile = self._profile, None
        self._runner.__dict__.pop("launch", None)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        recorded.stop()
        name = f"{self._request.profile_id}-{self._replica}-TP-{self._rank}.trace.json.gz".replace("/", "_").replace("#", "_")
        path = Path(self._request.folder) / name
        recorded.export_chrome_trace(str(path))
        log.info("profile written to %s", path)
        return True, str(path)

    def _counted(self, plan: StepPlan):
        step = type(self._runner).launch(self._runner, plan)
        self._left -= 1
        if self._left <= 0 and not plan.guided:  # a guided step ends when its masks come, after this
            step.wait(None)
            self.stop()
        return step

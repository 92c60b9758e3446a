"""What is a hang and what is only long: without an engine, and with a real loop whose model stops or is slow."""

from __future__ import annotations

import threading
import time

import pytest

from raysgl.engine.background import BackgroundRunner
from raysgl.engine.watchdog import FACTOR, GLANCE_S, UNKNOWN_S, Vitals, Watchdog
from tests.engine.simulated import Engine


def first_complaint(vitals, patience_s, every=1.0, until=10_000) -> float | None:
    """vitals(second) of an engine that is looked at every so many seconds: when the watchdog complains."""
    watchdog, now = Watchdog(patience_s), 0.0
    while now < until:
        if watchdog.look(vitals(now), now):
            return now
        now += every
    return None


@pytest.mark.parametrize(
    ("vitals", "patience_s", "complains"),
    [
        (lambda now: Vitals(int(now), False), 5, None),
        (lambda now: Vitals(3, True), 5, None),
        (lambda now: Vitals(3, False, 0.1), 5, 6),
        (lambda now: Vitals(3, False, 2.0), 5, 2 * FACTOR + 1),
        (lambda now: Vitals(3, False, None), 5, UNKNOWN_S + 1),
        (lambda now: None, 5, 6),
        (lambda now: Vitals(9, False, 2.0) if now < 7 else None, 5, 2 * FACTOR + 1),
        (lambda now: Vitals(1, now < 100, 0.1), 5, 105),
        (lambda now: Vitals(int(now / 30), False, 2.9), 5, None),
    ],
)
def test_when_it_complains(vitals, patience_s, complains):
    assert first_complaint(vitals, patience_s) == complains


def test_who_could_not_look_saw_no_hang():
    watchdog = Watchdog(3 * GLANCE_S)
    looks = [watchdog.look(Vitals(1, False, 0.1), now) for now in (0, 1000, 2000, 3000, 4000)]
    assert [bool(look) for look in looks] == [False] * 4 + [True]


class Stopping:
    """A runner that takes so many seconds a prompt token, and stops for good when told to."""

    seconds_per_token = 0.0
    stopped = False

    def __init__(self, inner):
        self._inner = inner
        self.num_pages = inner.num_pages

    def launch(self, plan):
        time.sleep(self.seconds_per_token * len(plan.token_ids_T) / 4)
        while self.stopped:
            time.sleep(0.005)
        return self._inner.launch(plan)


@pytest.fixture
def engine(request):
    engine = Engine(num_pages=400, step_tokens=1000)
    engine.stopping = Stopping(engine.runner)
    engine.stopping.seconds_per_token = request.param
    engine.loop._runner = BackgroundRunner(lambda: engine.stopping)
    engine.submit(1, list(range(40)), max_new=3)
    thread = threading.Thread(target=engine.loop.run, daemon=True)
    thread.start()
    yield engine
    engine.stopping.stopped = False
    engine.loop.stop()
    thread.join()


def watch(engine, patience_s, until) -> str | None:
    watchdog, limit = Watchdog(patience_s), time.monotonic() + 20
    while not until() and time.monotonic() < limit:
        if complaint := watchdog.look(engine.loop.vitals(), time.monotonic()):
            return complaint
        time.sleep(0.01)
    return None


@pytest.mark.parametrize("engine", [0.0], indirect=True)
def test_a_loop_whose_model_stops_hangs_and_an_idle_one_does_not(engine):
    assert watch(engine, 0.1, lambda: engine.loop.idle and 1 in engine.outputs) is None
    engine.stopping.stopped = True
    began = time.monotonic()
    assert watch(engine, 0.1, lambda: time.monotonic() > began + 0.5) is None, "idle, though its model would not run"
    engine.submit(2, list(range(50)), max_new=3)
    assert "no step ends" in watch(engine, 0.1, lambda: False)


@pytest.mark.parametrize("engine", [0.001], indirect=True)
def test_a_long_prefill_is_no_hang(engine):
    assert watch(engine, 0.1, lambda: engine.loop.idle and 1 in engine.outputs) is None
    engine.submit(3, [7, *range(49)], max_new=1)
    engine.submit(2, list(range(1, 900)), max_new=3)  # 0.9 s in one step
    assert watch(engine, 0.1, lambda: 2 in engine.outputs and 3 in engine.outputs) is None
    assert len(engine.tokens(2)) == 3

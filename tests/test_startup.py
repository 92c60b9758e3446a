"""What a start is told to have taken."""

from __future__ import annotations

import re
import time
from pathlib import Path

import raysgl.engine.runner
from raysgl import startup
from raysgl.bench.startup import phases_of
from raysgl.messages import ReplicaFacts
from raysgl.ready import phases
from raysgl.startup import StartupClock, described


def test_phases_follow_what_is_said_and_add_up(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "time", lambda: now)
    clock = StartupClock("process", 97.0)
    for text, passed in (("imports", 1), ("resolving the model", 2), ("reading the tokenizer of x.gguf (once)", 4)):
        clock.heard(text) if text != "imports" else clock.enter(text)
        now += passed
    for text, passed in (("loading weights", 8), ("loading weights", 16), ("warming up", 0.01), ("resolving the model", 32)):
        clock.heard(text)
        now += passed
    clock.enter("serving")
    expected = {"process": 3.0, "imports": 1.0, "resolve": 38.0, "weights": 24.0, "warm_up": 0.01}
    assert {name: round(took, 6) for name, took in clock.seconds.items()} == expected
    assert described(clock.seconds) == "process 3.0 s, imports 1.0 s, resolve 38.0 s, weights 24.0 s"


def test_every_phase_of_the_runner_is_known():
    """A text that is not would count as the phase before it."""
    said = re.findall(r'tell\(0\.0, "([^"]+)"\)', Path(raysgl.engine.runner.__file__).read_text())
    assert said and set(said) <= set(startup.PHASES)


def test_the_whole_is_the_sum_of_its_phases():
    facts = ReplicaFacts("cpu", 1, 10, 10, 1, started_at=103.0, startup={"process": 1.0, "weights": 4.0})
    early = ReplicaFacts("cpu", 1, 10, 10, 1, started_at=102.0, startup={"process": 0.5})
    found = phases({"check": 0.5, "ray": 1.5, "deploy": 7.0}, {"m": [early, facts]})
    assert found == {"check": 0.5, "ray": 1.5, "deploy": 2.0, "process": 1.0, "weights": 4.0}
    replica = {"started_at": 103.0, "startup_seconds": facts.startup}
    assert phases_of(replica, 100.0, 109.0) == {"ray": 3.0, "process": 1.0, "weights": 4.0, "ingress": 1.0}

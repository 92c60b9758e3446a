"""What a starting server said, and when, as phases."""

from __future__ import annotations

import pytest

from raysgl.bench.server import phases


def test_phases():
    said = [
        (1.5, "raysgl: checking the model"),
        (2.0, "2026-01-01 a warning: of someone else"),
        (3.0, "raysgl: starting Ray"),
        (5.0, "raysgl: m: 0 of 1 replicas"),
        (6.0, "raysgl: m: loading weights 20 %"),
        (7.0, "raysgl: m: loading weights 90 %"),
        (9.0, "raysgl: m: warming up"),
    ]
    found = phases(said, 1.0, 10.0)
    assert list(found.values()) == pytest.approx([0.5, 1.5, 2.0, 1.0, 3.0, 1.0])
    assert list(found)[3:] == ["0 of 1 replicas", "loading weights", "warming up"]
    assert sum(found.values()) == pytest.approx(9.0)

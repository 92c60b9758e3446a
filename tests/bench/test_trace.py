"""Cutting a recording of the GPU into steps, and the gaps in it."""

from __future__ import annotations

import pytest

from raysgl.bench.trace import Activity, main, split

pytest.importorskip("torch")


def recording(steps: int, between: float) -> list[Activity]:
    """Steps of a copy, two layers of two kernels that follow each other after 1 us, and an argmax; begun in the middle of one."""
    activities, now = [Activity("layer", 0.0, 3.0), Activity("argmax", 4.0, 6.0)], 6.0 + between
    for _ in range(steps):
        for name, took in (("copy", 1.0), ("matmul", 10.0), ("layer", 3.0), ("matmul", 10.0), ("layer", 3.0), ("argmax", 2.0)):
            activities.append(Activity(name, now, now + took))
            now += took + 1.0
        now += between - 1.0
    return activities[: len(activities) - 2] if steps > 1 else activities


def test_steps_and_gaps():
    timeline = split(recording(6, between=7.0), 6)
    assert len(timeline.steps) == 5
    assert [activity.name for activity, _ in timeline.steps[0]] == ["copy", "matmul", "layer", "matmul", "layer", "argmax"]
    assert timeline.between == pytest.approx(7.0)
    assert timeline.inside == pytest.approx(5.0)
    assert timeline.period == pytest.approx(29 + 5 + 7)
    assert timeline.by_name()[0] == ("matmul", 2, pytest.approx(20.0))


def test_kernels_that_overlap_leave_no_gap():
    begun = recording(4, between=5.0)
    longer = [Activity(a.name, a.begin, a.end + 1.5) if a.name == "matmul" else a for a in begun]
    assert split(longer, 4).inside == pytest.approx(3.0)


def test_a_recording_without_steps_is_refused():
    with pytest.raises(ValueError, match="nothing ran about 50 times"):
        split(recording(3, 1.0), 50)


def test_no_gpu(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_trace_of_a_tiny_model(tiny_checkpoint, capsys):
    assert main(["--model-path", str(tiny_checkpoint("llama")), "--batch", "4", "--prompt", "20", "--steps", "8"]) == 0
    out = capsys.readouterr().out
    assert "idle between steps" in out and "one step" in out

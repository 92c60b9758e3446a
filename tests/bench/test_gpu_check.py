"""Parts run apart: what one does, others do not notice."""

from __future__ import annotations

import pytest

from raysgl.bench import gpu_check


def test_every_part_runs_and_leaves_its_output(monkeypatch, tmp_path, capsys):
    parts = {
        "good": (("-c", "open('{out}/made', 'w').write('x'); print('fine')"), 30.0),
        "bad": (("-c", "import sys; print('ouch', file=sys.stderr); sys.exit(3)"), 30.0),
        "slow": (("-c", "import time; print('waiting', flush=True); time.sleep(60)"), 1.0),
        "last": (("-c", "print('still here')"), 30.0),
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 1
    texts = {name: (tmp_path / "out" / f"{name}.log").read_text().strip() for name in parts}
    assert texts == {"good": "fine", "bad": "ouch", "slow": "waiting", "last": "still here"}
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line.split(",")[0].split(maxsplit=1)[1] for line in summary] == [
        "passed",
        "exit status 3",
        "ended after its limit of 1 s",
        "passed",
    ]
    assert (tmp_path / "out" / "made").exists()
    assert gpu_check.main(["--out", str(tmp_path), "last"]) == 0


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["nothing"])
    assert "no such part: nothing; there are tests" in capsys.readouterr().err

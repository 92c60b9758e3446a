"""Tables of measurements are found by the name of the GPU, or of one with the same chip."""

from __future__ import annotations

import pytest
import torch

from raysgl.kernels import linear_table, measured
from raysgl.kernels.attention import table as attention_table

H100 = "nvidia_h100_80gb_hbm3.json"


@pytest.fixture
def found(monkeypatch):
    def find(folder, name):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        path = measured.table_file(folder, torch.device("cuda"))
        return path and path.name

    return find


@pytest.mark.parametrize("folder", [linear_table.FOLDER, attention_table.FOLDER])
def test_the_same_chip_has_the_same_table(found, folder):
    assert found(folder, "NVIDIA H100 80GB HBM3") == found(folder, "NVIDIA H200") == H100
    assert found(folder, "NVIDIA A100/40GB") is None


def test_its_own_table_comes_first(found, tmp_path):
    for name in (H100, "nvidia_h200.json"):
        (tmp_path / name).write_text("{}")
    assert found(tmp_path, "NVIDIA H200") == "nvidia_h200.json"

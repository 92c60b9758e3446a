"""Where there is no GPU, kernels run in Triton's interpreter (see tests/conftest.py)."""

from __future__ import annotations

import pytest

from tests.conftest import have_gpu


@pytest.fixture(scope="session")
def device():
    """Where the kernels under test run: the GPU if there is one, else the CPU, interpreted."""
    import torch

    return torch.device("cuda" if have_gpu() else "cpu")

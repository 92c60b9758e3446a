"""Where there is no GPU, kernels run in Triton's interpreter, which must be chosen before anything imports triton."""

from __future__ import annotations

import os
import sys

import pytest

from tests.conftest import have_gpu

if not have_gpu():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("triton was imported without its interpreter; run with TRITON_INTERPRET=1 pytest ...")
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device():
    """Where the kernels under test run: the GPU if there is one, else the CPU, interpreted."""
    import torch

    return torch.device("cuda" if have_gpu() else "cpu")

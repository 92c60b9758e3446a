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


@pytest.fixture(autouse=True)
def mended_interpreter(monkeypatch):
    """Two faults of Triton 3.6's interpreter. It makes ints of one-element arrays where loop bounds are read, which NumPy 2.4
    refuses; and it multiplies bfloat16 matrices by their bit patterns.
    """
    import numpy
    import triton.language as tl
    from triton.runtime import interpreter

    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patch_lang_tensor(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def widen(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(numpy.uint32) << 16).view(numpy.float32), tl.float32)

    def create_dot(self, a, b, *args):
        return dot(self, widen(a), widen(b), *args)

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_lang_tensor)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(scope="session")
def device():
    """Where the kernels under test run: the GPU if there is one, else the CPU, interpreted."""
    import torch

    return torch.device("cuda" if have_gpu() else "cpu")

"""Two faults of Triton 3.6's interpreter, mended: what runs without a GPU should be what was written.

It makes ints of one-element arrays where loop bounds are read, which NumPy 2.4 refuses, and it multiplies bfloat16 matrices by their bit
patterns. Imported by `raysgl.kernels.triton.runtime` where kernels are interpreted. No module here is compiled with it.
"""

from __future__ import annotations

from typing import Any

import numpy
import triton.language as tl
from triton.runtime import interpreter

_patch_lang_tensor = interpreter._patch_lang_tensor
_create_dot = interpreter.InterpreterBuilder.create_dot


def _patch_with_index(tensor: Any, scope: Any) -> None:
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def _widen(x: Any) -> Any:
    """bfloat16, which NumPy holds as bits, as the float32 of the same value."""
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle((x.data.astype(numpy.uint32) << 16).view(numpy.float32), tl.float32)


def _dot_of_values(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    return _create_dot(self, _widen(a), _widen(b), *rest)


def mend() -> None:
    """May be called more than once."""
    interpreter._patch_lang_tensor = _patch_with_index
    interpreter.InterpreterBuilder.create_dot = _dot_of_values

"""Matrix products of Triton's interpreter in which every row of a tile is treated alike.

The interpreter hands tiles to BLAS, which sums some rows of a tile in another order than others; a
tensor core does not. Where bits are compared, each element is summed here term after term.
"""

from typing import Any

import numpy as np
import pytest
from triton.runtime import interpreter


def treat_rows_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply so for the length of a test, or as long as the given patch lasts."""

    def create_dot(_self: Any, a: Any, b: Any, d: Any, *_precision: Any) -> Any:
        dtype = d.data.dtype
        left, right = a.data.astype(dtype), b.data.astype(dtype)
        total = np.zeros_like(d.data)
        for k in range(left.shape[1]):
            total += left[:, k, None] * right[k]
        return interpreter.TensorHandle(total + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)

"""Where the tests of GPU kernels run: a CUDA device, or the CPU in Triton's interpreter.

The interpreter proves the code, and the code of the tests; it has no bf16 arithmetic. References
are computed in float64 on the CPU from the very inputs that the kernels get.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
CAN_RUN = DEVICE == "cuda" or INTERPRETED
WHY_NOT = "needs a CUDA device"

# Relative error of a whole tensor: rounding of the result, and some for sums before it.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fresh normal values on the device, never zeros."""
    return torch.randn(*shape, device=DEVICE).to(dtype)


def in_float64(value: Any) -> Any:
    """A floating-point tensor as a float64 leaf on the CPU; anything else on the CPU as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return value.double() if value.is_floating_point() else value


def error(out: Tensor, wanted: Tensor) -> float:
    """|out - wanted| / |wanted|; NaN if an element was never written."""
    assert out.shape == wanted.shape, (out.shape, wanted.shape)
    wanted = wanted.detach()
    difference = out.detach().cpu().double() - wanted
    return float(difference.norm() / wanted.norm().clamp_min(1e-30))


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN (integers their largest value) until somebody writes to it."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of library calls that have no deterministic form
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> Any:
    """Gradients of the inputs; an unused one is an error."""
    return torch.autograd.grad(list(outputs), list(inputs), list(grads))


class Replay:
    """A call captured once and replayed; where there are no CUDA graphs, called again.

    Either way the results land in the tensors of the first call, which is what a replay promises.
    """

    def __init__(self, call: Callable[[], Sequence[Tensor]]) -> None:
        self._call = call
        self._graph: torch.cuda.CUDAGraph | None = None
        if DEVICE == "cuda":
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                call()
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self.outputs = tuple(call())
        else:
            self.outputs = tuple(call())

    def again(self) -> tuple[Tensor, ...]:
        """Run on what the inputs hold now; results are poisoned before."""
        for out in self.outputs:
            out.fill_(float("nan"))
        if self._graph is not None:
            self._graph.replay()
            torch.cuda.synchronize()
            return self.outputs
        for out, new in zip(self.outputs, self._call(), strict=True):
            out.copy_(new)
        return self.outputs

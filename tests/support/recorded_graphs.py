"""CUDA graphs without CUDA: operators are written down and run again on the very same memory.

As with a graph, numbers of the host stay what they were, results land where they landed first, and
asking a tensor for its value is an error.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fit_kernels.attention import choice, use_attention
from fit_kernels.attention.fused import Fused

DEVICE_LENGTHS = "device-lengths"
"""Name of an attention that reads the lengths from `cu_seqlens` only and runs on a CPU."""


_ASKING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class RecordingCapturer:
    """Attributes: captures, the number of them; num_bytes, a thousand for each."""

    def __init__(self, device: torch.device) -> None:
        self.captures = 0

    @property
    def num_bytes(self) -> int:
        return 1000 * self.captures

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        with _Recording() as recording:
            run()
        self.captures += 1
        return recording.replay


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple, dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ASKING:
            raise RuntimeError("a captured tensor was asked for its value")
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def device_lengths_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Our attention's plain form, chosen by name; whatever was chosen before is put back."""
    known = choice.implementation
    named = {DEVICE_LENGTHS: _DeviceLengths()}
    before = choice.current_attention()
    monkeypatch.setattr(choice, "implementation", lambda name: named.get(name) or known(name))
    use_attention(DEVICE_LENGTHS)
    yield
    use_attention(before)


class _DeviceLengths(Fused):
    def missing(self) -> str | None:
        return None

    def refusal(self, dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
        return None

"""Records work on fixed tensors and repeats it: a CUDA graph, or what a test puts in its place.

Knows streams, graphs and memory of a device; not what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

# Kernels are compiled, tuned and given workspaces before a capture, in which none of it works.
_WARM_UPS = 2


class Capturer(Protocol):
    """Records calls whose replays share memory: one replay at a time, on one stream."""

    @property
    def num_bytes(self) -> int:
        """Device memory taken since this object was made."""
        ...

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record what `run` does to its tensors, and return what does it again.

        A replay reads and writes the very tensors of the recording. Numbers of the host (lengths,
        shapes, scales) stay what they were.

        Raises:
            RuntimeError: the work cannot be recorded: it asks the device for something, or there is
                no memory.
        """
        ...


class CudaCapturer:
    """CUDA graphs of one memory pool: capture the largest first, and the others fit inside."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One stream for all: every stream has a cuBLAS workspace of its own.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._free_before = self._free_bytes()

    @property
    def num_bytes(self) -> int:
        """As the driver counts it, what a graph itself takes included; other processes disturb."""
        return max(0, self._free_before - self._free_bytes())

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Warm up on the side stream, then capture there; see `Capturer`.

        After one that failed torch draws no more random numbers on the device in this process; the
        engine draws its on the CPU.
        """
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # What other threads do on the device meanwhile (decoders) is no business of a capture;
            # and one that fails would leave its stream behind as the current one.
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                run()
        return graph.replay

    def _free_bytes(self) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

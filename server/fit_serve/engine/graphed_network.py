"""The network as CUDA graphs by total of tokens: a small step costs one launch instead of hundreds.

A graph repeats its work on the tensors it was captured with, so a step is copied into static
buffers first. What a graph freezes are numbers of the host: the total of tokens is met exactly (the
engine pads to it), the number of sequences and the longest of them are bounds (`GraphShape`).
Everything else, the lengths included, is read from the buffers on the device.

Dimension key: T packed tokens, P rows of the rotary slab, E head dim, K token channels.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fit_kernels.attention import capture_obstacle
from fit_models.families import ClassNetwork, placement
from fit_models.modulation import ModulationSource
from fit_models.modulation_rows import Modulation
from fit_models.packing import PackedLayout
from fit_serve.engine.capturer import Capturer, CudaCapturer
from fit_serve.engine.graph_buffers import GraphBuffers, StaticStep
from fit_serve.engine.graph_shape import GraphShape

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Graph:
    """One captured shape: its replay evaluates what lies in `step`."""

    shape: GraphShape
    step: StaticStep
    replay: Callable[[], None]


class GraphedNetwork:
    """In the place of the network: replays a graph where one fits, calls the network otherwise.

    Used from one thread and one stream. Attention, operators and weights are those of the capture.

    Attributes:
        max_graph_tokens: larger steps are the network's own, where graphs do not pay.
        hits: steps that were replayed.
        missed: other steps that graphs were meant for, by reason: "tokens" (no graph of that
            total), "sequences" (too many, or too many modulation rows), "length" (one is too
            long), "slab" (rotary tables have moved, see `capture`), "off" (see `obstacle`).
        larger: steps over `max_graph_tokens`.
        obstacle: why nothing can be captured here, for good; None if nothing is known against it.
        num_bytes: device memory that capturing took.
    """

    def __init__(
        self,
        network: ClassNetwork,
        stacked: ModulationSource,
        max_graph_tokens: int,
        make_capturer: Callable[[torch.device], Capturer] = CudaCapturer,
    ) -> None:
        self.max_graph_tokens = max_graph_tokens
        self.hits = self.larger = 0
        self.missed: Counter[str] = Counter()
        self.obstacle: str | None = None
        self.num_bytes = 0
        self._network, self._stacked = network, stacked
        self._make_capturer = make_capturer
        self._graphs: dict[int, list[_Graph]] = {}
        self._slab: tuple[Tensor, Tensor] | None = None

    @property
    def num_graphs(self) -> int:
        """Captured graphs."""
        return sum(map(len, self._graphs.values()))

    @property
    def misses(self) -> int:
        """Steps that graphs were meant for and that ran without."""
        return self.missed.total()

    @torch.inference_mode()
    def capture(self, shapes: Iterable[GraphShape], rope_cos: Tensor, rope_sin: Tensor) -> None:
        """Capture anew, the largest first; takes seconds. What was captured before is let go.

        Graphs read the rotary slab [P, E/2] where it lies: if it is replaced by a larger one, steps
        that use the new one run without graphs until this is called with it. A capture that fails
        leaves the network without graphs for good: the log and `obstacle` say why.
        """
        self._graphs, self._slab, self.num_bytes = {}, (rope_cos, rope_sin), 0
        wanted = {shape for shape in shapes if shape.tokens <= self.max_graph_tokens}
        if self.obstacle or not wanted:
            return
        began = time.monotonic()
        try:
            self.obstacle = self._obstacle_of_attention()
            if self.obstacle is None:
                order = sorted(wanted, key=lambda s: (s.tokens, s.grid), reverse=True)
                self._capture_all(order, self._slab)
        except Exception as error:  # whatever a driver or a compiler raises: serving goes on
            self._graphs.clear()
            self.obstacle = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if self.obstacle:
            _log.warning("CUDA graphs: none, every step runs without: %s", self.obstacle)
            return
        _log.info(
            "CUDA graphs: %d, of %d to %d tokens, took %.1f s and %.0f MB",
            self.num_graphs,
            min(self._graphs),
            max(self._graphs),
            time.monotonic() - began,
            self.num_bytes / 1e6,
        )

    @torch.inference_mode()
    def denoise(self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        """As the network's own: [T, K] -> [T, K], which the next call may overwrite."""
        graph = self._graph_for(layout, modulation)
        if graph is None:
            return self._network.denoise(tokens_TK, layout, modulation)
        graph.step.fill(tokens_TK, layout, modulation)
        graph.replay()
        return graph.step.output_TP

    def reads_slab_of(self, layout: PackedLayout) -> bool:
        """Whether graphs read the rotary tables of a step; if not, it is time to capture anew."""
        if self._slab is None:
            return False
        return layout.rope_cos is self._slab[0] and layout.rope_sin is self._slab[1]

    def _graph_for(self, layout: PackedLayout, modulation: Modulation) -> _Graph | None:
        """The graph to replay; counts what is found and what is not."""
        if layout.num_tokens > self.max_graph_tokens:
            self.larger += 1
            return None
        found = self._smallest(layout, modulation)
        if isinstance(found, str):
            self.missed[found] += 1
            return None
        self.hits += 1
        return found

    def _smallest(self, layout: PackedLayout, modulation: Modulation) -> _Graph | str:
        """The graph with the smallest bounds that hold the step, or why there is none."""
        graphs = self._graphs.get(layout.num_tokens)
        if not graphs:
            return "off" if self.obstacle else "tokens"
        if not self.reads_slab_of(layout):
            return "slab"
        needed = max(layout.num_sequences, modulation.final.shape[0])
        graphs = [graph for graph in graphs if graph.shape.sequences >= needed]
        if not graphs:
            return "sequences"
        longest = layout.max_length
        return next((graph for graph in graphs if graph.shape.max_length >= longest), "length")

    def _obstacle_of_attention(self) -> str | None:
        device, dtype = placement(self._network)
        return capture_obstacle(dtype, device, self._network.config.head_dim)

    def _capture_all(self, shapes: list[GraphShape], slab: tuple[Tensor, Tensor]) -> None:
        """Graphs by total, those of the smallest grid first; `shapes` come the largest first."""
        capturer = self._make_capturer(placement(self._network)[0])
        buffers = GraphBuffers(self._network, self._stacked, shapes, slab)
        for shape in shapes:
            step = buffers.step(shape)
            replay = capturer.capture(partial(step.run, self._network))
            self._graphs.setdefault(shape.tokens, []).insert(0, _Graph(shape, step, replay))
        self.num_bytes = capturer.num_bytes

"""How the network of a step is run: plainly, as CUDA graphs by token bucket, or compiled."""

from __future__ import annotations

from collections.abc import Sequence as Items

from torch import Tensor

from fit_models.batch_invariant import fixed_tiles_obstacle, use_fixed_tiles
from fit_models.bundle import Bundle
from fit_models.captions import CaptionStates
from fit_models.compiled import compile_blocks, release_blocks
from fit_models.families import TextNetwork
from fit_models.modulation import ModulationSource
from fit_models.modulation_rows import Modulation
from fit_models.packing import PackedLayout
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.graph_shape import graph_shapes
from fit_serve.engine.graphed_network import GraphedNetwork
from fit_serve.engine.rope_cache import RopeCache


class Execution:
    """The network as the settings want it run; `close` leaves it as it was.

    Attributes:
        mode: "eager", "graphs" or "compile".
        graphs: what replays, if anything does.
    """

    def __init__(
        self,
        bundle: Bundle,
        stacked: ModulationSource,
        config: EngineConfig,
        buckets: Items[int],
        max_graph_tokens: int | None = None,
    ) -> None:
        """Choose and prepare; `max_graph_tokens` is the largest step that graphs are meant for.

        Raises:
            ValueError: what is asked for cannot run here.
        """
        self._network, self._buckets = bundle.network, buckets
        self._max_num_branches = 2 * config.max_num_seqs + 1  # and the padding
        self.graphs: GraphedNetwork | None = None
        on_gpu = bundle.device.type == "cuda"
        self.mode = config.execution
        reads_captions = isinstance(bundle.network, TextNetwork)
        if self.mode == "auto":
            fits = on_gpu and max_graph_tokens != 0 and not reads_captions
            self.mode = "graphs" if fits else "eager"
        if reads_captions and self.mode != "eager":
            raise ValueError(
                f"execution is {self.mode!r}; a network that reads captions runs 'eager' only, for "
                "how long they are is known to the host"
            )
        if config.batch_invariant and on_gpu:
            if obstacle := fixed_tiles_obstacle(bundle.network):
                raise ValueError(f"batch_invariant cannot be had: {obstacle}")
            use_fixed_tiles(bundle.network)
        if self.mode == "graphs":
            if not on_gpu or not buckets:
                raise ValueError("execution is 'graphs'; that needs a GPU and token buckets")
            largest = buckets[-1] if max_graph_tokens is None else max_graph_tokens
            network = bundle.class_network("CUDA graphs")
            self.graphs = GraphedNetwork(network, stacked, largest)
        elif self.mode == "compile":
            if config.batch_invariant:
                raise ValueError("execution 'compile' promises no bits; batch_invariant needs them")
            compile_blocks(bundle.network)

    def warm_up(self, rope: RopeCache) -> None:
        """Capture graphs; takes seconds."""
        if self.graphs is not None:
            shapes = graph_shapes(self._buckets, self._max_num_branches)
            self.graphs.capture(shapes, rope.cos, rope.sin)

    def denoise(
        self,
        tokens_TK: Tensor,
        layout: PackedLayout,
        modulation: Modulation,
        captions: CaptionStates | None = None,
    ) -> Tensor:
        """As the network's own; the next call may overwrite the result."""
        if isinstance(self._network, TextNetwork):
            assert captions is not None
            return self._network.denoise(tokens_TK, layout, modulation, captions)
        network = self._network if self.graphs is None else self.graphs
        return network.denoise(tokens_TK, layout, modulation)

    def close(self) -> None:
        """Undo what was done to the network's blocks."""
        if self.mode == "compile":
            release_blocks(self._network)

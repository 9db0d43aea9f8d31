"""Up to how many tokens do CUDA graphs pay, and does compiling: one evaluation by total of tokens.

Usage: `python benchmarks/bench_graphs.py [--model FiTv2-XL/2] [--toy] [--seconds N] [--rows FILE]`.
Three ways, all with the fused operators and the attention that `auto` chooses: the network as it
is, in the engine's graphs (steps copied into static buffers, bounds as a server has them), with its
blocks compiled. Launches are timed too: they are what graphs and compilers are for. What the graphs
took of memory and time is noted; `max_graph_tokens` of a server is read off this table. The toy run
calls again what it would replay.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_network import COMPILER_WAIT_S, random_network
from ceilings import Ceilings
from measurement import Ledger, Measurement, spell_error
from stopwatch import Stopwatch

from fit_kernels import use_backend
from fit_kernels.attention import use_attention
from fit_models.compiled import compile_blocks, release_blocks
from fit_models.config import named_config
from fit_models.modulation import StackedModulation
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import PackedLayout, layout_of_grids, pack_layout
from fit_serve.engine.capturer import CudaCapturer
from fit_serve.engine.graph_shape import graph_shapes
from fit_serve.engine.graphed_network import GraphedNetwork

_EAGER, _GRAPHS, _COMPILE = "kernels", "kernels + graphs", "kernels + compile"
_WAYS = (_EAGER, _GRAPHS, _COMPILE)
# Totals of sequences of one size, as guided pictures of 256 x 256 pixels are.
_GRID, _TOTALS = (16, 16), (256, 512, 1024, 1536, 2048, 4096, 8192)
_TOY_GRID, _TOY_TOTALS = (2, 2), (4,)
_MAX_SEQUENCES, _LONGEST = 129, 2304


class Again:
    """In the place of CUDA graphs: proves the code, measures nothing."""

    num_bytes = 0

    def __init__(self, device: torch.device) -> None:
        pass

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Nothing is recorded."""
        run()
        return run


class GraphsBench:
    """One network, every total, three ways."""

    def __init__(self, model: str, toy: bool, stopwatch: Stopwatch) -> None:
        config = named_config(model, 3 if toy else 1000)
        self.name, self.totals = model, _TOY_TOTALS if toy else _TOTALS
        grid = _TOY_GRID if toy else _GRID
        self.length = grid[0] * grid[1]
        self._stopwatch = stopwatch
        dtype = torch.float32 if toy else torch.bfloat16
        self.network = random_network(config, stopwatch.device, dtype)
        self._stacked = StackedModulation(self.network)
        use_backend("fused", stopwatch.device)
        alone = layout_of_grids([grid], config.head_dim, config.rope, stopwatch.device)
        self._slab = alone.rope_cos, alone.rope_sin
        use_attention("fused" if toy else "auto")
        capturer = Again if toy else CudaCapturer
        self.graphs = GraphedNetwork(self.network, self._stacked, self.totals[-1], capturer)
        began = time.perf_counter()
        self.graphs.capture(graph_shapes(self.totals, _MAX_SEQUENCES, _LONGEST), *self._slab)
        self.capture_seconds = time.perf_counter() - began

    def measure(self, total: int, way: str, into: Measurement) -> None:
        """Time a way, or write down why not."""
        try:
            if way == _GRAPHS and self.graphs.obstacle:
                raise RuntimeError(self.graphs.obstacle)
            if way == _COMPILE:
                compile_blocks(self.network)
            with torch.inference_mode():
                timing = self._time(self.graphs if way == _GRAPHS else self.network, total)
        except Exception as error:  # a compiler's, out of memory: the other ways still count
            into.missing[way] = spell_error(error)
            return
        finally:
            release_blocks(self.network)
        into.missing.pop(way, None)
        into.seconds[way], into.best_seconds[way], into.methods[way] = timing

    def _time(self, network: FiTv2 | GraphedNetwork, total: int) -> tuple[float, float, str]:
        layout, weight = self._layout(total), self.network.x_embedder.proj.weight
        config, sequences = self.network.config, layout.num_sequences
        label = torch.arange(sequences, device=weight.device) % config.num_classes
        rows = self._stacked.rows(torch.linspace(0, 1, sequences, device=weight.device), label)
        modulation = self._stacked.split(rows, layout.seq_of_token)
        tokens = torch.randn(total, config.token_channels).to(weight)
        timing = self._stopwatch.time_loop([lambda: network.denoise(tokens, layout, modulation)])
        return timing.median, timing.best, timing.method

    def _layout(self, total: int) -> PackedLayout:
        """Sequences of the one size, on the slab that graphs are captured with."""
        sequences = total // self.length
        row = torch.arange(self.length).repeat(sequences)
        return pack_layout([self.length] * sequences, *self._slab, row)


def measure(bench: GraphsBench, ledger: Ledger, ceiling: float, deadline: float) -> None:
    """Every total without a compiler, then with one, while the time lasts."""
    config, measured = bench.network.config, dict[int, Measurement]()
    graphs = bench.graphs
    for total in bench.totals:
        case = f"{bench.name} whole, {total} tokens"
        work = total * config.flops_per_token(bench.length)
        measured[total] = Measurement("graphs", case, _EAGER, _EAGER, work, "FLOP", unit="ms")
        measured[total].ceilings = {"MFU": ceiling}
        measured[total].missing = dict.fromkeys(_WAYS, "out of time")
    first = measured[bench.totals[0]]
    first.note = (
        f"{graphs.num_graphs} graphs, {graphs.num_bytes / 1e6:.0f} MB, "
        f"{bench.capture_seconds:.1f} s to capture"
    )
    for ways in ((_EAGER, _GRAPHS), (_COMPILE,)):
        for total, into in measured.items():
            wait = COMPILER_WAIT_S if ways == (_COMPILE,) and total == bench.totals[0] else 0.0
            for way in ways:
                if time.monotonic() < deadline - wait:
                    bench.measure(total, way, into)
            into.ours = min(into.seconds, key=into.seconds.__getitem__, default=_EAGER)
            ledger.put(into)


def main() -> None:
    """Print a row per total."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="FiTv2-XL/2")
    parser.add_argument("--toy", action="store_true", help="FiTv2-toy/2 on the CPU")
    parser.add_argument("--seconds", type=float, default=120.0, help="start nothing after that")
    parser.add_argument("--rows", type=Path, help="append measurements here, JSON lines")
    parser.add_argument("--ceilings", type=Path, help="take these; measured here if left out")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    model = "FiTv2-toy/2" if arguments.toy else arguments.model
    torch.manual_seed(0)
    with Stopwatch("cpu" if arguments.toy else "cuda", 0.01 if arguments.toy else 0.3) as stopwatch:
        file = arguments.ceilings
        taken = Ceilings.from_file(file) if file else Ceilings.measured(stopwatch, arguments.toy)
        bench = GraphsBench(model, arguments.toy, stopwatch)
        measure(bench, Ledger(arguments.rows), taken.product, deadline)


if __name__ == "__main__":
    main()

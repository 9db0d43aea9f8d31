"""A block and the whole network, random weights, on packs as a server runs them.

Usage: `python benchmarks/bench_network.py [--model FiTv2-XL/2] [--toy] [--seconds N] [--rows FILE]
[--ceilings FILE]`. Four ways: eager (the reference operators one by one), kernels (the fused
operators), kernels + compile (as `fit_models.compiled` does it), kernels + graph (a replayed CUDA
graph). All of them use the attention that `auto` chooses, so the gain over eager is fusion's alone;
"eager, grouped" is what a network ran before there were kernels.

The rate counts matrix products and attention of real tokens (`ModelConfig.flops_per_token`), so its
share of the bf16 product measured in the same run is the MFU. The second share is against the
products alone at the network's own shapes, timed here too: what no fusion can pass.

A "block" is a network of depth 1, embedding and final layer included.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from ceilings import Ceilings, shape_rate
from measurement import Ledger, Measurement, spell_error
from packs import grids_of, lengths_of
from stopwatch import Stopwatch, Timing
from torch import Tensor

from fit_kernels import use_backend
from fit_kernels.attention import use_attention
from fit_models.compiled import compile_blocks, release_blocks
from fit_models.config import ModelConfig, named_config
from fit_models.joined import join_projections
from fit_models.modulation import StackedModulation
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids

TARGETS = {("FiTv2-XL/2", "whole", "8k"): 0.60}
_EAGER, _GROUPED = "eager", "eager, grouped"
_KERNELS, _COMPILE, _GRAPH = "kernels", "kernels + compile", "kernels + graph"
_WAYS = (_EAGER, _KERNELS, _GRAPH, _GROUPED, _COMPILE)
_OURS = (_KERNELS, _GRAPH, _COMPILE)
_PRODUCT, _SHAPES = "MFU", "of own products"
_NUM_CLASSES = 1000
# A cold compiler may take so long for a block: do not begin what would be cut off.
COMPILER_WAIT_S = 20.0
_TOY_CLASSES = 3


@dataclass
class Run:
    """A network with the inputs of one pack."""

    network: FiTv2
    evaluate: Callable[[], Tensor]


def random_network(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    lay_out: Callable[[FiTv2], None] = join_projections,
) -> FiTv2:
    """Weights that keep values of size one, every gate open; laid out as for serving on a GPU."""
    with torch.device("meta"):
        network = FiTv2(config).to(dtype)
    network.to_empty(device=device)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1000
            parameter.normal_(std=fan_in**-0.5)
    network.eval().requires_grad_(False)
    lay_out(network)
    return network


def make_run(network: FiTv2, pack: str) -> Run:
    """Random latents, one timestep and class per picture, modulation made once as a server does."""
    config, weight = network.config, network.x_embedder.proj.weight
    layout = layout_of_grids(grids_of(pack), config.head_dim, config.rope, weight.device)
    sequences = layout.num_sequences
    stacked = StackedModulation(network)
    label = torch.arange(sequences, device=weight.device) % config.num_classes
    rows = stacked.rows(torch.linspace(0, 1, sequences, device=weight.device), label)
    modulation = stacked.split(rows, layout.seq_of_token)
    tokens = torch.randn(layout.num_tokens, config.token_channels, device=weight.device)
    tokens = tokens.to(weight.dtype)
    return Run(network, lambda: network.denoise(tokens, layout, modulation))


def work_of(config: ModelConfig, pack: str) -> float:
    """Floating-point operations of one evaluation."""
    return sum(n * config.flops_per_token(n) for n in lengths_of(pack))


def own_products_rate(stopwatch: Stopwatch, config: ModelConfig, tokens: int) -> float:
    """Operations a second of a block's four products, one after the other."""
    width, hidden = config.hidden_size, config.mlp_hidden
    shapes = ((width, 3 * width), (width, width), (width, 2 * hidden), (hidden, width))
    work = [2.0 * tokens * inner * columns for inner, columns in shapes]
    rates = [shape_rate(stopwatch, tokens, *shape) for shape in shapes]
    return sum(work) / sum(w / r for w, r in zip(work, rates, strict=True))


def time_run(run: Run, way: str, stopwatch: Stopwatch) -> Timing:
    """Time one way; the backends chosen for it are put back by the caller."""
    eager = way in (_EAGER, _GROUPED)
    use_attention("grouped" if way == _GROUPED else "auto")
    use_backend("reference" if eager else "fused", stopwatch.device)
    if way == _GRAPH:
        if not stopwatch.on_gpu:
            raise RuntimeError("a CUDA graph needs a GPU")
        return stopwatch.time([run.evaluate] * 2)
    if way != _COMPILE:
        return stopwatch.time_loop([run.evaluate])
    torch.compiler.reset()  # else the packs add up to the limit of recompilations
    compile_blocks(run.network)
    try:
        return stopwatch.time_loop([run.evaluate])
    finally:
        release_blocks(run.network)


def time_way(run: Run, way: str, stopwatch: Stopwatch, into: Measurement) -> None:
    """Time a case one way, or write down why not."""
    try:
        with torch.inference_mode():
            timing = time_run(run, way, stopwatch)
    except Exception as error:  # out of memory, a compiler's: the other ways still count
        into.missing[way] = spell_error(error)
        return
    finally:
        use_backend("reference")
        use_attention("auto")
    into.seconds[way], into.best_seconds[way] = timing.median, timing.best
    into.methods[way] = timing.method


def cases(model: str, toy: bool) -> Iterator[tuple[str, ModelConfig, str]]:
    """(whole or block, its configuration, pack), what is judged first."""
    config = named_config(model, _TOY_CLASSES if toy else _NUM_CLASSES)
    for extent in ("whole", "block"):
        for pack in ("toy",) if toy else ("8k", "2k", "512"):
            yield extent, replace(config, depth=1) if extent == "block" else config, pack


def measure(
    model: str,
    toy: bool,
    stopwatch: Stopwatch,
    ceilings: Ceilings,
    ledger: Ledger,
    deadline: float,
) -> None:
    """All cases but for compile, then compile, while the time lasts."""
    dtype = torch.float32 if toy else torch.bfloat16
    measured: dict[tuple[str, str], Measurement] = {}
    network: FiTv2 | None = None
    for ways in (tuple(w for w in _WAYS if w != _COMPILE), (_COMPILE,)):
        for extent, config, pack in cases(model, toy):
            tokens = sum(lengths_of(pack))
            if (into := measured.get((extent, pack))) is None:
                name = f"{model} {extent}, {tokens} tokens"
                into = Measurement("network", name, _KERNELS, _EAGER, work_of(config, pack))
                into.work_unit, into.unit = "FLOP", "ms"
                into.target = TARGETS.get((model, extent, pack))
                into.missing[_COMPILE] = "not yet"
                measured[extent, pack] = into
            wait = COMPILER_WAIT_S if _COMPILE in ways and not toy else 0.0
            if time.monotonic() > deadline - wait:
                into.missing.update(dict.fromkeys(ways, "out of time"))
                ledger.put(into)
                continue
            if network is None or network.config != config:
                network = None
                _free_memory()
                network = random_network(config, stopwatch.device, dtype)
            if not into.ceilings:
                own = own_products_rate(stopwatch, config, tokens)
                into.ceilings = {_PRODUCT: ceilings.product, _SHAPES: own}
            run = make_run(network, pack)
            for way in ways:
                into.missing.pop(way, None)
                time_way(run, way, stopwatch, into)
            _judge(into)
            ledger.put(into)


def _judge(into: Measurement) -> None:
    """The fastest of the ways with kernels stands for them all; tokens a second are its."""
    ours = [way for way in _OURS if way in into.seconds]
    if ours:
        into.ours = min(ours, key=into.seconds.__getitem__)
        tokens = int(into.case.rsplit(", ", 1)[1].removesuffix(" tokens"))
        into.note = f"{into.ours}: {tokens / into.seconds[into.ours]:,.0f} tokens/s"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Print a row per case."""
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
        measure(model, arguments.toy, stopwatch, taken, Ledger(arguments.rows), deadline)


if __name__ == "__main__":
    main()

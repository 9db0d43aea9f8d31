"""What it costs that a linear layer's tiles do not depend on the number of tokens.

Usage: `python benchmarks/bench_linear.py [--model FiTv2-XL/2] [--toy] [--rows FILE]`. The four
layers of a block, for packs of several sizes: the library's product against `linear_fixed_tiles`.
Few tokens fill few tiles, so there the price is highest. Judged by operations a second, not by
bytes as the other operators are (`bench_kernels.py`), and against no target: it buys equal bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from measurement import Ledger, Measurement
from stopwatch import Stopwatch
from torch.nn import functional as F

from fit_kernels import linear_fixed_tiles, use_backend
from fit_models.config import ModelConfig, named_config

_TOKENS, _TOY_TOKENS = (256, 1024, 4096, 8192), (5,)
_LIBRARY, _FIXED = "library", "fixed tiles"


def layers(config: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """Name, width and features of a block's four layers."""
    width, hidden = config.hidden_size, config.mlp_hidden
    yield "qkv", width, 3 * width
    yield "proj", width, width
    yield "gate and up", width, 2 * hidden
    yield "down", hidden, width


def measure(
    stopwatch: Stopwatch, name: str, tokens: int, width: int, features: int, toy: bool
) -> Measurement:
    """Time one layer both ways, over buffers of their own for every call."""
    dtype, device = torch.float32 if toy else torch.bfloat16, stopwatch.device
    size = torch.finfo(dtype).bits // 8
    num_bytes = size * (tokens * (width + features) + features * width)
    into = Measurement("linear", f"{name} {tokens} x {width} x {features}", _FIXED, _LIBRARY)
    into.work, into.work_unit = 2.0 * tokens * width * features, "FLOP"
    inputs = [
        tuple(
            torch.randn(*shape, device=device, dtype=dtype)
            for shape in ((tokens, width), (features, width), (features,))
        )
        for _ in range(stopwatch.calls_for(num_bytes))
    ]
    for way, function in ((_LIBRARY, F.linear), (_FIXED, linear_fixed_tiles)):
        timing = stopwatch.time([lambda i=i, f=function: f(*i) for i in inputs])
        into.seconds[way], into.best_seconds[way] = timing.median, timing.best
        into.methods[way] = timing.method
    return into


def main() -> None:
    """Measure every layer at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="FiTv2-XL/2", help="a named size")
    parser.add_argument("--toy", action="store_true", help="small sizes, in the interpreter")
    parser.add_argument("--rows", type=Path, help="append measurements here, JSON lines")
    arguments = parser.parse_args()
    toy, device = arguments.toy, "cpu" if arguments.toy else "cuda"
    torch.manual_seed(0)
    use_backend("fused", device)
    ledger = Ledger(arguments.rows)
    config = named_config("FiTv2-toy/2" if toy else arguments.model)
    with Stopwatch(device, 0.005 if toy else 0.1) as stopwatch, torch.inference_mode():
        for tokens in _TOY_TOKENS if toy else _TOKENS:
            for name, width, features in layers(config):
                ledger.put(measure(stopwatch, name, tokens, width, features, toy))


if __name__ == "__main__":
    main()

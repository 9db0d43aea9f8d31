"""Ternary products on a CPU: what stays packed against what unpacks the weight in every call.

Usage: `OMP_NUM_THREADS=1 python benchmarks/bench_ternary.py [--toy] [--repeats 7]`. The layers of
TerDiT-600M and 4.2B for packs of several sizes. Ways take turns, so that a busy machine slows all
of them; times are of the process, not of the wall, and so for one thread only. `reference` does
what the authors' code does in every call: unpack to fp32, then multiply.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fit_kernels import ternary_linear, use_ternary
from fit_kernels.ternary_weights import pack_ternary, unpack_ternary

_TOKENS, _TOY_TOKENS = (2, 64, 128, 256, 512), (5,)
# Width and features: attention, MLP up and down of both sizes, and the modulation of the smaller.
_LAYERS = (
    ("600M wq", 1536, 1536),
    ("600M w1", 1536, 4096),
    ("600M w2", 4096, 1536),
    ("600M adaLN", 1024, 9216),
    ("4.2B wq", 3072, 3072),
    ("4.2B w2", 8192, 3072),
)
_TOY_LAYERS = (("toy", 32, 16),)


def _ways(x: Tensor, packed: Tensor, alpha: Tensor) -> dict[str, Callable[[], Tensor]]:
    weight = unpack_ternary(packed) * alpha

    def by(product: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            use_ternary(product)
            return ternary_linear(x, packed, alpha)

        return run

    ways = {product: by(product) for product in ("reference", "tiles", "native")}
    return ways | {"unpacked fp32": lambda: F.linear(x, weight)}


def measure(ways: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Median milliseconds of every way, each warmed up once."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, run in ways.items():
            start = time.process_time()
            run()
            if repeat:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure every layer at every size; one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="one small layer")
    parser.add_argument("--repeats", type=int, default=7, help="of every way")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    alpha = torch.tensor([0.02])
    for name, width, features in _TOY_LAYERS if arguments.toy else _LAYERS:
        packed = pack_ternary(torch.randint(-1, 2, (features, width)))
        for tokens in _TOY_TOKENS if arguments.toy else _TOKENS:
            ways = _ways(torch.randn(tokens, width), packed, alpha)
            with torch.inference_mode():
                ms = measure(ways, arguments.repeats)
            row = {"layer": name, "tokens": tokens, "width": width, "features": features}
            row |= {f"{way} ms": round(value, 2) for way, value in ms.items()}
            row["times faster"] = {
                way: round(ms["reference"] / ms[way], 2) for way in ("tiles", "native")
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

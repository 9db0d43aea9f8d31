"""Time of one network evaluation against the number of packed tokens: where is the knee?

Usage: `python benchmarks/bench_step.py [--model MODEL] [--dtype DTYPE] [--threads N]`. Sequences of
100 tokens (160 x 160 pixels), random latents, real weights. Best of several rounds in which the
sizes take turns. Below the knee a step costs the same whatever is in it; past it a larger batch
only makes everyone wait.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from fit_models.bundle import load_bundle
from fit_models.device import use_fast_float32_matmul
from fit_models.host_memory import keep_freed_memory
from fit_models.modulation import StackedModulation
from fit_models.packing import layout_of_grids

SEQUENCES = (1, 2, 4, 8, 12, 16, 24, 32, 40)
GRID = (10, 10)


def main() -> None:
    """Print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    use_fast_float32_matmul()
    keep_freed_memory()
    bundle = load_bundle(arguments.model, "auto", arguments.dtype)
    network = bundle.fitv2("figures of this benchmark")
    config = network.config
    weight = network.x_embedder.proj.weight
    stacked = StackedModulation(network)
    runs = {}
    for count in SEQUENCES:
        layout = layout_of_grids([GRID] * count, config.head_dim, config.rope, weight.device)
        rows = stacked.rows(
            torch.linspace(0, 1, count, device=weight.device),
            torch.zeros(count, dtype=torch.int64, device=weight.device),
        )
        modulation = stacked.split(rows, layout.seq_of_token)
        tokens = torch.randn(layout.num_tokens, config.token_channels).to(weight)
        runs[count] = (tokens, layout, modulation)
    best = dict.fromkeys(SEQUENCES, float("inf"))
    with torch.inference_mode():
        for _ in range(arguments.rounds):
            for count, run in runs.items():
                started = time.perf_counter()
                network.denoise(*run)
                if weight.device.type == "cuda":
                    torch.cuda.synchronize()
                best[count] = min(best[count], time.perf_counter() - started)
    per_token = config.flops_per_token(GRID[0] * GRID[1])
    rows = []
    for count, seconds in best.items():
        tokens = count * GRID[0] * GRID[1]
        rows.append(
            {
                "tokens": tokens,
                "milliseconds": round(seconds * 1e3, 2),
                "tokens_per_s": round(tokens / seconds),
                "gflops": round(tokens * per_token / seconds / 1e9, 1),
            }
        )
    print(f"{bundle.name}, {weight.dtype}, {weight.device}, {torch.get_num_threads()} threads")
    for row in rows:
        print("  ".join(f"{name} {value:>9}" for name, value in row.items()))
    print(json.dumps({"model": bundle.name, "dtype": str(weight.dtype), "rows": rows}))


if __name__ == "__main__":
    main()

"""Attention over packed sequences on this machine: the ways to do it, on one mix of sizes.

On a CPU, time is the best of several rounds in which the ways take turns, so that a busy machine
slows all of them alike. Usage: `python benchmarks/bench_attention.py [--threads N] [--rounds N]`.
With `--device cuda` every implementation there is runs on the mixes of `attention_on_gpu`, which
also takes `--toy`, `--seconds N`, `--rows FILE` and `--ceilings FILE` like the other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import attention_on_gpu
import torch
from ceilings import Ceilings
from measurement import Ledger
from stopwatch import Stopwatch
from torch import Tensor
from torch.nn import functional as F

from fit_kernels import attention_varlen
from fit_kernels.attention import equal_runs
from fit_models.device import use_fast_float32_matmul

HEADS, HEAD_DIM = 4, 64
# Both branches of guided requests for 96, 128, 160 and 192 pixel areas.
LENGTHS = (36, 36, 64, 64, 60, 60, 100, 100, 100, 100, 96, 96, 98, 98, 144, 144, 140, 140)
CU_SEQLENS = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32)

Qkv = tuple[Tensor, Tensor, Tensor]


def each_sdpa(qkv: Qkv) -> Tensor:
    """One SDPA call per sequence."""
    parts = zip(*(x.split(LENGTHS) for x in qkv), strict=True)
    return torch.cat(
        [F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in p))[0] for p in parts], 1
    ).transpose(0, 1)


def each_bmm(qkv: Qkv) -> Tensor:
    """bmm, softmax, bmm per sequence."""
    parts = zip(*(x.split(LENGTHS) for x in qkv), strict=True)
    out = []
    for q, k, v in parts:
        scores = (q.transpose(0, 1) * HEAD_DIM**-0.5) @ k.permute(1, 2, 0)
        out.append(scores.softmax(-1) @ v.transpose(0, 1))
    return torch.cat(out, 1).transpose(0, 1)


def runs_sdpa(qkv: Qkv) -> Tensor:
    """One SDPA call per run of equal lengths."""
    parts = []
    for start, count, length in equal_runs(LENGTHS):
        q, k, v = (
            x[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2)
            for x in qkv
        )
        out = F.scaled_dot_product_attention(q, k, v)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def runs_bmm(qkv: Qkv) -> Tensor:
    """bmm, softmax, bmm per run of equal lengths."""
    parts = []
    for start, count, length in equal_runs(LENGTHS):
        q, k, v = (
            x[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2)
            for x in qkv
        )
        out = ((q * HEAD_DIM**-0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def padded_sdpa(qkv: Qkv) -> Tensor:
    """Padded to the longest, with a mask: what packing does away with."""
    lengths = torch.tensor(LENGTHS)
    mask = torch.arange(max(LENGTHS)) < lengths[:, None]
    q, k, v = (
        torch.nn.utils.rnn.pad_sequence(list(x.split(LENGTHS)), batch_first=True).transpose(1, 2)
        for x in qkv
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    return out.transpose(1, 2)[mask]


def ours(qkv: Qkv) -> Tensor:
    """What the network calls."""
    return attention_varlen(*qkv, CU_SEQLENS, equal_runs(LENGTHS), max(LENGTHS))


WAYS: dict[str, Callable[[Qkv], Tensor]] = {
    "each sequence, SDPA": each_sdpa,
    "each sequence, bmm": each_bmm,
    "equal lengths together, SDPA": runs_sdpa,
    "equal lengths together, bmm": runs_bmm,
    "padded with a mask, SDPA": padded_sdpa,
    "attention_varlen": ours,
}


def measure(dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Milliseconds of each way; raises if two ways disagree."""
    generator = torch.Generator().manual_seed(0)
    shape = (sum(LENGTHS), HEADS, HEAD_DIM)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    want = each_sdpa((q, k, v)).float()
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(rounds):
        for name, way in WAYS.items():
            started = time.perf_counter()
            out = way((q, k, v))
            best[name] = min(best[name], (time.perf_counter() - started) * 1e3)
            torch.testing.assert_close(out.float(), want, atol=2e-2, rtol=2e-2)
    return best


def measure_on_gpu(arguments: argparse.Namespace) -> None:
    """What `attention_on_gpu` measures; its toy form needs no GPU."""
    deadline = time.monotonic() + arguments.seconds
    device = "cpu" if arguments.toy else arguments.device
    torch.manual_seed(0)
    with Stopwatch(device, 0.005 if arguments.toy else 0.1) as stopwatch:
        file = arguments.ceilings
        taken = Ceilings.from_file(file) if file else Ceilings.measured(stopwatch, arguments.toy)
        attention_on_gpu.measure(arguments.toy, stopwatch, taken, Ledger(arguments.rows), deadline)


def main() -> None:
    """Print a table and, on a CPU, a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--toy", action="store_true", help="the GPU's part, small, on the CPU")
    parser.add_argument("--seconds", type=float, default=90.0, help="start nothing after that")
    parser.add_argument("--rows", type=Path, help="append measurements here, JSON lines")
    parser.add_argument("--ceilings", type=Path, help="take these; measured here if left out")
    arguments = parser.parse_args()
    if arguments.toy or arguments.device != "cpu":
        measure_on_gpu(arguments)
        return
    torch.set_num_threads(arguments.threads)
    use_fast_float32_matmul()
    with torch.inference_mode():
        results = {
            str(dtype).removeprefix("torch."): measure(dtype, arguments.rounds)
            for dtype in (torch.float32, torch.bfloat16)
        }
    print(f"{sum(LENGTHS)} tokens in {len(LENGTHS)} sequences, {HEADS} heads of {HEAD_DIM}")
    for dtype, times in results.items():
        for name, milliseconds in times.items():
            print(f"{dtype:9} {name:30} {milliseconds:8.2f} ms")
    print(json.dumps({"threads": arguments.threads, "milliseconds": results}))


if __name__ == "__main__":
    main()

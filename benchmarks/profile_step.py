"""Where the time of one network evaluation goes on a CPU, and how near it comes to the best rate.

Usage: `python benchmarks/profile_step.py [--model embedded] [--model FiTv2-B/2] [--dtype DTYPE]
[--tokens N ...] [--threads N] [--rounds N]`. A named size gets random weights. The group of an
operation is the operator of `fit_kernels` it runs in; matrix products, and gathers and copies
wherever they are made, are groups of their own. Shares are of a profiled run; the time of a step is
the median and the best of unprofiled rounds, in which the sizes take turns. The rate (best)
counts matrix products and attention (`ModelConfig.flops_per_token`); the best rate is that of one
`F.linear` of 1,024 rows, the best of a few shapes in the same rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from bench_network import random_network
from measurement import markdown
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from fit_kernels import reference
from fit_kernels.attention.grouped import GROUPED
from fit_models.bundle import load_bundle
from fit_models.config import NAMED_CONFIGS, named_config
from fit_models.device import DTYPES, use_fast_float32_matmul
from fit_models.host_memory import keep_freed_memory
from fit_models.modulation import StackedModulation
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from fit_models.prepacked import lay_out_weights

PRODUCTS, COPIES, OTHER = "products", "gathers, copies", "other"
_ATTENTION, _NORMS, _ROPE, _SWIGLU = "attention", "norms, modulation", "qk-norm, rope", "swiglu"
GROUPS = (PRODUCTS, _ATTENTION, _NORMS, _ROPE, _SWIGLU, COPIES, OTHER)
_OPERATORS = (
    (reference, "layer_norm_modulate", _NORMS),
    (reference, "gated_residual_layer_norm_modulate", _NORMS),
    (reference, "swiglu", _SWIGLU),
    (reference, "qk_norm_rope", _ROPE),
    (GROUPED, "attend", _ATTENTION),
)
_PRODUCTS = ("aten::addmm", "aten::mm", "aten::linear", "mkldnn::")
_COPIES = ("aten::copy_", "aten::index_select", "aten::index", "aten::cat")
_BEST_SHAPES = ((1024, 768, 2304), (1024, 768, 768), (1024, 1024, 1024))
_GRID = (10, 10)
_PROFILED = 3


@dataclass
class Case:
    """One pack of sequences of 100 tokens (160 x 160 pixels), of one network."""

    model: str
    dtype: torch.dtype
    tokens: int
    flops: float
    evaluate: Callable[[], Any]


def network_of(model: str, dtype: torch.dtype) -> FiTv2:
    """A named size with random weights, or a bundle."""
    if model in NAMED_CONFIGS:
        torch.manual_seed(0)
        return random_network(named_config(model), torch.device("cpu"), dtype, lay_out_weights)
    return load_bundle(model, "cpu", dtype).fitv2("profiles")


def case_of(model: str, network: FiTv2, tokens: int) -> Case:
    """Random latents, one timestep and class per picture, modulation made once as a server does."""
    config, weight = network.config, network.x_embedder.proj.weight
    count = max(1, tokens // (_GRID[0] * _GRID[1]))
    layout = layout_of_grids([_GRID] * count, config.head_dim, config.rope, weight.device)
    stacked = StackedModulation(network)
    label = torch.arange(count) % config.num_classes
    modulation = stacked.split(
        stacked.rows(torch.linspace(0, 1, count), label), layout.seq_of_token
    )
    tokens_TK = torch.randn(layout.num_tokens, config.token_channels).to(weight.dtype)
    flops = layout.num_tokens * config.flops_per_token(_GRID[0] * _GRID[1])
    return Case(
        model,
        weight.dtype,
        layout.num_tokens,
        flops,
        lambda: network.denoise(tokens_TK, layout, modulation),
    )


def product_calls(dtype: torch.dtype) -> list[tuple[float, Callable[[], Any]]]:
    """(operations, call) of the products that the machine's best rate is taken from."""
    calls = []
    for rows, inner, columns in _BEST_SHAPES:
        x, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        calls.append((2.0 * rows * inner * columns, lambda x=x, w=weight: F.linear(x, w)))
    return calls


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextmanager
def marked_operators() -> Iterator[None]:
    """Give the calls of each operator a range in the profile."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _OPERATORS]

    def marked(function: Callable[..., Any], group: str) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(group):
                return function(*args, **kwargs)

        return call

    for owner, name, group in _OPERATORS:
        setattr(owner, name, marked(getattr(owner, name), group))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def shares_of(evaluate: Callable[[], Any]) -> dict[str, float]:
    """Share of each group in the time of a few profiled evaluations."""
    with marked_operators(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(_PROFILED):
            with record_function(OTHER):
                evaluate()
    spent: Counter[str] = Counter()
    for event in profiler.events() or ():
        spent[_group(event)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {group: spent[group] / total for group in GROUPS}


def _group(event: Any) -> str:
    if event.name.startswith(_PRODUCTS):
        return PRODUCTS
    parent = event
    while parent is not None and parent.name not in GROUPS:
        parent = parent.cpu_parent
    if parent is None:
        return OTHER
    return COPIES if event.name in _COPIES else parent.name


@torch.inference_mode()
def measure(cases: list[Case], rounds: int) -> None:
    """Time the cases of one dtype in turns, profile each, print a table."""
    products = product_calls(cases[0].dtype)
    best_rate, seconds = 0.0, {id(case): [] for case in cases}
    for case in cases:
        case.evaluate()
    for _ in range(rounds):
        best_rate = max(best_rate, *(work / timed(call) for work, call in products))
        for case in cases:
            seconds[id(case)].append(timed(case.evaluate))
    lines = []
    for case in cases:
        median = statistics.median(seconds[id(case)])
        best = min(seconds[id(case)])
        rate = case.flops / best
        shares = shares_of(case.evaluate)
        lines.append(
            (
                case.model,
                str(case.tokens),
                f"{median * 1e3:.1f}",
                f"{best * 1e3:.1f}",
                *(f"{shares[group]:.0%}" for group in GROUPS),
                f"{rate / 1e9:.0f}",
                f"{rate / best_rate:.0%}",
            )
        )
    dtype = str(cases[0].dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    print(f"\n{dtype}, {threads} thread(s), best product {best_rate / 1e9:.0f} GFLOP/s\n")
    print(
        markdown(("model", "tokens", "ms", "best ms", *GROUPS, "GFLOP/s", "of best"), lines),
        flush=True,
    )


def main() -> None:
    """Print a table per dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="a bundle or a named size")
    parser.add_argument("--dtype", action="append", choices=tuple(DTYPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=(200, 500, 800))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    use_fast_float32_matmul()
    keep_freed_memory()
    for dtype in arguments.dtype or DTYPES:
        cases = []
        for model in arguments.model or ("embedded", "FiTv2-B/2"):
            network = network_of(model, DTYPES[dtype])
            cases += [case_of(model, network, tokens) for tokens in arguments.tokens]
        measure(cases, arguments.rounds)


if __name__ == "__main__":
    main()

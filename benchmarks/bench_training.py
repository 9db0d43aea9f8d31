"""Useful tokens a second: training on packed images against training on padded ones.

Usage: `python benchmarks/bench_training.py --photographs ARCHIVE [--models FiTv2-Ti/2 FiTv2-S/2]
[--rules fit augmented] [--batch-images 16] [--threads 1] [--rounds 5] [--json FILE]`.

Both ways train the same network from the same weights on the same images with the same noise: one
step is forward, backward, clipping and AdamW. "packed" is what `fit-serve train` does, images in
order of length. "padded" is what FiT's released code does: rows padded to the longest image of the
batch, a boolean mask through SDPA, losses masked. "padded, products" is the same with attention as
two plain products, faster in training on a CPU; what packing alone gains is measured against it.

Sizes are those of real photographs: `fit` puts them through FiT's resize rule (at most 256 x 256
pixels in area, small ones are not enlarged, sides cut to 16 pixels), `source` does so with the
photographs' sizes before the archive made them smaller, `augmented` takes our augmenting rule
(`fit_training.preparation.image_variants`). Latents are random numbers: time does not depend on
them. Before anything is timed, all ways' predictions and losses have to agree.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import math
import statistics
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from training_ways import (
    WAYS,
    Grid,
    Problem,
    check_agreement,
    loss_of,
    make_problem,
    open_gates,
    predict,
)

from fit_models.config import named_config
from fit_models.networks.fitv2 import FiTv2
from fit_training.loop.optimizer import make_optimizers
from fit_training.preparation.image_variants import VariantConfig, choose_variant

RULES = ("fit", "source", "augmented")
PRECISIONS = ("float32", "bfloat16")
_NUM_CLASSES = 95
_TOKEN_PIXELS = 16
_FIT_SIDE = 256
_LEARNING_RATE = 1e-4
_CLIP = 1.0
_SEED = 0


@dataclass(frozen=True)
class Row:
    """Result of a model, size rule and precision; tokens a second are medians, by way."""

    model: str
    rule: str
    precision: str
    mean_tokens: float
    padding_share: float
    tokens_per_s: dict[str, float]
    gain: float
    gain_over_products: float


def fit_grid(width: int, height: int, side: int = _FIT_SIDE) -> Grid:
    """FiT's resize rule, in whole tokens: (rows, columns).

    A photograph of more than side x side pixels is made smaller to that area; one with a side
    below a token is enlarged to one; others keep their size. Then sides are cut to whole tokens.
    """
    scale = min(1.0, side / math.sqrt(width * height))
    scale = max(scale, _TOKEN_PIXELS / min(width, height))
    rows, columns = (int(pixels * scale + 1e-6) // _TOKEN_PIXELS for pixels in (height, width))
    return rows, columns


def photograph_grids(archive: Path, rule: str) -> list[Grid]:
    """(rows, columns) of every photograph of an archive under one of `RULES`."""
    with zipfile.ZipFile(archive) as opened, opened.open("manifest.csv") as raw:
        manifest = list(csv.DictReader(io.TextIOWrapper(raw, "utf-8", newline="")))
    prefix = "source_" if rule == "source" else ""
    sizes = [(int(row[f"{prefix}width"]), int(row[f"{prefix}height"])) for row in manifest]
    if rule != "augmented":
        return [fit_grid(*size) for size in sizes]
    chosen = (choose_variant(s, VariantConfig(), _SEED, i, 0) for i, s in enumerate(sizes))
    return [(v.height // _TOKEN_PIXELS, v.width // _TOKEN_PIXELS) for v in chosen]


class Trainee:
    """A copy of the network with its own optimizer, trained one way."""

    def __init__(self, network: FiTv2, way: str) -> None:
        self.network = copy.deepcopy(network)
        self.way = way
        self._optimizers = make_optimizers((self.network,), "adamw", _LEARNING_RATE, 0.0)

    def step(self, problem: Problem, precision: str) -> float:
        """One optimizer step; its seconds."""
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            velocity = predict(self.network, problem, self.way)
        loss_of(velocity, problem, self.way).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def measure(network: FiTv2, problems: Sequence[Problem], precision: str) -> dict[str, list[float]]:
    """Useful tokens a second by way, one value a round; the first problem only warms up."""
    trainees = [Trainee(network, way) for way in WAYS]
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for number, problem in enumerate(problems):
        for place in range(len(WAYS)):
            trainee = trainees[(number + place) % len(WAYS)]
            seconds = trainee.step(problem, precision)
            if number:
                rates[trainee.way].append(problem.layout.num_tokens / seconds)
    return rates


def median_gain(rates: dict[str, list[float]], baseline: str) -> float:
    """Median over rounds of packed over a baseline: the two of a round ran one after the other."""
    pairs = zip(rates["packed"], rates[baseline], strict=True)
    return statistics.median(packed / padded for packed, padded in pairs)


def run_case(
    arguments: argparse.Namespace, model: str, rule: str, put: Callable[[Row], None]
) -> None:
    """Check and time a model on the sizes of one rule, in every precision."""
    generator = torch.Generator().manual_seed(_SEED)
    network = FiTv2(named_config(model, _NUM_CLASSES))
    network.initialize()
    open_gates(network, generator)
    grids = photograph_grids(arguments.photographs, rule)
    images = torch.randperm(len(grids), generator=generator).tolist()
    batches = [
        [grids[images.pop()] for _ in range(arguments.batch_images)]
        for _ in range(arguments.rounds + 1)
    ]
    problems = [make_problem(network, batch, generator) for batch in batches]
    largest = check_agreement(network, problems[0])
    print(f"{model}, {rule}: the ways agree to {largest:.1e}", flush=True)
    places = sum(problem.padded.real.numel() for problem in problems[1:])
    tokens = sum(problem.layout.num_tokens for problem in problems[1:])
    for precision in PRECISIONS:
        rates = measure(network, problems, precision)
        put(
            Row(
                model=model,
                rule=rule,
                precision=precision,
                mean_tokens=tokens / arguments.rounds / arguments.batch_images,
                padding_share=1 - tokens / places,
                tokens_per_s={way: statistics.median(rates[way]) for way in WAYS},
                gain=median_gain(rates, "padded"),
                gain_over_products=median_gain(rates, "padded, products"),
            )
        )


def print_row(row: Row) -> None:
    """One line of a Markdown table."""
    rates = " | ".join(f"{row.tokens_per_s[way]:,.0f}" for way in WAYS)
    print(
        f"| {row.model} | {row.rule} | {row.precision} | {row.mean_tokens:.0f} | "
        f"{row.padding_share:.0%} | {rates} | {row.gain:.2f} | {row.gain_over_products:.2f} |",
        flush=True,
    )


def main() -> None:
    """Print a table for people and one line of JSON for machines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photographs", type=Path, required=True, help="zip with manifest.csv")
    parser.add_argument("--models", nargs="+", default=["FiTv2-Ti/2", "FiTv2-S/2"])
    parser.add_argument("--rules", nargs="+", default=["fit", "augmented"], choices=RULES)
    parser.add_argument("--batch-images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result here too")
    arguments = parser.parse_args()
    torch.manual_seed(_SEED)
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []

    def put(row: Row) -> None:
        rows.append(row)
        print_row(row)

    ways = " | ".join(f"{way}, tokens/s" for way in WAYS)
    print(f"| model | sizes | precision | tokens/image | padding | {ways} | gain | over products |")
    print("| --- " * (7 + len(WAYS)) + "|", flush=True)
    for model in arguments.models:
        for rule in arguments.rules:
            run_case(arguments, model, rule, put)
    result = {
        "benchmark": "training",
        "batch_images": arguments.batch_images,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "torch": torch.__version__,
        "latents": "random",
        "rows": [asdict(row) for row in rows],
    }
    line = json.dumps(result)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()

"""Calibration: how long a step takes on this device with this model, and the budget from it.

Runs the network on packs of equal sequences with random latents. What surrounds the network in a
step (gathers, guidance, the sampler's update) is not timed: it is small beside it.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.captions import CaptionStates, join_captions
from fit_models.families import (
    NetworkConfig,
    TextNetwork,
    family_of,
    position_tables,
    takes_grid,
)
from fit_models.modulation import modulation_source
from fit_models.packing import pack_layout
from fit_serve.engine.buckets import default_buckets
from fit_serve.engine.cost_model import CostModel, Sample, fit_cost_model
from fit_serve.engine.graph_shape import graph_shapes
from fit_serve.engine.graphed_network import GraphedNetwork
from fit_serve.engine.step_timing import PackShape, time_in_turns

KNEE = 0.9
"""Share of the best tokens a second at which a step is large enough: past it everybody waits longer
for little (benchmarks/simulate_scheduler.py)."""
SECONDS = 30.0
"""Most that a calibration takes unless told otherwise."""

_CPU_TOTALS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_GPU_TOTALS = (*(4 * total for total in _CPU_TOTALS), 24_576, 32_768)
_LONG_COUNTS = (1, 2, 4)  # sequences of a long grid in a pack
_MODULATION_ROWS = 64  # distinct (timestep, label) of a step, at most
_CAPTION_TOKENS = 32  # of a caption of usual length


@dataclass(frozen=True)
class Calibration:
    """What was measured, and what follows from it.

    Attributes:
        cost_model: seconds of a step.
        max_num_batched_tokens: the budget: its knee.
        token_buckets: totals to pad steps up to; empty on a CPU.
        max_graph_tokens: largest step that is faster as a CUDA graph; 0: none is.
        seconds: what measuring took.
        measured_at: when it began, UTC, ISO 8601.
        model: name of the bundle.
        device: as its maker calls it.
        dtype: of the network, as "float32".
        num_threads: torch threads of the step.
    """

    cost_model: CostModel
    max_num_batched_tokens: int
    token_buckets: tuple[int, ...]
    max_graph_tokens: int
    seconds: float
    measured_at: str
    model: str
    device: str
    dtype: str
    num_threads: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of a step as large as the budget."""
        return self.cost_model.tokens_per_s(self.max_num_batched_tokens)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        values = {**asdict(self), "token_buckets": list(self.token_buckets)}
        return {**values, "cost_model": self.cost_model.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a field is missing, unknown or cannot be; the message names it.
        """
        if set(values) != (known := {f.name for f in fields(cls)}):
            raise ValueError(f"calibration has the fields {sorted(values)}; needed {sorted(known)}")
        if not isinstance(values["cost_model"], Mapping):
            raise ValueError(f"cost_model is {values['cost_model']!r}; it must be an object")
        buckets = values["token_buckets"]
        if not isinstance(buckets, list) or any(type(b) is not int or b < 1 for b in buckets):
            raise ValueError(f"token_buckets is {buckets!r}; it must be a list of token counts")
        if buckets != sorted(set(buckets)):
            raise ValueError(f"token_buckets is {buckets!r}; buckets must rise")
        for name in ("max_num_batched_tokens", "num_threads"):
            if type(values[name]) is not int or values[name] < 1:
                raise ValueError(f"{name} is {values[name]!r}; it must be a whole number from 1 on")
        graphs = values["max_graph_tokens"]
        if type(graphs) is not int or graphs < 0:
            raise ValueError(f"max_graph_tokens is {graphs!r}; it must be a whole number from 0 on")
        if type(values["seconds"]) not in (int, float) or not values["seconds"] >= 0:
            raise ValueError(f"seconds is {values['seconds']!r}; it must be a number from 0 on")
        for name in ("measured_at", "model", "device", "dtype"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} is {values[name]!r}; it must be a string")
        model = CostModel.from_dict(values["cost_model"])
        return cls(**{**values, "cost_model": model, "token_buckets": tuple(buckets)})


def calibrate(
    bundle: Bundle,
    num_threads: int | None = None,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure now, with the operators and the attention in use in this process.

    Args:
        bundle: on its device, in its dtype; nothing else should run there meanwhile.
        num_threads: torch threads of the step; None and 0 leave the number that is set.
        seconds: limit; what is compiled or one step may exceed it.
        clock: seconds.

    Raises:
        ValueError: a limit or a number of threads that cannot be.
        torch.OutOfMemoryError: not even the smallest step fits.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds}; it must be above 0 and finite")
    if num_threads is not None and num_threads < 0:
        raise ValueError(f"num_threads is {num_threads}; it must be at least 0")
    started, measured_at = clock(), datetime.now(UTC).isoformat(timespec="seconds")
    shapes = shapes_for(bundle.model_config, bundle.device)
    with _threads(num_threads), torch.inference_mode():
        threads = torch.get_num_threads()
        steps = _Steps(bundle)
        left = seconds - (clock() - started)
        if bundle.device.type == "cuda":
            eager = time_in_turns(shapes, steps, left / 2, clock)
            curve = [shape for shape in shapes if shape.grid == shapes[0].grid]
            graphs = []
            if not isinstance(bundle.network, TextNetwork):
                graphs = time_in_turns(curve, steps.with_graphs(curve), left / 2, clock)
            samples, max_graph_tokens = fastest(eager, graphs)
        else:
            samples, max_graph_tokens = time_in_turns(shapes, steps, left, clock), 0
    cost_model = fit_cost_model(samples)
    budget = cost_model.knee(KNEE)
    return Calibration(
        cost_model=cost_model,
        max_num_batched_tokens=budget,
        token_buckets=default_buckets(bundle.device, budget),
        max_graph_tokens=max_graph_tokens,
        seconds=clock() - started,
        measured_at=measured_at,
        model=bundle.name,
        device=device_name(bundle.device),
        dtype=str(bundle.dtype).removeprefix("torch."),
        num_threads=threads,
    )


def fastest(eager: Items[Sample], graphs: Items[Sample]) -> tuple[list[Sample], int]:
    """Each step the faster way, and the largest step up to which graphs were faster."""
    as_graph = {sample.lengths: sample for sample in graphs}
    best = [min(s, as_graph.get(s.lengths, s), key=lambda sample: sample.seconds) for s in eager]
    pays = [s.tokens for s in eager if s.lengths in as_graph and best[eager.index(s)] is not s]
    return best, max(pays, default=0)


def shapes_for(config: NetworkConfig, device: torch.device) -> list[PackShape]:
    """Packs that tell the curve and the cost of long sequences.

    The curve is taken with pictures as large as the model was trained with on a GPU, with a quarter
    of their tokens on a CPU, where small steps matter. The long ones have four times the tokens,
    and sixteen on a CPU too.
    """
    trained = family_of(config).trained_side(config)
    side = max(1, trained // 2) if device.type == "cpu" else trained
    if not takes_grid(side, side, config):
        side = trained
    totals = _CPU_TOTALS if device.type == "cpu" else _GPU_TOTALS
    curve = (PackShape((side, side), max(1, round(total / side**2))) for total in totals)
    long = (
        PackShape((longer, longer), count)
        for longer in sorted({trained, 2 * trained} - {side})
        if takes_grid(longer, longer, config)
        for count in _LONG_COUNTS
    )
    return list(dict.fromkeys((*curve, *long)))


def device_name(device: torch.device) -> str:
    """What its maker calls it; a processor with the number of cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


class _Steps:
    """Steps of one network; a pack is made when its shape comes up for the first time."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._source = modulation_source(bundle.network)
        self._captions, conditions = _conditions(bundle)
        self._rows = self._source.rows(
            torch.linspace(0, 1, _MODULATION_ROWS, device=bundle.device), conditions
        )
        self._denoise: Callable[..., Tensor] = bundle.network.denoise
        self._slabs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._packs: dict[PackShape, tuple[Any, ...]] = {}
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, shape: PackShape) -> None:
        """Make a step and wait for the device."""
        if shape not in self._packs:
            self._packs[shape] = self._pack(shape)
        self._denoise(*self._packs[shape])
        if self._bundle.device.type == "cuda":
            torch.cuda.synchronize(self._bundle.device)

    def with_graphs(self, shapes: Items[PackShape]) -> _Steps:
        """Steps of these shapes, all of one grid, as CUDA graphs."""
        totals = [shape.tokens for shape in shapes]
        other = _Steps(self._bundle)
        slab = other._slab_of(shapes[0].grid)
        network = self._bundle.class_network("CUDA graphs")
        graphed = GraphedNetwork(network, self._source, max(totals))
        graphed.capture(graph_shapes(totals, max(shape.count for shape in shapes)), *slab)
        other._denoise = graphed.denoise
        return other

    def _slab_of(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        if grid not in self._slabs:
            cos, sin = position_tables(*grid, self._bundle.model_config)
            self._slabs[grid] = cos.to(self._bundle.device), sin.to(self._bundle.device)
        return self._slabs[grid]

    def _pack(self, shape: PackShape) -> tuple[Any, ...]:
        config, device = self._bundle.model_config, self._bundle.device
        length = shape.grid[0] * shape.grid[1]
        cos, sin = self._slab_of(shape.grid)
        rope_row = torch.arange(length).repeat(shape.count)
        layout = pack_layout([length] * shape.count, cos, sin, rope_row, [shape.grid] * shape.count)
        rows = self._rows[: min(shape.count, _MODULATION_ROWS)]
        modulation = self._source.split(rows, layout.seq_of_token % rows.shape[0])
        tokens = torch.randn(shape.tokens, config.token_channels, generator=self._generator)
        pack = tokens.to(device, self._bundle.dtype), layout, modulation
        if self._captions is None:
            return pack
        return *pack, join_captions([self._captions] * shape.count)


def _conditions(bundle: Bundle) -> tuple[CaptionStates | None, Tensor]:
    """A caption of usual length, where the network reads any; and what stands where labels do."""
    network, device = bundle.network, bundle.device
    if not isinstance(network, TextNetwork):
        return None, torch.zeros(_MODULATION_ROWS, dtype=torch.int64, device=device)
    shape = (_CAPTION_TOKENS, network.config.caption_channels)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    captions = network.caption_states(features.to(device, bundle.dtype), [_CAPTION_TOKENS])
    return captions, captions.pooled.expand(_MODULATION_ROWS, -1)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "cpu"

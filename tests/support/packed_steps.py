"""Steps of random mixes for a small network, and its graphs: on a GPU, or recorded on the CPU."""

import random
from dataclasses import dataclass, replace
from itertools import accumulate, product

import torch
from torch import Tensor, nn

from fit_models.config import named_config
from fit_models.modulation import StackedModulation
from fit_models.modulation_rows import Modulation
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import PackedLayout, pack_layout
from fit_models.rope import rope_table
from fit_serve.engine.capturer import CudaCapturer
from fit_serve.engine.graph_shape import GraphShape
from fit_serve.engine.graphed_network import GraphedNetwork
from support.on_gpu import DEVICE, INTERPRETED
from support.recorded_graphs import RecordingCapturer

# The interpreter takes a second for what a GPU does at once.
BUCKETS, SEQUENCES, STEPS = ((4, 8), 5, 2) if INTERPRETED else ((64, 256, 512), 12, 24)
DEPTH, LONGEST_SIDE = (1, 2) if INTERPRETED else (2, 9)
SHAPES = [GraphShape(tokens, SEQUENCES, tokens) for tokens in BUCKETS]
_SIDES = range(1, LONGEST_SIDE + 1)
GRIDS = list(product(_SIDES, _SIDES))


@dataclass
class Step:
    tokens: Tensor
    layout: PackedLayout
    modulation: Modulation

    @torch.inference_mode()
    def through(self, network: FiTv2 | GraphedNetwork) -> Tensor:
        return network.denoise(self.tokens, self.layout, self.modulation)


class Steps:
    """A network with every gate open, its rotary slab, and steps of random mixes."""

    def __init__(self, dtype: torch.dtype) -> None:
        config = replace(named_config("FiTv2-toy/2", 3), depth=DEPTH)
        self.network = FiTv2(config).eval().requires_grad_(False)
        for module in self.network.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.normal_(module.bias, std=0.1)
        self.network.to(DEVICE, dtype)
        self.stacked = StackedModulation(self.network)
        tables = [rope_table(*grid, config.head_dim, config.rope) for grid in GRIDS]
        cos, sin = (torch.cat(parts).to(DEVICE) for parts in zip(*tables, strict=True))
        self.slab = cos, sin
        lengths = [rows * columns for rows, columns in GRIDS]
        self._first_row = dict(zip(GRIDS, accumulate([0, *lengths[:-1]]), strict=True))
        self._random, self._dtype = random.Random(0), dtype

    def graphed(self) -> GraphedNetwork:
        capturer = RecordingCapturer if INTERPRETED else CudaCapturer
        graphed = GraphedNetwork(self.network, self.stacked, BUCKETS[-1], capturer)
        graphed.capture(SHAPES, *self.slab)
        return graphed

    def draw(self, total: int) -> Step:
        """As many guided pictures as there is place for, or fewer; the rest is padding."""
        lengths: list[int] = []
        rows: list[Tensor] = []
        for _ in range(self._random.randint(1, (SEQUENCES - 1) // 2)):
            grid = self._random.choice(GRIDS)
            length = grid[0] * grid[1]
            if sum(lengths) + 2 * length > total:
                continue
            lengths += [length] * 2
            rows += [torch.arange(length) + self._first_row[grid]] * 2
        if padding := total - sum(lengths):
            lengths.append(padding)
            rows.append(torch.zeros(padding, dtype=torch.int64))
        layout = pack_layout(lengths, *self.slab, torch.cat(rows))
        timestep, label = torch.rand(len(lengths)), torch.arange(len(lengths)) % 4
        rows_RM = self.stacked.rows(timestep.to(DEVICE), label.to(DEVICE))
        modulation = self.stacked.split(rows_RM, layout.seq_of_token)
        tokens = torch.randn(total, self.network.config.token_channels)
        return Step(tokens.to(DEVICE, self._dtype), layout, modulation)

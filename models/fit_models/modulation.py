"""AdaLN rows of all blocks at once: two products for a step instead of two per block.

Exact, not an approximation: a row depends on (timestep, label) alone.

Dimension key: R rows, L blocks, D width, r rank of the low-rank projection, M values of a row.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fit_models.families import Network, TextNetwork, placement
from fit_models.modulation_rows import Modulation
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import pack_layout


def joined_rows(modulation: Modulation) -> Tensor:
    """The rows [R, M] that `StackedModulation.split` took apart: a view where they are views."""
    parts = (*modulation.blocks, modulation.final)
    first, offset = parts[0], parts[0].storage_offset()
    memory = first.untyped_storage().data_ptr()
    for part in parts:
        neighbour = part.storage_offset() == offset and part.stride() == first.stride()
        if not neighbour or part.untyped_storage().data_ptr() != memory:
            return torch.cat(parts, dim=1)
        offset += part.shape[1]
    return first.as_strided((first.shape[0], offset - first.storage_offset()), first.stride())


class ModulationSource(Protocol):
    """Makes the rows of a network, and hands them to it."""

    @property
    def row_values(self) -> int:
        """M: all that a network reads of one (timestep, label)."""
        ...

    @property
    def row_dtype(self) -> torch.dtype:
        """Of the rows; some networks need more than their weights have."""
        ...

    def rows(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """One row per (timestep, label): [R, M].

        Of networks that read captions, `label_R` is what these give to the condition, `pooled`.
        """
        ...

    def split(self, rows_RM: Tensor, row_of_token: Tensor) -> Modulation:
        """Rows as the network takes them; views, nothing is copied."""
        ...


def modulation_source(network: Network) -> ModulationSource:
    """The fastest there is for a network."""
    if isinstance(network, FiTv2):
        return StackedModulation(network)
    return ComputedModulation(network)


def rows_one_by_one(source: ModulationSource, timestep_R: Tensor, label_R: Tensor) -> Tensor:
    """As `source.rows`, each row computed alone: its bits depend on no other key, [R, M]."""
    keys = zip(timestep_R.split(1), label_R.split(1), strict=True)
    return torch.cat([source.rows(timestep, label) for timestep, label in keys])


class ComputedModulation:
    """The rows of any network, as it computes them itself."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._device = placement(network)[0]
        nothing = torch.zeros(1, 0, device=self._device)
        self._layout = pack_layout([1], nothing, nothing, torch.zeros(1, dtype=torch.int64))
        one = self._of(torch.zeros(1), _any_condition(network))
        parts = (*one.blocks, one.final)
        self._sizes = [part.shape[1] for part in parts]
        self._dtype = torch.cat(parts, dim=1).dtype

    @property
    def row_values(self) -> int:
        """M: all blocks, then the final layer."""
        return sum(self._sizes)

    @property
    def row_dtype(self) -> torch.dtype:
        """What the network computes them in."""
        return self._dtype

    @torch.inference_mode()
    def rows(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """One row per (timestep, label): [R, M]."""
        modulation = self._of(timestep_R, label_R)
        return torch.cat((*modulation.blocks, modulation.final), dim=1)

    def split(self, rows_RM: Tensor, row_of_token: Tensor) -> Modulation:
        """Rows as the network takes them; views, nothing is copied."""
        *blocks, final = rows_RM.split(self._sizes, dim=1)
        return Modulation(tuple(blocks), final, row_of_token)

    @torch.inference_mode()
    def _of(self, timestep_R: Tensor, label_R: Tensor) -> Modulation:
        return self._network.modulate(
            timestep_R.to(self._device), label_R.to(self._device), self._layout
        )


def _any_condition(network: Network) -> Tensor:
    """What stands where labels do, of one row."""
    if isinstance(network, TextNetwork):
        return torch.zeros(1, network.config.condition_size, dtype=placement(network)[1])
    return torch.zeros(1, dtype=torch.int64)


class StackedModulation:
    """The adaLN projections of FiTv2, stacked over blocks."""

    def __init__(self, network: FiTv2) -> None:
        config = network.config
        self._network = network
        self._depth, self._rank = config.depth, config.adaln_lora_dim
        self._block_values = 6 * config.hidden_size
        down, up = zip(*network.low_rank_modulations(), strict=True)
        self._down_weight = torch.cat([layer.weight for layer in down])  # [L r, D]
        self._down_bias = torch.cat([layer.bias for layer in down])
        self._up_weight = torch.stack([layer.weight.t() for layer in up])  # [L, r, 6D]
        self._up_bias = torch.stack([layer.bias for layer in up])[:, None]  # [L, 1, 6D]

    @property
    def row_values(self) -> int:
        """M: six vectors for every block, two for the final layer."""
        return self._depth * self._block_values + 2 * self._network.config.hidden_size

    @property
    def row_dtype(self) -> torch.dtype:
        """That of the weights."""
        return self._down_weight.dtype

    @torch.inference_mode()
    def rows(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        """One row per (timestep, label): [R, M]."""
        condition_RD = self._network.condition(timestep_R, label_R)
        shared_R6D = self._network.global_adaLN_modulation[1](condition_RD)
        low_RLr = torch.addmm(self._down_bias, condition_RD, self._down_weight.t())
        low_LRr = low_RLr.unflatten(1, (self._depth, self._rank)).transpose(0, 1)
        blocks_LR6D = torch.baddbmm(self._up_bias, low_LRr, self._up_weight) + shared_R6D
        final_R2D = self._network.final_layer.adaLN_modulation[1](condition_RD)
        return torch.cat((blocks_LR6D.transpose(0, 1).flatten(1), final_R2D), dim=1)

    def split(self, rows_RM: Tensor, row_of_token: Tensor) -> Modulation:
        """Rows as the network takes them; views, nothing is copied."""
        size = self._block_values
        blocks = tuple(rows_RM[:, i * size : (i + 1) * size] for i in range(self._depth))
        return Modulation(blocks, rows_RM[:, self._depth * size :], row_of_token)

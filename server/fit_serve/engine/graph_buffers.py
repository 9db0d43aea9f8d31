"""Static memory that CUDA graphs read a step from and write its result to, shared by all of them.

One buffer of each kind as large as the largest graph wants; a smaller graph works on its beginning.

Dimension key: T packed tokens, S sequences at most, R modulation rows at most, M values of a row,
K token channels, P channels of a prediction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.families import ClassNetwork, placement
from fit_models.modulation import ModulationSource, joined_rows
from fit_models.modulation_rows import Modulation
from fit_models.packing import PackedLayout
from fit_serve.engine.graph_shape import GraphShape


@dataclass(frozen=True, kw_only=True)
class StaticLayout(PackedLayout):
    """A layout of fixed tensors; no lengths and no runs, so what asks the host for them fails.

    Attributes:
        bound: what `max_length` says, whatever the sequences are.
    """

    bound: int

    @property
    def max_length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """An upper bound."""
        return self.bound


@dataclass(frozen=True)
class StaticStep:
    """Arguments and result of one evaluation in static memory.

    Attributes:
        tokens_TK: the network's dtype.
        layout: `cu_seqlens` is int32 [S + 1]; its unused tail repeats T: sequences of no tokens.
        rows_RM: what `modulation` is views of.
        modulation: row numbers of tokens are static, too.
        output_TP: the result.
    """

    tokens_TK: Tensor
    layout: StaticLayout
    rows_RM: Tensor
    modulation: Modulation
    output_TP: Tensor

    def fill(self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> None:
        """Copy a step of T tokens here; rows past its own stay as they are, nobody reads them."""
        mine, used = self.layout, layout.num_sequences + 1
        self.tokens_TK.copy_(tokens_TK)
        mine.rope_row.copy_(layout.rope_row)
        mine.seq_of_token.copy_(layout.seq_of_token)
        mine.cu_seqlens[:used].copy_(layout.cu_seqlens)
        mine.cu_seqlens[used:].fill_(layout.num_tokens)
        rows_RM = joined_rows(modulation)
        self.rows_RM[: rows_RM.shape[0]].copy_(rows_RM)
        self.modulation.row_of_token.copy_(modulation.row_of_token)

    def run(self, network: ClassNetwork) -> None:
        """Evaluate what lies here; the result lands in `output_TP`."""
        self.output_TP.copy_(network.denoise(self.tokens_TK, self.layout, self.modulation))


class GraphBuffers:
    """Allocates for the largest of some shapes, and gives each its views."""

    def __init__(
        self,
        network: ClassNetwork,
        stacked: ModulationSource,
        shapes: Collection[GraphShape],
        slab: tuple[Tensor, Tensor],
    ) -> None:
        device, dtype = placement(network)
        tokens, sequences = (max(s.tokens for s in shapes), max(s.sequences for s in shapes))
        self._stacked, self._slab = stacked, slab
        self._tokens = torch.zeros(
            tokens, network.config.token_channels, device=device, dtype=dtype
        )
        self._output = torch.zeros(
            tokens, network.config.output_channels, device=device, dtype=dtype
        )
        self._rows = torch.zeros(
            sequences, stacked.row_values, device=device, dtype=stacked.row_dtype
        )
        self._cu_seqlens = torch.zeros(sequences + 1, dtype=torch.int32, device=device)
        self._rope_row, self._seq_of_token, self._row_of_token = torch.zeros(
            3, tokens, dtype=torch.int64, device=device
        ).unbind()

    def step(self, shape: GraphShape) -> StaticStep:
        """Views for a shape, holding a step of its bounds that may be evaluated as it is."""
        tokens, rows_RM = shape.tokens, self._rows[: shape.sequences]
        cu_seqlens = self._cu_seqlens[: shape.sequences + 1]
        longest_first = torch.arange(shape.sequences + 1) * shape.max_length
        cu_seqlens.copy_(longest_first.clamp(max=tokens))
        layout = StaticLayout(
            lengths=(),
            runs=(),
            cu_seqlens=cu_seqlens,
            seq_of_token=self._seq_of_token[:tokens],
            rope_cos=self._slab[0],
            rope_sin=self._slab[1],
            rope_row=self._rope_row[:tokens],
            bound=shape.max_length,
        )
        modulation = self._stacked.split(rows_RM, self._row_of_token[:tokens])
        return StaticStep(self._tokens[:tokens], layout, rows_RM, modulation, self._output[:tokens])

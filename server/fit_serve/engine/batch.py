"""Sequences to packed tensors: rebuilt only when membership or branches change.

The state of a sequence lies in the packed *state* [Ts, K] once; the network sees packed *tokens*
[T, K] in which a guided sequence appears twice, the conditional branch before the unconditional.
Equal lengths lie side by side so that attention runs them together.

Dimension key: T packed tokens, Ts state tokens, S branches, K token channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.device import upload
from fit_models.families import TableKey
from fit_models.packing import PackedLayout, pack_layout
from fit_serve.engine.caption import Caption
from fit_serve.engine.rope_cache import RopeCache
from fit_serve.engine.sequence import Sequence


@dataclass(frozen=True, eq=False)
class Batch:
    """One membership of the packed batch, described.

    Attributes:
        sequences: in packed order.
        branches: of each.
        tables: positions that each reads.
        captions: of every branch in packed order, those of the padding included; empty for networks
            that read none.
        layout: of the branches; the last ones may be padding.
        state_slices: where each sequence's state lies.
        sequence_of_state: int64 [Ts].
        token_source: int64 [T], the state token each packed token is read from.
        conditional, unconditional: int64 [Ts], the packed token each state token's predictions are
            read from; equal where there is one branch, the same tensor where nobody has two.
        own: int64 [Ts], 0 to Ts - 1.
        num_padding: tokens of padding at the tail.
        num_dummies: sequences of the layout that the padding makes.
    """

    sequences: tuple[Sequence, ...]
    branches: tuple[int, ...]
    tables: tuple[TableKey, ...]
    captions: tuple[Caption, ...]
    layout: PackedLayout
    state_slices: tuple[slice, ...]
    sequence_of_state: Tensor
    token_source: Tensor
    conditional: Tensor
    unconditional: Tensor
    own: Tensor
    num_padding: int
    num_dummies: int

    @property
    def num_real_tokens(self) -> int:
        """Tokens that are not padding."""
        return self.layout.num_tokens - self.num_padding

    def describes(self, sequences: Items[Sequence]) -> bool:
        """Whether these sequences, in this order, with what comes next of each, are this batch."""
        return (
            self.sequences == tuple(sequences)
            and self.branches == tuple(s.num_branches for s in sequences)
            and self.tables == tuple(s.table for s in sequences)
        )


def packed_order(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Sort by (length, branches); the sort is stable, so the order is a function of membership."""
    return sorted(sequences, key=lambda s: (s.num_tokens, s.num_branches))


def pad_target(num_tokens: int, buckets: Items[int]) -> int:
    """The smallest bucket that holds the tokens; the tokens themselves above the largest."""
    return next((bucket for bucket in buckets if bucket >= num_tokens), num_tokens)


def build_batch(
    sequences: Items[Sequence],
    rope: RopeCache,
    buckets: Items[int] = (),
    pads_to_longest: bool = False,
) -> Batch:
    """Describe the given sequences, in the given order.

    Args:
        sequences: who runs.
        rope: where rotary rows are.
        buckets: totals to pad up to.
        pads_to_longest: compute as many tokens for each branch as the longest has, as servers do
            that know no packed batch. Attention stays free of the padding, which flatters them.
    """
    device = rope.cos.device
    first_row = rope.rows_of({s.table for s in sequences})
    lengths, rope_rows, source, conditional, unconditional, slices = [], [], [], [], [], []
    grids: list[tuple[int, int]] = []
    token = state = 0
    for s in sequences:
        n = s.num_tokens
        own = torch.arange(state, state + n)
        for _ in range(s.num_branches):
            lengths.append(n)
            grids.append(s.grid)
            rope_rows.append(torch.arange(first_row[s.table], first_row[s.table] + n))
            source.append(own)
        conditional.append(torch.arange(token, token + n))
        token += n * s.num_branches
        unconditional.append(torch.arange(token - n, token))
        slices.append(slice(state, state + n))
        state += n
    dummies = [max(lengths) - n for n in lengths if pads_to_longest and n < max(lengths)]
    missing = pad_target(token, buckets) - token
    if missing and not pads_to_longest:
        dummies.append(missing)
    # Padding is sequences of its own that see only themselves (row 0, state 0 and the first caption
    # will do); it has no grid.
    lengths += dummies
    captions = [c for s in sequences for c in s.captions[: s.num_branches]]
    captions += captions[:1] * len(dummies)
    padding = sum(dummies)
    rope_rows.append(torch.zeros(padding, dtype=torch.int64))
    source.append(torch.zeros(padding, dtype=torch.int64))
    counts = torch.tensor([s.num_tokens for s in sequences])
    conditional_of_state = upload(torch.cat(conditional), device)
    nobody_guided = all(s.num_branches == 1 for s in sequences)
    return Batch(
        sequences=tuple(sequences),
        branches=tuple(s.num_branches for s in sequences),
        tables=tuple(s.table for s in sequences),
        captions=tuple(captions),
        layout=pack_layout(lengths, rope.cos, rope.sin, torch.cat(rope_rows), grids),
        state_slices=tuple(slices),
        sequence_of_state=upload(
            torch.repeat_interleave(torch.arange(len(sequences)), counts), device
        ),
        token_source=upload(torch.cat(source), device),
        conditional=conditional_of_state,
        unconditional=conditional_of_state
        if nobody_guided
        else upload(torch.cat(unconditional), device),
        own=upload(torch.arange(state), device),
        num_padding=padding,
        num_dummies=len(dummies),
    )

"""Where the tensors of running sequences are: packed by who ran together last.

Sequences that keep running together are never moved; when membership changes, their parts are
gathered anew. Used from the thread that runs steps only.

Dimension key: Ts state tokens, N tokens of one sequence, K token channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.device import upload
from fit_serve.engine.sequence import Sequence


@dataclass
class PackedState:
    """Tensors [Ts, K], fp32, of sequences end to end.

    Attributes:
        sequences: in packed order.
        slices: where each lies.
        state: the sampler's.
        memory: the sampler's memory.
        last, before: the last two guided predictions; None while nobody reuses any.
    """

    sequences: tuple[Sequence, ...]
    slices: tuple[slice, ...]
    state: Tensor
    memory: Tensor
    last: Tensor | None = None
    before: Tensor | None = None

    def part(self, sequence: Sequence) -> PackedState:
        """One sequence's part, as views."""
        where = self.slices[self.sequences.index(sequence)]
        last, before = (None if t is None else t[where] for t in (self.last, self.before))
        whole = slice(0, where.stop - where.start)
        return PackedState(
            (sequence,), (whole,), self.state[where], self.memory[where], last, before
        )

    def copied(self) -> PackedState:
        """The same in memory of its own."""
        last, before = (None if t is None else t.clone() for t in (self.last, self.before))
        return PackedState(
            self.sequences, self.slices, self.state.clone(), self.memory.clone(), last, before
        )


class StateStore:
    """The state of every sequence that has begun and not ended."""

    def __init__(self, device: torch.device, token_channels: int) -> None:
        self._device = device
        self._channels = token_channels
        self._homes: dict[Sequence, PackedState] = {}

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._homes

    def gather(
        self, sequences: tuple[Sequence, ...], starts: Mapping[Sequence, Tensor], keeps: bool
    ) -> PackedState:
        """The packed state of these sequences, in this order.

        Args:
            sequences: who runs together now.
            starts: state [N, K] on the host of those that begin.
            keeps: whether predictions are to be kept.
        """
        home = self._homes.get(sequences[0])
        if home is None or home.sequences != sequences:
            home = self._packed([self._part(s, starts) for s in sequences])
            self._settle(home)
        if keeps and home.last is None:
            home.last, home.before = torch.zeros_like(home.state), torch.zeros_like(home.state)
        return home

    def take(self, sequence: Sequence) -> Tensor:
        """Hand over the state [N, K] of a finished sequence and forget it."""
        return self._homes.pop(sequence).part(sequence).state

    def forget(self, sequences: Iterable[Sequence]) -> None:
        """Drop sequences that ended otherwise; unknown ones are fine."""
        for sequence in sequences:
            self._homes.pop(sequence, None)

    def _part(self, sequence: Sequence, starts: Mapping[Sequence, Tensor]) -> PackedState:
        if sequence in self._homes:
            return self._homes[sequence].part(sequence)
        if sequence in starts:
            state = upload(starts[sequence], self._device)
        else:  # its last step failed or it was dropped, and it ended while this step was under way
            state = torch.zeros(sequence.num_tokens, self._channels, device=self._device)
        whole = (slice(0, len(state)),)
        return PackedState((sequence,), whole, state, torch.zeros_like(state))

    def _packed(self, parts: Items[PackedState]) -> PackedState:
        slices, end = [], 0
        for part in parts:
            slices.append(slice(end, end + len(part.state)))
            end += len(part.state)
        keeps = any(part.last is not None for part in parts)
        return PackedState(
            tuple(part.sequences[0] for part in parts),
            tuple(slices),
            torch.cat([part.state for part in parts]),
            torch.cat([part.memory for part in parts]),
            torch.cat([_or_zeros(part.last, part.state) for part in parts]) if keeps else None,
            torch.cat([_or_zeros(part.before, part.state) for part in parts]) if keeps else None,
        )

    def _settle(self, home: PackedState) -> None:
        """Move its sequences in; who is left behind in an old pack gets memory of its own."""
        old = {id(self._homes[s]): self._homes[s] for s in home.sequences if s in self._homes}
        members = set(home.sequences)
        for pack in old.values():
            for sequence in pack.sequences:
                if sequence not in members and self._homes.get(sequence) is pack:
                    self._homes[sequence] = pack.part(sequence).copied()
        for sequence in home.sequences:
            self._homes[sequence] = home


def _or_zeros(kept: Tensor | None, state: Tensor) -> Tensor:
    return torch.zeros_like(state) if kept is None else kept

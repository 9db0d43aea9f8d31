"""The host's half of a step: everything that can be known before the device has done the last one.

Describes the packed batch, draws noise, and writes down the numbers each sequence is advanced by.
Runs ahead of the device, so it reads no result; the device's half is `runner.py`.

Dimension key: T packed tokens, Ts state tokens, S sequences, B branches, K token channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.diffusion.discrete_sampler import variance_ranges
from fit_models.families import TableKey
from fit_serve.engine.batch import Batch, build_batch, packed_order
from fit_serve.engine.modulation_cache import Key
from fit_serve.engine.rope_cache import RopeCache
from fit_serve.engine.sequence import Sequence
from fit_serve.engine.turn import Turn

_STAYS = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)  # a row that leaves state and memory as they are


@dataclass(frozen=True)
class StepReport:
    """What a step was made of.

    Attributes:
        real_tokens: of all branches.
        padded_tokens: all that the network computes, padding included.
        num_sequences: that took part.
        num_resolutions: their different sizes.
        num_reused: evaluations that followed without the network.
    """

    real_tokens: int
    padded_tokens: int
    num_sequences: int
    num_resolutions: int
    num_reused: int = 0


@dataclass(frozen=True)
class Fold:
    """Evaluations without the network, one of each sequence that has one; the others stay.

    Attributes:
        rows_S8: sampler coefficients and guidance scale.
        weights_S2: of the last prediction and of the one before.
    """

    rows_S8: Tensor
    weights_S2: Tensor


@dataclass(frozen=True)
class PreparedPack:
    """One network call to come, and what follows from it; tensors on the host but the batch's.

    Attributes:
        batch: description of the membership.
        rows_S8: sampler coefficients and guidance scale of every sequence.
        keys: distinct (timestep, label) of the step; a caption's number is its label.
        row_of_branch: int64 [B], which of them each branch uses, padding included.
        noise_TsK: fresh noise, zeros where none is wanted; None for nobody.
        ranges_S2: between which log variances the network puts that of the noise; None for nobody.
        starts: [N, K] start noise of sequences that run for the first time.
        folds: evaluations that follow without the network.
        shifts_S: bool, see `Turn.shifts`; None where no sequence reuses predictions.
        watched: sequences that want to know how their prediction changed, and their turn.
        finishing: sequences whose last evaluation this is.
    """

    batch: Batch
    rows_S8: Tensor
    keys: tuple[Key, ...]
    row_of_branch: Tensor
    noise_TsK: Tensor | None
    ranges_S2: Tensor | None
    starts: dict[Sequence, Tensor]
    folds: tuple[Fold, ...]
    shifts_S: Tensor | None
    watched: tuple[tuple[Sequence, int], ...]
    finishing: tuple[Sequence, ...]


@dataclass(frozen=True)
class PreparedStep:
    """A step ready for the device.

    Attributes:
        packs: one of everybody, or one for each.
        report: what the step is made of.
        forgotten: sequences whose state is dropped before it.
    """

    packs: tuple[PreparedPack, ...]
    report: StepReport
    forgotten: tuple[Sequence, ...] = ()


class Packer:
    """Descriptions and sources of noise of what runs; used from the engine's thread only."""

    def __init__(
        self,
        rope: RopeCache,
        token_channels: int,
        null_label: int | None,
        buckets: Items[int] = (),
        shares_packs: bool = True,
        pads_to_longest: bool = False,
    ) -> None:
        """`null_label` None: sequences have captions, which stand where labels would.

        `shares_packs` False gives every sequence a pack, so that no shape tells of others.
        `pads_to_longest`: see `build_batch`.
        """
        self._pads_to_longest = pads_to_longest
        self._rope = rope
        self._channels = token_channels
        self._null_label = null_label
        self._buckets = buckets
        self._shares_packs = shares_packs
        self._generators: dict[Sequence, torch.Generator] = {}
        self._batches: dict[Sequence, Batch] = {}  # by the first sequence of each
        self._rope_evictions = 0  # when the batches were described
        self._tables: frozenset[TableKey] = frozenset()

    def prepare(self, sequences: Items[Sequence]) -> PreparedStep:
        """Describe the next turn of every sequence; moves nobody."""
        tables = frozenset(s.table for s in sequences)
        self._rope.protected = tables | self._tables  # a step of those may be under way
        self._tables = tables
        groups = [packed_order(sequences)] if self._shares_packs else [[s] for s in sequences]
        packs = tuple(self._prepare(group, [s.next_turn() for s in group]) for group in groups)
        return PreparedStep(
            packs,
            StepReport(
                real_tokens=sum(pack.batch.num_real_tokens for pack in packs),
                padded_tokens=sum(pack.batch.layout.num_tokens for pack in packs),
                num_sequences=len(sequences),
                num_resolutions=len({s.grid for s in sequences}),
                num_reused=sum(len(s.next_turn().reused) for s in sequences),
            ),
        )

    def forget(self, sequences: Iterable[Sequence]) -> None:
        """Drop what is kept of sequences that have ended; unknown ones are fine."""
        for sequence in sequences:
            self._generators.pop(sequence, None)
            self._batches.pop(sequence, None)

    def _prepare(self, group: list[Sequence], turns: list[Turn]) -> PreparedPack:
        starts = {s: self._start(s) for s in group if s not in self._generators}
        keys, row_of_branch = self._modulation_keys(group, turns)
        batch = self._batch_of(group)
        row_of_branch += [0] * batch.num_dummies
        keeps = any(s.rule is not None for s in group)
        return PreparedPack(
            batch=batch,
            rows_S8=torch.tensor([_row(s, t.position) for s, t in zip(group, turns, strict=True)]),
            keys=keys,
            row_of_branch=torch.tensor(row_of_branch),
            noise_TsK=self._noise(group, turns),
            ranges_S2=variance_ranges(
                [s.evaluations[t.position] for s, t in zip(group, turns, strict=True)]
            ),
            starts=starts,
            folds=tuple(_folds(group, turns)),
            shifts_S=torch.tensor([turn.shifts for turn in turns]) if keeps else None,
            watched=tuple((s, s.turns) for s in group if s.rule is not None and s.rule.watches),
            finishing=tuple(
                s for s, t in zip(group, turns, strict=True) if t.end == len(s.evaluations)
            ),
        )

    def _batch_of(self, group: list[Sequence]) -> Batch:
        """The description of last time if it still holds."""
        self._drop_stale()
        batch = self._batches.get(group[0])
        if batch is None or not batch.describes(group):
            batch = build_batch(group, self._rope, self._buckets, self._pads_to_longest)
            self._drop_stale()  # describing this one may have moved rows of another
            if self._shares_packs:
                self._batches.clear()
            self._batches[group[0]] = batch
        return batch

    def _drop_stale(self) -> None:
        """Forget descriptions whose rotary rows may be others now."""
        if self._rope_evictions != self._rope.evictions:
            self._batches.clear()
            self._rope_evictions = self._rope.evictions

    def _start(self, sequence: Sequence) -> Tensor:
        """Noise from the sequence's own generator, on the CPU: the same on every machine."""
        generator = torch.Generator().manual_seed(sequence.request.seed)
        self._generators[sequence] = generator
        shape = (sequence.num_tokens, self._channels)
        noise = torch.randn(shape, generator=generator)
        if sequence.start_noise:
            noise = noise + sequence.start_noise * torch.randn(shape, generator=generator)
        return noise

    def _modulation_keys(
        self, group: list[Sequence], turns: list[Turn]
    ) -> tuple[tuple[Key, ...], list[int]]:
        """Distinct (timestep, label) of the step, and which one each branch uses."""
        index: dict[Key, int] = {}
        row_of_branch = []
        for sequence, turn in zip(group, turns, strict=True):
            timestep = sequence.evaluations[turn.position].network_timestep
            for label in self._labels(sequence)[: turn.branches]:
                row_of_branch.append(index.setdefault((timestep, label), len(index)))
        return tuple(index), row_of_branch

    def _labels(self, sequence: Sequence) -> tuple[int, ...]:
        """Of the conditional and of the unconditional branch."""
        if self._null_label is None:
            return tuple(caption.caption_id for caption in sequence.captions)
        assert sequence.request.class_label is not None
        return sequence.request.class_label, self._null_label

    def _noise(self, group: list[Sequence], turns: list[Turn]) -> Tensor | None:
        """Fresh noise for sequences whose rule wants it, zeros for others; None for nobody."""
        wants = [s.evaluations[t.position].needs_noise for s, t in zip(group, turns, strict=True)]
        if not any(wants):
            return None
        draws = []
        for sequence, wanted in zip(group, wants, strict=True):
            shape = (sequence.num_tokens, self._channels)
            generator = self._generators[sequence]
            draws.append(torch.randn(shape, generator=generator) if wanted else torch.zeros(shape))
        return torch.cat(draws)


def _row(sequence: Sequence, position: int) -> tuple[float, ...]:
    """Sampler coefficients and guidance scale of one evaluation."""
    return (*sequence.evaluations[position].coefficients, sequence.guidance_scales[position])


def _folds(group: list[Sequence], turns: list[Turn]) -> Iterable[Fold]:
    """The first reused evaluation of everybody who has one, then the second, and so on."""
    for depth in range(max(len(turn.reused) for turn in turns)):
        rows, weights = [], []
        for sequence, turn in zip(group, turns, strict=True):
            if depth < len(turn.reused):
                reuse = turn.reused[depth]
                rows.append(_row(sequence, reuse.position))
                weights.append((reuse.last, reuse.before))
            else:
                rows.append(_STAYS)
                weights.append((0.0, 0.0))
        yield Fold(torch.tensor(rows), torch.tensor(weights))

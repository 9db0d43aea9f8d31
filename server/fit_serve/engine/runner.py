"""Runs one packed batch on the device: the only place where requests meet tensors.

Keeps the state of every running sequence (its tokens and its sampler's memory) and knows how to
advance them all by one evaluation. Decides nothing: who runs is the scheduler's business.

Dimension key: T packed tokens, Ts state tokens, S branches, K token channels.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_kernels import guided_step
from fit_models.bundle import Bundle
from fit_models.diffusion.prediction import timestep_of_sigma
from fit_models.modulation import StackedModulation
from fit_models.rope import rope_table
from fit_serve.engine.batch import Batch, build_batch, packed_order
from fit_serve.engine.buckets import default_buckets
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.modulation_cache import Key, ModulationCache
from fit_serve.engine.rope_cache import RopeCache
from fit_serve.engine.sequence import Sequence


@dataclass(frozen=True)
class StepReport:
    """What a step was made of."""

    real_tokens: int
    padded_tokens: int
    num_sequences: int
    num_resolutions: int


@dataclass
class _SequenceState:
    """Tokens [N, K] and sampler memory [N, K] of one sequence, fp32; and its source of noise."""

    tokens: Tensor
    memory: Tensor
    generator: torch.Generator


class Runner:
    """State and caches on one device; used from the engine's thread only."""

    def __init__(self, bundle: Bundle, config: EngineConfig) -> None:
        network, model = bundle.network, bundle.model_config
        self.device, self.dtype = bundle.device, bundle.dtype
        self.network = network
        self.buckets = (
            default_buckets(self.device) if config.token_buckets is None else config.token_buckets
        )
        self.rope = RopeCache(
            lambda rows, columns: rope_table(rows, columns, model.head_dim, model.rope),
            config.rope_cache_tokens,
            model.head_dim // 2,
            self.device,
        )
        self._stacked = StackedModulation(network)
        self.modulation = ModulationCache(
            self._stacked, config.modulation_cache_rows, self.device, self.dtype
        )
        self._states: dict[Sequence, _SequenceState] = {}
        self._batch: Batch | None = None
        self._packed: tuple[Tensor, Tensor] | None = None

    @torch.inference_mode()
    def run(self, sequences: Items[Sequence]) -> StepReport:
        """Advance every sequence by one evaluation; positions are moved by the engine."""
        batch = self._batch_of(sequences)
        assert self._packed is not None
        state_TsK, memory_TsK = self._packed
        rows = [
            (*s.evaluations[s.position].coefficients, s.guidance_scales[s.position])
            for s in batch.sequences
        ]
        self._packed = guided_step(
            state_TsK,
            self._velocity(batch, state_TsK),
            memory_TsK,
            self._noise(batch),
            batch.conditional,
            batch.unconditional,
            torch.tensor(rows, device=self.device),
            batch.sequence_of_state,
            self.network.config.guided_token_channels,
        )
        return StepReport(
            real_tokens=batch.num_real_tokens,
            padded_tokens=batch.layout.num_tokens,
            num_sequences=len(batch.sequences),
            num_resolutions=len({s.grid for s in batch.sequences}),
        )

    def take(self, sequence: Sequence) -> Tensor:
        """Hand over the tokens [N, K] of a finished sequence and forget it."""
        self._unpack()
        return self._states.pop(sequence).tokens

    def forget(self, sequences: Items[Sequence]) -> None:
        """Drop the state of sequences that ended otherwise; unknown ones are fine."""
        self._unpack()
        for sequence in sequences:
            self._states.pop(sequence, None)

    def _batch_of(self, sequences: Items[Sequence]) -> Batch:
        ordered = packed_order(sequences)
        if self._batch is not None and self._batch.describes(ordered):
            return self._batch
        self._unpack()
        for sequence in ordered:
            if sequence not in self._states:
                self._states[sequence] = self._start(sequence)
        states = [self._states[s] for s in ordered]
        batch = build_batch(ordered, self.rope, self.buckets)
        self._packed = (
            torch.cat([s.tokens for s in states]),
            torch.cat([s.memory for s in states]),
        )
        self._batch = batch
        return batch

    def _unpack(self) -> None:
        """Write the packed state back to its sequences; they own it while no batch is described."""
        if self._batch is None or self._packed is None:
            return
        tokens, memory = self._packed
        for sequence, where in zip(self._batch.sequences, self._batch.state_slices, strict=True):
            state = self._states[sequence]
            state.tokens, state.memory = tokens[where], memory[where]
        self._batch = self._packed = None

    def _start(self, sequence: Sequence) -> _SequenceState:
        """Noise from the sequence's own generator, on the CPU: the same on every machine."""
        generator = torch.Generator().manual_seed(sequence.request.seed)
        shape = (sequence.num_tokens, self.network.config.token_channels)
        noise = torch.randn(shape, generator=generator)
        if sequence.start_noise:
            noise = noise + sequence.start_noise * torch.randn(shape, generator=generator)
        tokens = noise.to(self.device)
        return _SequenceState(tokens, torch.zeros_like(tokens), generator)

    def _velocity(self, batch: Batch, state_TsK: Tensor) -> Tensor:
        """The network's prediction for every packed token, [T, K]."""
        tokens_TK = state_TsK.index_select(0, batch.token_source).to(self.dtype)
        keys, row_of_branch = self._modulation_keys(batch)
        row_of_token = row_of_branch.to(self.device).index_select(0, batch.layout.seq_of_token)
        modulation = self._stacked.split(self.modulation.rows(keys), row_of_token)
        return self.network.denoise(tokens_TK, batch.layout, modulation)

    def _modulation_keys(self, batch: Batch) -> tuple[list[Key], Tensor]:
        """Distinct (timestep, label) of the step, and which one each branch uses."""
        index: dict[Key, int] = {}
        row_of_branch = []
        null = self.network.config.null_label
        for sequence, branches in zip(batch.sequences, batch.branches, strict=True):
            timestep = timestep_of_sigma(sequence.evaluations[sequence.position].sigma)
            for label in (sequence.request.class_label, null)[:branches]:
                row_of_branch.append(index.setdefault((timestep, label), len(index)))
        if batch.num_padding:
            row_of_branch.append(0)
        return list(index), torch.tensor(row_of_branch)

    def _noise(self, batch: Batch) -> Tensor | None:
        """Fresh noise for sequences whose rule wants it, zeros for others; None for nobody."""
        if not any(s.evaluations[s.position].needs_noise for s in batch.sequences):
            return None
        draws = []
        for s in batch.sequences:
            shape = (s.num_tokens, self.network.config.token_channels)
            if s.evaluations[s.position].needs_noise:
                draws.append(torch.randn(shape, generator=self._states[s].generator))
            else:
                draws.append(torch.zeros(shape))
        return torch.cat(draws).to(self.device)

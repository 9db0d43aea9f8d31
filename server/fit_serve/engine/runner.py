"""The device's half of a step: the only place where requests meet tensors.

Takes what `packer.py` has prepared and advances the state of every sequence by one turn. Decides
nothing: who runs is the scheduler's business.

Dimension key: T packed tokens, Ts state tokens, S sequences, K token channels, P channels of a
prediction.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fit_kernels import guided_step
from fit_models.bundle import Bundle
from fit_models.device import upload
from fit_models.diffusion.discrete_sampler import scaled_noise
from fit_models.diffusion.guidance import guide
from fit_models.families import TextNetwork, position_tables, position_widths
from fit_models.modulation import modulation_source
from fit_serve.engine.batch import Batch
from fit_serve.engine.buckets import default_buckets
from fit_serve.engine.caption_cache import CaptionCache
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.execution import Execution
from fit_serve.engine.modulation_cache import ModulationCache
from fit_serve.engine.packed_state import PackedState, StateStore
from fit_serve.engine.packer import Fold, Packer, PreparedPack, PreparedStep, StepReport
from fit_serve.engine.rope_cache import RopeCache
from fit_serve.engine.sequence import Sequence
from fit_serve.engine.step_clock import StepClock

_CAPTION_ROWS_BYTES = 2**29


@dataclass(frozen=True)
class StepResult:
    """What came of a step; on a GPU its tensors hold once `clock.wait` has returned.

    Attributes:
        report: what the step was made of.
        finished: tokens [N, K] of sequences that are done.
        changes: (sequence, its turn, relative change of its prediction as a tensor of one number).
        clock: when it was done, and how long it took.
    """

    report: StepReport
    finished: dict[Sequence, Tensor]
    changes: tuple[tuple[Sequence, int, Tensor], ...]
    clock: StepClock


class Runner:
    """State and caches on one device.

    `prepare` and `forget` belong to the engine's thread, `execute` to the thread that runs steps;
    the two may be the same.
    """

    def __init__(
        self, bundle: Bundle, config: EngineConfig, max_graph_tokens: int | None = None
    ) -> None:
        """`max_graph_tokens`: the largest step that CUDA graphs are meant for, if it is known.

        Raises:
            ValueError: what the settings ask for cannot run here.
        """
        network, model = bundle.network, bundle.model_config
        self.device, self.dtype = bundle.device, bundle.dtype
        self.buckets = (
            default_buckets(self.device) if config.token_buckets is None else config.token_buckets
        )
        self.rope = RopeCache(
            lambda rows, columns, *scaling: position_tables(rows, columns, model, *scaling),
            config.rope_cache_tokens,
            position_widths(model),
            self.device,
        )
        self._guided_channels = model.guided_token_channels
        self._source = modulation_source(network)
        self.execution = Execution(bundle, self._source, config, self.buckets, max_graph_tokens)
        self.captions: CaptionCache | None = None
        num_rows, null_label = config.modulation_cache_rows, None
        if isinstance(network, TextNetwork):
            self.captions = CaptionCache(network, config.caption_cache_bytes)
            # A caption's rows serve its own pictures only, so there is no use for very many.
            row_bytes = self._source.row_values * self._source.row_dtype.itemsize
            num_rows = max(1, min(num_rows, _CAPTION_ROWS_BYTES // row_bytes))
        else:
            null_label = network.config.null_label
        self.modulation = ModulationCache(
            self._source,
            num_rows,
            self.device,
            self._source.row_dtype,
            one_by_one=config.batch_invariant,
            conditions=None if self.captions is None else self.captions.pooled,
        )
        # On a CPU even elementwise loops treat the ends of a tensor differently, so that only
        # shapes which depend on nothing but the sequence give the same bits.
        shares_packs = not (config.batch_invariant and self.device.type == "cpu")
        self._packer = Packer(
            self.rope,
            model.token_channels,
            null_label,
            self.buckets,
            shares_packs,
            pads_to_longest=config.batching == "padded-mixed",
        )
        self._store = StateStore(self.device, model.token_channels)
        self._forgotten: list[Sequence] = []

    def prepare(self, sequences: Items[Sequence]) -> PreparedStep:
        """Describe the next turn of every sequence; positions are moved by the engine."""
        step = self._packer.prepare(sequences)
        forgotten, self._forgotten = tuple(self._forgotten), []
        return replace(step, forgotten=forgotten)

    def forget(self, sequences: Items[Sequence]) -> None:
        """Drop sequences that have ended; unknown ones are fine.

        What the device keeps of them goes with the next step that is prepared: those under way may
        still hold them.
        """
        self._packer.forget(sequences)
        self._forgotten.extend(sequences)

    @torch.inference_mode()
    def execute(self, step: PreparedStep) -> StepResult:
        """Advance every sequence of the step by its turn."""
        clock = StepClock(self.device)
        self._drop(step.forgotten)
        finished: dict[Sequence, Tensor] = {}
        changes: list[tuple[Sequence, int, Tensor]] = []
        for pack in step.packs:
            changes += self._advance(pack)
            finished |= {s: self._store.take(s) for s in pack.finishing}
        clock.stop(self.device)
        return StepResult(step.report, finished, tuple(changes), clock)

    def release(self) -> None:
        """Free at once what was forgotten; no step may be under way."""
        self._drop(self._forgotten)
        self._forgotten = []

    def _drop(self, sequences: Items[Sequence]) -> None:
        self._store.forget(sequences)
        if self.captions is not None:
            self.captions.forget(sequences)

    def _advance(self, pack: PreparedPack) -> list[tuple[Sequence, int, Tensor]]:
        keeps = pack.shifts_S is not None
        packed = self._store.gather(pack.batch.sequences, pack.starts, keeps)
        prediction_TP = self._prediction(pack, packed.state)
        velocity_TK = prediction_TP[:, : packed.state.shape[1]].contiguous()
        rows_S8, noise = upload(pack.rows_S8, self.device), self._noise(pack, prediction_TP)
        if pack.shifts_S is None:
            packed.state, packed.memory = guided_step(
                packed.state,
                velocity_TK,
                packed.memory,
                noise,
                pack.batch.conditional,
                pack.batch.unconditional,
                rows_S8,
                pack.batch.sequence_of_state,
                self._guided_channels,
            )
            return []
        guided_TsK = self._guided(pack.batch, velocity_TK, rows_S8)
        changes = self._keep(pack, packed, guided_TsK)
        self._move(pack, packed, guided_TsK, rows_S8, noise)
        for fold in pack.folds:
            self._fold(pack, packed, fold)
        return changes

    def _noise(self, pack: PreparedPack, prediction_TP: Tensor) -> Tensor | None:
        """Fresh noise [Ts, K], as large as the conditional branch says where it does."""
        if pack.noise_TsK is None:
            return None
        noise_TsK = upload(pack.noise_TsK, self.device)
        if pack.ranges_S2 is None:
            return noise_TsK
        variance_TK = prediction_TP[:, noise_TsK.shape[1] :]
        return scaled_noise(
            noise_TsK,
            variance_TK.index_select(0, pack.batch.conditional),
            upload(pack.ranges_S2, self.device),
            pack.batch.sequence_of_state,
        )

    def _prediction(self, pack: PreparedPack, state_TsK: Tensor) -> Tensor:
        """Predictions [T, P] of the network for every branch."""
        batch, captions = pack.batch, None
        if self.captions is not None:
            self.captions.hold(batch.sequences)
            captions = self.captions.joined(batch)
        tokens_TK = state_TsK.index_select(0, batch.token_source).to(self.dtype)
        row_of_branch = upload(pack.row_of_branch, self.device)
        row_of_token = row_of_branch.index_select(0, batch.layout.seq_of_token)
        modulation = self._source.split(self.modulation.rows(pack.keys), row_of_token)
        return self.execution.denoise(tokens_TK, batch.layout, modulation, captions)

    def _guided(self, batch: Batch, velocity_TK: Tensor, rows_S8: Tensor) -> Tensor:
        """Both branches as one prediction [Ts, K], fp32."""
        conditional_TsK = velocity_TK.index_select(0, batch.conditional).float()
        unconditional_TsK = velocity_TK.index_select(0, batch.unconditional).float()
        scale_Ts1 = rows_S8[:, 7].index_select(0, batch.sequence_of_state)[:, None]
        return guide(conditional_TsK, unconditional_TsK, scale_Ts1, self._guided_channels)

    def _keep(
        self, pack: PreparedPack, packed: PackedState, guided_TsK: Tensor
    ) -> list[tuple[Sequence, int, Tensor]]:
        """Put the prediction beside the last one; tell those who watch how it changed."""
        assert packed.last is not None
        assert packed.before is not None
        assert pack.shifts_S is not None
        changes = []
        for sequence, turn in pack.watched:
            where = packed.slices[packed.sequences.index(sequence)]
            last = packed.last[where]
            change = (guided_TsK[where] - last).abs().mean() / last.abs().mean()
            changes.append((sequence, turn, change))
        shifts_S = upload(pack.shifts_S, self.device)
        shifts_Ts1 = shifts_S.index_select(0, pack.batch.sequence_of_state)[:, None]
        packed.before = torch.where(shifts_Ts1, packed.last, packed.before)
        packed.last = guided_TsK
        return changes

    def _fold(self, pack: PreparedPack, packed: PackedState, fold: Fold) -> None:
        """One more evaluation, its prediction read off the line through the last two."""
        assert packed.last is not None
        assert packed.before is not None
        weights_S2 = upload(fold.weights_S2, self.device)
        weights_Ts2 = weights_S2.index_select(0, pack.batch.sequence_of_state)
        line_TsK = weights_Ts2[:, :1] * packed.last + weights_Ts2[:, 1:] * packed.before
        self._move(pack, packed, line_TsK, upload(fold.rows_S8, self.device), None)

    def _move(
        self,
        pack: PreparedPack,
        packed: PackedState,
        prediction_TsK: Tensor,
        rows_S8: Tensor,
        noise_TsK: Tensor | None,
    ) -> None:
        """One sampler update of everybody by predictions that are guided already."""
        own = pack.batch.own
        packed.state, packed.memory = guided_step(
            packed.state,
            prediction_TsK,
            packed.memory,
            noise_TsK,
            own,
            own,
            rows_S8,
            pack.batch.sequence_of_state,
            self._guided_channels,
        )

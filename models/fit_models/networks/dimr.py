"""DiMR: a transformer on a coarse grid whose features finer convolving branches refine.

Readable beside the paper (arXiv:2406.09416); state-dict names are those of the released files. Time
enters through the norms alone, the label as one token of the first branch. Only the last branch's
prediction is sampled with; those of the others are trained.

Dimension key: T packed tokens, S sequences, R modulation rows, D width, M values of a branch's
norms, K token channels, C latent channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from fit_models.modulation_rows import Modulation
from fit_models.networks.dimr_config import DiMRConfig
from fit_models.networks.dimr_stage import Place, Stage
from fit_models.packed_grids import HeadedSequences, finer, on_maps
from fit_models.packing import PackedLayout
from fit_models.relative_bias import grid_runs

TRAINED_LEVELS = 1000


class DiMR(nn.Module):
    """Packed noisy tokens, batch description, timesteps and labels in; packed noise out."""

    def __init__(self, config: DiMRConfig) -> None:
        super().__init__()
        self.config = config
        coarser = (None, *config.stages[:-1])
        self.stages = nn.ModuleList(
            Stage(stage, config, before)
            for stage, before in zip(config.stages, coarser, strict=True)
        )

    def branches(self) -> list[Stage]:
        """From coarse to fine."""
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    def modulate(self, timestep_S: Tensor, label_S: Tensor, layout: PackedLayout) -> Modulation:
        """One row per sequence: [S, M] for each branch, and the class tokens as the final row."""
        embeds = self.branches()[0].class_embeds
        tau_S1 = (2.0 * timestep_S.float() / TRAINED_LEVELS - 1.0)[:, None]
        blocks = tuple(stage.modulate(tau_S1) for stage in self.branches())
        return Modulation(blocks, embeds(label_S), layout.seq_of_token)

    def forward(
        self, tokens_TK: Tensor, layout: PackedLayout, timestep_S: Tensor, label_S: Tensor
    ) -> Tensor:
        """Predict the noise of every token.

        Args:
            tokens_TK: noisy latent tokens of all sequences, end to end.
            layout: where each sequence lies; its grids are read.
            timestep_S: 0 ... 1000 per sequence, high is noise, any fraction; the original's
                `log_snr` is 8 / 1000 times it, less 4.
            label_S: int64 class label per sequence; `config.null_label` for none.

        Returns:
            [T, K], same order.

        Raises:
            ValueError: the layout has no grids, or one is larger than the trained one.
        """
        return self.denoise(tokens_TK, layout, self.modulate(timestep_S, label_S, layout))

    def denoise(self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        """The same, with modulation rows made elsewhere: [T, K] -> [T, K]."""
        return self.predictions(tokens_TK, layout, modulation, lower=False)[-1]

    def predictions(
        self, tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation, lower: bool = True
    ) -> list[Tensor]:
        """What every branch predicts, from coarse to fine.

        Args:
            tokens_TK, layout, modulation: as for `denoise`.
            lower: with the predictions of the coarser branches, for training; else the last alone.

        Returns:
            of coarser branches [T_i, C], a token for each of their patches; of the last [T, K].
        """
        coarse, below, out = [], None, []
        for i, stage in enumerate(self.branches()):
            place = self._place(i, layout, modulation)
            rows = stage.rows(modulation.blocks[i])
            x_TD = stage.embed(self._recut(tokens_TK, layout, i), place.runs)
            if below is None:
                count = sum(run.count for run in place.runs)
                first_S = modulation.row_of_token[layout.cu_seqlens[:count].long()]
                class_SD = modulation.final[first_S]
            else:
                x_TD = x_TD + stage.raised(coarse, rows, below, place.row_T)
                class_SD = None
            coarse, below = stage.features(x_TD, class_SD, rows, place), place
            if lower or i == len(self.stages) - 1:
                out.append(stage.head(coarse[-1], rows, place))
        assert below is not None
        out[-1] = _recut_maps(out[-1], below, self.config.patch_size)
        padding = len(tokens_TK) - len(out[-1])
        if padding:
            out[-1] = nn.functional.pad(out[-1], (0, 0, 0, padding))
        return out

    def _place(self, index: int, layout: PackedLayout, modulation: Modulation) -> Place:
        """Where a branch's tokens lie; padding without a grid is left out."""
        runs = grid_runs(layout)
        factor = self.config.patch_size // self.config.stages[index].patch_size
        row_T = modulation.row_of_token[: runs[-1].end].repeat_interleave(factor**2)
        count = sum(run.count for run in runs)
        headed = HeadedSequences(runs, layout.cu_seqlens[: count + 1]) if index == 0 else None
        return Place(finer(runs, factor), row_T, headed)

    def _recut(self, tokens_TK: Tensor, layout: PackedLayout, index: int) -> Tensor:
        """The same latents in tokens of a branch's patch size, padding left out."""
        runs = grid_runs(layout)
        patch, own = self.config.patch_size, self.config.stages[index].patch_size
        if own == patch:
            return tokens_TK[: runs[-1].end]

        def change(maps: Tensor) -> Tensor:
            return nn.functional.pixel_unshuffle(nn.functional.pixel_shuffle(maps, patch), own)

        return on_maps(tokens_TK, runs, change)


def _recut_maps(latent_TC: Tensor, place: Place, patch_size: int) -> Tensor:
    """One token for each latent pixel to tokens of a patch, channels slowest."""
    return on_maps(
        latent_TC, place.runs, lambda maps: nn.functional.pixel_unshuffle(maps, patch_size)
    )

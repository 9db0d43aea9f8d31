"""Pictures a run draws while it trains: always the same seeds, classes and sizes.

Knows how averaged weights and noise become a contact sheet. Knows nothing of when that happens, of
losses or of files but the autoencoder's.

Dimension key: N tokens of a picture, T tokens of a row of pictures, K token channels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fit_models.autoencoder import Autoencoder
from fit_models.diffusion.guidance import guide
from fit_models.families import NOISE, position_tables, prediction_of, trajectory_of
from fit_models.patches import unpatchify
from fit_models.positions import layout_of_tables
from fit_training.autoencoder.autoencoder_folder import autoencoder_folder
from fit_training.evaluation.contact_sheet import SheetRow, contact_sheet
from fit_training.loop.config import RunConfig
from fit_training.loop.data import LatentDataset
from fit_training.loop.sample_plan import SamplePlan
from fit_training.loop.trained_networks import TrainedNetwork

MAX_CLASSES = 8


class SampleGrid:
    """Draws one row of pictures per class.

    The noise of a picture is its column's alone: the same at every step of a run and in every row.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        class_names: Sequence[str],
        latent_shift: float,
        latent_scale: float,
        plan: SamplePlan,
    ) -> None:
        """Keep what does not change from one sheet to the next.

        Args:
            autoencoder: the one whose latents the run is trained on.
            class_names: of the data; of more than `MAX_CLASSES`, that many evenly spaced ones are
                drawn.
            latent_shift, latent_scale: what training did to latents, (latent - shift) * scale.
            plan: their labels, and how pictures are drawn.
        """
        count = min(len(class_names), MAX_CLASSES)
        chosen = [i * len(class_names) // count for i in range(count)]
        self.labels = tuple(plan.labels[i] for i in chosen)
        self.class_names = tuple(class_names[i] for i in chosen)
        self._plan = plan
        self._autoencoder = autoencoder
        self._shift, self._scale = latent_shift, latent_scale
        self._grids = plan.grids

    @torch.no_grad()
    def sheet(self, network: TrainedNetwork, weights: Mapping[str, Tensor]) -> Image.Image:
        """Draw all pictures with `weights` in the place of the network's own, which stay."""
        rows = []
        for label, name in zip(self.labels, self.class_names, strict=True):
            tokens_TK = self.tokens(network, weights, label)
            rows.append(SheetRow(name, self._decode(tokens_TK, network)))
        return contact_sheet(rows)

    @torch.no_grad()
    def tokens(self, network: TrainedNetwork, weights: Mapping[str, Tensor], label: int) -> Tensor:
        """Noise to normalised latent tokens of one class, [T, K]: guided steps, packed.

        Both branches of all pictures are one pack. Guidance changes every channel.
        """
        config = network.config
        device = next(iter(weights.values())).device
        drawing = copy.deepcopy(network)
        drawing.load_state_dict(dict(weights), assign=True)
        x_TK = self.noise(config.token_channels).to(device)
        both = [*self._grids, *self._grids]
        layout = layout_of_tables(both, lambda r, c: position_tables(r, c, config), device)
        labels = [label] * len(self._grids) + [config.null_label] * len(self._grids)
        label_S = torch.tensor(labels, device=device)
        scale_T1 = torch.full((len(x_TK), 1), self._plan.guidance_scale, device=device)
        sampler = "ddim" if prediction_of(config) == NOISE else "euler"
        for evaluation in trajectory_of(config, sampler, self._plan.num_steps).evaluations:
            timestep_S = torch.full((len(both),), evaluation.network_timestep).to(device)
            predicted = drawing(x_TK.repeat(2, 1), layout, timestep_S, label_S)
            own_TK = predicted[:, : config.token_channels].float()  # the rest is variance
            conditional_TK, null_TK = own_TK.chunk(2)
            guided_TK = guide(conditional_TK, null_TK, scale_T1, config.token_channels)
            state, prediction = evaluation.coefficients[:2]
            x_TK = state * x_TK + prediction * guided_TK
        return x_TK

    def noise(self, token_channels: int) -> Tensor:
        """Standard normal tokens of a row of pictures [T, K]; column c has the seed c."""
        drawn = [
            torch.randn(
                rows * columns, token_channels, generator=torch.Generator().manual_seed(seed)
            )
            for seed, (rows, columns) in enumerate(self._grids)
        ]
        return torch.cat(drawn)

    def _decode(self, tokens_TK: Tensor, network: TrainedNetwork) -> list[np.ndarray]:
        """Undo the normalisation and decode: uint8 [height, width, 3] each."""
        latents_TK = tokens_TK / self._scale + self._shift
        pictures = []
        lengths = [rows * columns for rows, columns in self._grids]
        for (rows, columns), own_NK in zip(self._grids, latents_TK.split(lengths), strict=True):
            latent = unpatchify(own_NK[None], rows, columns, network.config.patch_size)
            pixels = self._autoencoder.decode(latent.to(self._autoencoder.device))[0]
            pictures.append(pixels.permute(1, 2, 0).cpu().numpy())
        return pictures


def open_sample_grid(
    config: RunConfig,
    data: LatentDataset,
    plan: SamplePlan,
    device: torch.device | str = "cpu",
) -> SampleGrid | None:
    """Load `config.sample_autoencoder` for pictures of a run on `data`; None if it draws none.

    Raises:
        ValueError: the folder holds no autoencoder we know.
    """
    if not config.sample_every:
        return None
    loaded = Autoencoder.from_folder(autoencoder_folder(Path(config.sample_autoencoder))).to(device)
    return SampleGrid(loaded, data.class_names, data.latent_shift, data.latent_scale, plan)

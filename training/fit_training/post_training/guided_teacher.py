"""A frozen network as a teacher: its guided velocity, both branches in one packed batch.

Knows how a network is called and guided; not what is learned from it (`few_step.py`).

Dimension key: T packed tokens, S sequences, K token channels, G tokens of guided sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fit_models.diffusion.guidance import Guidance, guide
from fit_models.diffusion.prediction import timestep_of_sigma
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import PackedLayout, layout_of_grids


class GuidedTeacher:
    """The velocity field of a batch of images under guidance, for `few_step.Field`.

    Sequences are guided where their noise level is within the guidance's interval; only these
    have a second branch. It changes the channels that the network's config names.
    """

    def __init__(
        self,
        network: FiTv2,
        grids: Sequence[tuple[int, int]],
        label_S: Tensor,
        guidance: Guidance,
    ) -> None:
        """Describe the batch: (rows, columns) and class label [S] of each sequence."""
        self._network = network
        self._grids = list(grids)
        self._label_S = label_S.to("cpu")
        self._guidance = guidance
        self._device = network.x_embedder.proj.weight.device
        self._layouts: dict[tuple[int, ...], PackedLayout] = {}
        counts = torch.tensor([rows * columns for rows, columns in self._grids])
        self._seq_of_token_T = torch.repeat_interleave(torch.arange(len(counts)), counts)

    @torch.no_grad()
    def __call__(self, x_TK: Tensor, sigma_S: Tensor) -> Tensor:
        """Tokens [T, K] at noise levels [S] -> velocity (data - noise) [T, K], float32."""
        network, device = self._network, self._device
        scales = [self._guidance.scale_at(sigma) for sigma in sigma_S.tolist()]
        guided = tuple(index for index, scale in enumerate(scales) if scale != 1.0)
        index_G = torch.isin(self._seq_of_token_T, torch.tensor(guided, dtype=torch.int64))
        index_G = index_G.nonzero()[:, 0].to(device)
        chosen = torch.tensor(guided, dtype=torch.int64)
        sigma = torch.cat((sigma_S.cpu(), sigma_S.cpu()[chosen]))
        nulls = torch.full((len(guided),), network.config.null_label)
        velocity = network(
            torch.cat((x_TK, x_TK[index_G])).to(network.x_embedder.proj.weight.dtype),
            self._layout(guided),
            timestep_of_sigma(sigma).to(device, torch.float32),
            torch.cat((self._label_S, nulls)).to(device),
        ).float()
        conditional_TK, null_GK = velocity[: len(x_TK)], velocity[len(x_TK) :]
        if not guided:
            return conditional_TK
        scale_T = torch.tensor(scales).to(device)[self._seq_of_token_T.to(device)]
        moved_GK = guide(
            conditional_TK[index_G],
            null_GK,
            scale_T[index_G][:, None],
            network.config.guided_token_channels,
        )
        return conditional_TK.index_copy(0, index_G, moved_GK)

    def _layout(self, guided: tuple[int, ...]) -> PackedLayout:
        """Every sequence, then the guided ones again."""
        if guided not in self._layouts:
            config = self._network.config
            grids = self._grids + [self._grids[index] for index in guided]
            self._layouts[guided] = layout_of_grids(
                grids, config.head_dim, config.rope, self._device
            )
        return self._layouts[guided]

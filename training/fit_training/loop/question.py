"""What a network is asked in training, and what it should answer.

Knows flow matching; other objectives ask otherwise (`fit_training.post_training`).

Dimension key: T packed tokens, S sequences, K token channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.diffusion.loss import flow_inputs
from fit_models.packing import PackedLayout
from fit_training.loop.data import LatentBatch
from fit_training.loop.random_choices import draw_choices


@dataclass(frozen=True)
class Question:
    """One forward of a network, and the answer; all on its device.

    Attributes:
        tokens: noisy tokens, [T, K].
        timestep: [S].
        label: [S], the null label where it is dropped.
        target: velocity (data - noise), [T, K].
    """

    tokens: Tensor
    timestep: Tensor
    label: Tensor
    target: Tensor


def flow_question(
    batch: LatentBatch,
    layout: PackedLayout,
    generator: torch.Generator,
    dropout: float,
    null_label: int,
) -> Question:
    """Flow matching: logit-normal noise levels, labels dropped with probability `dropout`.

    Args:
        batch: normalised data tokens and labels, on the CPU.
        layout: of the batch, on the network's device.
        generator: draws noise levels, noise and whose label is dropped.
        dropout: share of labels that become the null label.
        null_label: the network's.
    """
    device = layout.seq_of_token.device
    drawn = draw_choices(batch.tokens, len(batch.grids), generator, dropout)
    x_TK, t_S, target_TK = flow_inputs(
        batch.tokens.to(device), drawn.noise.to(device), drawn.sigma.to(device), layout.seq_of_token
    )
    label_S = batch.labels.masked_fill(drawn.dropped, null_label)
    return Question(x_TK, t_S, label_S.to(device), target_TK)

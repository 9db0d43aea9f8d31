"""What a network is asked in training, and how its answer is judged.

Knows flow matching and the discrete noise path; other objectives ask otherwise
(`fit_training.post_training`).

Dimension key: T packed tokens, S sequences, K token channels, P channels of a prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_models.diffusion.discrete_loss import discrete_inputs, discrete_loss, uniform_timesteps
from fit_models.diffusion.loss import flow_inputs, sequence_mean_square
from fit_models.packing import PackedLayout
from fit_training.loop.data import LatentBatch
from fit_training.loop.random_choices import draw_choices


@dataclass(frozen=True)
class Question:
    """One forward of a network, and the judgement of its answer; all on its device.

    Attributes:
        tokens: noisy tokens, [T, K].
        timestep: [S], the number the network is given.
        label: [S], the null label where it is dropped.
        loss: of a prediction [T, P], per sequence [S].
    """

    tokens: Tensor
    timestep: Tensor
    label: Tensor
    loss: Callable[[Tensor], Tensor]


def square_loss(target_TK: Tensor, layout: PackedLayout) -> Callable[[Tensor], Tensor]:
    """The mean square of the error, per sequence [S]."""
    return lambda prediction_TK: sequence_mean_square(
        prediction_TK.float() - target_TK, layout.seq_of_token, layout.num_sequences
    )


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
    return Question(x_TK, t_S, label_S.to(device), square_loss(target_TK, layout))


def noise_question(
    batch: LatentBatch,
    layout: PackedLayout,
    generator: torch.Generator,
    dropout: float,
    null_label: int,
) -> Question:
    """DDPM: any of the trained steps as likely, noise and a learned variance to predict.

    The loss is DiT's and FiT's (arXiv:2102.09672). Arguments are those of `flow_question`.
    """
    device = layout.seq_of_token.device
    drawn = draw_choices(batch.tokens, len(batch.grids), generator, dropout)
    timestep_S = uniform_timesteps(len(batch.grids), generator).to(device)
    data_TK, noise_TK = batch.tokens.to(device), drawn.noise.to(device)
    noisy_TK = discrete_inputs(data_TK, noise_TK, timestep_S[layout.seq_of_token])
    label_S = batch.labels.masked_fill(drawn.dropped, null_label)

    def loss(prediction_TP: Tensor) -> Tensor:
        return discrete_loss(
            prediction_TP.float(), data_TK, noise_TK, noisy_TK, timestep_S, layout.seq_of_token
        ).total

    return Question(noisy_TK, timestep_S.float(), label_S.to(device), loss)

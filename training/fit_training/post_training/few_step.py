"""Few-step distillation: what a student is asked and what it should answer.

The student is to make a picture in K Euler steps without guidance. On each of the K edges of its
schedule it learns the straight line to where the teacher, guided and in smaller steps, gets to.
The loss is `fit_models.diffusion.loss.sequence_mean_square` of its answer minus the target.

Knows trajectories and their targets; not which networks teach and learn, or how data comes.
Sources: progressive distillation (arXiv:2202.00512), with guidance folded in (arXiv:2210.03142).

Dimension key: T packed tokens, S sequences, K token channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fit_models.diffusion.loss import noisy_tokens
from fit_models.diffusion.prediction import timestep_of_sigma
from fit_models.diffusion.schedule import flow_sigmas

Field = Callable[[Tensor, Tensor], Tensor]
"""Velocity (data - noise) [T, K] of tokens [T, K] at noise levels [S], guidance included.

Noise levels are on the host, in the precision of the edges."""
SOLVERS = ("euler", "heun")


@dataclass(frozen=True)
class Edges:
    """The step that each sequence of a batch is to learn.

    On the host and in float64, as sampling has it: whether guidance acts is asked of these numbers.

    Attributes:
        sigma: noise level at its beginning, [S].
        next_sigma: and at its end, [S], lower.
    """

    sigma: Tensor
    next_sigma: Tensor


@dataclass(frozen=True)
class StudentBatch:
    """One forward of the student, and the answer.

    Attributes:
        tokens: noisy tokens [T, K].
        timestep: the network's, [S].
        target: velocity (data - noise) that reaches the teacher's end in one step, [T, K].
    """

    tokens: Tensor
    timestep: Tensor
    target: Tensor


def draw_edges(num_sequences: int, num_steps: int, generator: torch.Generator) -> Edges:
    """One edge for each sequence, any of the student's `num_steps` as likely.

    Raises:
        ValueError: fewer than 1 step.
    """
    sigmas = torch.tensor(flow_sigmas(num_steps), dtype=torch.float64)
    edge_S = torch.randint(num_steps, (num_sequences,), generator=generator)
    return Edges(sigmas[edge_S], sigmas[edge_S + 1])


@torch.no_grad()
def student_starts(
    student: Field,
    noise_TK: Tensor,
    edges: Edges,
    seq_of_token_T: Tensor,
    num_steps: int,
) -> Tensor:
    """Tokens [T, K] that the student's own steps lead to, from noise to where each edge begins.

    There it will stand when it is served, rather than where noise and data mix: the backward
    simulation of DMD2 (arXiv:2405.14867). The student is asked `num_steps` - 1 times whatever the
    edges are.

    Args:
        student: its field, without guidance.
        noise_TK: tokens at noise level 1.
        edges: of `draw_edges`, with as many steps.
        seq_of_token_T: int64, on the device of the tokens.
        num_steps: of its schedule.
    """
    x_TK = noise_TK.float()
    for sigma, next_sigma in list(pairwise(flow_sigmas(num_steps)))[:-1]:
        fall_S = torch.where(edges.sigma < sigma, sigma - next_sigma, 0.0)
        fall_T1 = fall_S.to(x_TK.device, torch.float32)[seq_of_token_T][:, None]
        levels_S = torch.full_like(edges.sigma, sigma)
        x_TK = x_TK + fall_T1 * student(x_TK, levels_S).float()
    return x_TK


def student_batch(
    teacher: Field,
    data_TK: Tensor,
    noise_TK: Tensor,
    edges: Edges,
    seq_of_token_T: Tensor,
    num_substeps: int,
    solver: str = "euler",
) -> StudentBatch:
    """Noise the data to where its edge begins, and let the teacher show where it ends.

    Args:
        teacher: field that is followed; no gradient reaches it.
        data_TK: tokens of all images, end to end.
        noise_TK: as much noise.
        edges: of the sequences.
        seq_of_token_T: int64, on the device of the tokens.
        num_substeps: the teacher's steps on an edge.
        solver: of `SOLVERS`; heun asks the teacher twice a step.

    Raises:
        ValueError: the solver is unknown or there are no sub-steps.
    """
    sigma_S = edges.sigma.to(data_TK.device, torch.float32)
    x_TK = noisy_tokens(data_TK, noise_TK, sigma_S[seq_of_token_T][:, None])
    target_TK = edge_target(teacher, x_TK, edges, seq_of_token_T, num_substeps, solver)
    return StudentBatch(x_TK, timestep_of_sigma(sigma_S), target_TK)


@torch.no_grad()
def edge_target(
    teacher: Field,
    x_TK: Tensor,
    edges: Edges,
    seq_of_token_T: Tensor,
    num_substeps: int,
    solver: str = "euler",
) -> Tensor:
    """Velocity [T, K] that takes the tokens in one step to where the teacher takes them in several.

    Arguments and errors are those of `student_batch`; `x_TK` are tokens where the edges begin.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; known: {', '.join(SOLVERS)}")
    if num_substeps < 1:
        raise ValueError(f"num_substeps is {num_substeps}; it must be at least 1")
    fall_S = edges.sigma - edges.next_sigma
    fall_T1 = fall_S.to(x_TK.device, torch.float32)[seq_of_token_T][:, None]
    drop_T1 = fall_T1 / num_substeps
    start_TK = x_TK = x_TK.float()
    for substep in range(num_substeps):
        velocity_TK = teacher(x_TK, edges.sigma - fall_S * (substep / num_substeps)).float()
        if solver == "heun":
            after_S = edges.sigma - fall_S * ((substep + 1) / num_substeps)
            after_TK = teacher(x_TK + drop_T1 * velocity_TK, after_S).float()
            velocity_TK = (velocity_TK + after_TK) / 2.0
        x_TK = x_TK + drop_T1 * velocity_TK
    return (x_TK - start_TK) / fall_T1

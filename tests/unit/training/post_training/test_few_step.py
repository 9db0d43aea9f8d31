"""Targets of few-step distillation: exact where the field is known, and they add up to its end."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fit_models.diffusion.loss import noisy_tokens
from fit_models.diffusion.schedule import flow_sigmas
from fit_training.post_training.few_step import (
    SOLVERS,
    Edges,
    Field,
    draw_edges,
    edge_target,
    student_batch,
    student_starts,
)

LENGTHS = [3, 1, 5]
SEQ_OF_TOKEN = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))


def random_tokens(seed: int, num_tokens: int = sum(LENGTHS)) -> Tensor:
    return torch.randn(num_tokens, 4, generator=torch.Generator().manual_seed(seed))


def towards(data_TK: Tensor, seq_of_token_T: Tensor = SEQ_OF_TOKEN) -> Field:
    """The field whose every trajectory ends in the data: (data - x) / sigma."""

    def field(x_TK: Tensor, sigma_S: Tensor) -> Tensor:
        return (data_TK - x_TK) / sigma_S[seq_of_token_T][:, None]

    return field


def curved(x_TK: Tensor, sigma_S: Tensor) -> Tensor:
    """A field whose trajectories are no lines; the sequences' sigmas count, tokens do not mix."""
    return torch.sin(2.0 * x_TK) + sigma_S[SEQ_OF_TOKEN][:, None] ** 2


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_substeps", [1, 3])
def test_where_the_teacher_points_to_the_data_the_target_is_data_minus_noise(
    solver: str, num_substeps: int
):
    data, noise = random_tokens(1), random_tokens(2)
    edges = Edges(torch.tensor([1.0, 0.75, 0.5]), torch.tensor([0.75, 0.5, 0.25]))
    batch = student_batch(towards(data), data, noise, edges, SEQ_OF_TOKEN, num_substeps, solver)
    torch.testing.assert_close(batch.target, data - noise, atol=1e-5, rtol=1e-5)
    sigma_T1 = edges.sigma[SEQ_OF_TOKEN][:, None]
    assert torch.equal(batch.tokens, noisy_tokens(data, noise, sigma_T1))
    assert torch.equal(batch.timestep, torch.tensor([0.0, 0.25, 0.5]))


def test_the_target_points_to_the_teachers_data_wherever_the_tokens_are():
    data, x, taught = random_tokens(1), random_tokens(2), random_tokens(3)
    edges = Edges(torch.full((3,), 0.5), torch.zeros(3))
    target = edge_target(towards(taught), x, edges, SEQ_OF_TOKEN, 2)
    torch.testing.assert_close(x + 0.5 * target, taught, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(x + 0.5 * target, data)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_student_that_answers_the_target_ends_where_the_teacher_does(solver: str):
    num_steps, num_substeps = 4, 3
    x = random_tokens(4)
    taught = student = x
    for begin, end in pairwise(flow_sigmas(num_steps)):
        edges = Edges(torch.full((3,), begin), torch.full((3,), end))
        target = edge_target(curved, student, edges, SEQ_OF_TOKEN, num_substeps, solver)
        student = student + (begin - end) * target
    sigmas = flow_sigmas(num_steps * num_substeps)
    for begin, end in pairwise(sigmas):
        velocity = curved(taught, torch.full((3,), begin))
        if solver == "heun":
            after = taught + (begin - end) * velocity
            velocity = (velocity + curved(after, torch.full((3,), end))) / 2.0
        taught = taught + (begin - end) * velocity
    torch.testing.assert_close(student, taught, atol=1e-5, rtol=1e-5)


def test_heun_is_nearer_to_the_fine_trajectory_than_euler():
    edges = Edges(torch.ones(3), torch.full((3,), 0.5))
    fine = edge_target(curved, random_tokens(1), edges, SEQ_OF_TOKEN, 500)
    errors = [
        float((edge_target(curved, random_tokens(1), edges, SEQ_OF_TOKEN, 4, s) - fine).norm())
        for s in SOLVERS
    ]
    assert errors[1] < 0.2 * errors[0]


def test_a_sequence_does_not_notice_its_neighbours():
    edges = Edges(torch.tensor([1.0, 0.75, 0.5]), torch.tensor([0.75, 0.5, 0.25]))
    others = Edges(torch.tensor([0.5, 0.75, 1.0]), torch.tensor([0.25, 0.5, 0.75]))
    middle = SEQ_OF_TOKEN == 1
    x, y = random_tokens(1), random_tokens(2)
    y[middle] = x[middle]
    one = edge_target(curved, x, edges, SEQ_OF_TOKEN, 3)
    other = edge_target(curved, y, others, SEQ_OF_TOKEN, 3)
    assert torch.equal(one[middle], other[middle])
    assert not torch.equal(one[~middle], other[~middle])


def test_every_edge_is_drawn_and_follows_the_schedule():
    edges = draw_edges(200, 4, torch.Generator().manual_seed(0))
    pairs = set(zip(edges.sigma.tolist(), edges.next_sigma.tolist(), strict=True))
    assert pairs == {(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)}
    again = draw_edges(200, 4, torch.Generator().manual_seed(0))
    assert torch.equal(edges.sigma, again.sigma)


def test_the_students_own_steps_lead_to_where_its_edges_begin():
    num_steps = 4
    noise = random_tokens(5)
    sigmas = flow_sigmas(num_steps)
    states = [noise]
    for begin, end in pairwise(sigmas):
        states.append(states[-1] + (begin - end) * curved(states[-1], torch.full((3,), begin)))
    for first in range(num_steps):
        chosen = [first, (first + 1) % num_steps, (first + 2) % num_steps]
        edges = Edges(
            torch.tensor([sigmas[i] for i in chosen], dtype=torch.float64),
            torch.tensor([sigmas[i + 1] for i in chosen], dtype=torch.float64),
        )
        start = student_starts(curved, noise, edges, SEQ_OF_TOKEN, num_steps)
        # Neighbours on other edges: `curved` takes each token for itself, given its own level.
        for sequence, i in enumerate(chosen):
            own = sequence == SEQ_OF_TOKEN
            torch.testing.assert_close(start[own], states[i][own], atol=1e-5, rtol=1e-5)


def test_no_gradient_reaches_the_teacher():
    weight = torch.ones(4, requires_grad=True)
    edges = draw_edges(3, 2, torch.Generator().manual_seed(0))
    data, noise = random_tokens(1), random_tokens(2)
    batch = student_batch(lambda x, _: x * weight, data, noise, edges, SEQ_OF_TOKEN, 2)
    assert not batch.target.requires_grad


def test_what_cannot_be_is_refused():
    edges = draw_edges(3, 2, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="solver 'rk4' is unknown; known: euler, heun"):
        edge_target(curved, random_tokens(1), edges, SEQ_OF_TOKEN, 2, "rk4")
    with pytest.raises(ValueError, match="num_substeps is 0; it must be at least 1"):
        edge_target(curved, random_tokens(1), edges, SEQ_OF_TOKEN, 0)
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        draw_edges(3, 0, torch.Generator())

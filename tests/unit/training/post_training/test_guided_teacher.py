"""The teacher's field is the one that sampling follows, whoever shares the batch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fit_models.diffusion.guidance import Guidance, guide
from fit_models.diffusion.schedule import flow_sigmas
from fit_models.packing import layout_of_grids
from fit_training.post_training.few_step import Edges, draw_edges, edge_target, student_batch
from fit_training.post_training.guided_teacher import GuidedTeacher
from support.toy_bundle import make_toy_network

GRIDS = [(2, 3), (1, 4), (3, 3)]
LENGTHS = [rows * columns for rows, columns in GRIDS]
LABELS = torch.tensor([0, 1, 2])
SIGMAS = torch.tensor([0.9, 0.5, 0.1])
GUIDANCE = Guidance(3.0, (0.3, 0.7))


def random_tokens(seed: int) -> Tensor:
    return torch.randn(sum(LENGTHS), 16, generator=torch.Generator().manual_seed(seed))


def predicted(x_NK: Tensor, sequence: int, label: int) -> Tensor:
    """The network's velocity of one sequence alone."""
    network = make_toy_network()
    layout = layout_of_grids([GRIDS[sequence]], network.config.head_dim, network.config.rope)
    return network(x_NK, layout, 1.0 - SIGMAS[sequence][None], torch.tensor([label]))


@pytest.mark.parametrize("guided_channels", [3, 4])
def test_only_sequences_inside_the_interval_are_guided_in_the_channels_of_the_config(
    guided_channels: int,
):
    network, x = make_toy_network(), random_tokens(0)
    network.config = replace(network.config, guided_channels=guided_channels)
    velocity = GuidedTeacher(network, GRIDS, LABELS, GUIDANCE)(x, SIGMAS).split(LENGTHS)
    alone = [predicted(part, i, i) for i, part in enumerate(x.split(LENGTHS))]
    null = predicted(x.split(LENGTHS)[1], 1, network.config.null_label)
    scale = torch.full((LENGTHS[1], 1), 3.0)
    expected = [alone[0], guide(alone[1], null, scale, 4 * guided_channels), alone[2]]
    for found, wanted in zip(velocity, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert float((velocity[1] - alone[1]).abs().max()) > 0.1


@pytest.mark.parametrize(("guidance", "rows"), [(Guidance(1.0), 1), (Guidance(2.0), 2)])
def test_the_null_branch_is_computed_where_it_counts_only(guidance: Guidance, rows: int):
    network, seen = make_toy_network(), []
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    GuidedTeacher(network, GRIDS, LABELS, guidance)(random_tokens(0), SIGMAS)
    assert seen == [rows * sum(LENGTHS)]


def test_the_ends_of_the_interval_are_guided_as_in_sampling():
    network, seen = make_toy_network(), []
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    guidance = Guidance(2.0, (0.2, 0.3))
    for sigma in flow_sigmas(10):
        levels = torch.full((3,), sigma, dtype=torch.float64)
        GuidedTeacher(network, GRIDS, LABELS, guidance)(random_tokens(0), levels)
    branches = [1 if guidance.scale_at(sigma) == 1.0 else 2 for sigma in flow_sigmas(10)]
    assert branches.count(2) == 2
    assert seen == [count * sum(LENGTHS) for count in branches]


def test_targets_of_a_sequence_do_not_depend_on_its_neighbours():
    network, x = make_toy_network(), random_tokens(0)
    edges = Edges(torch.tensor([1.0, 0.75, 0.5]), torch.tensor([0.75, 0.5, 0.25]))
    together = edge_target(
        GuidedTeacher(network, GRIDS, LABELS, GUIDANCE),
        x,
        edges,
        torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS)),
        3,
        "heun",
    ).split(LENGTHS)
    for i, part in enumerate(x.split(LENGTHS)):
        teacher = GuidedTeacher(network, GRIDS[i : i + 1], LABELS[i : i + 1], GUIDANCE)
        own = Edges(edges.sigma[i : i + 1], edges.next_sigma[i : i + 1])
        alone = edge_target(
            teacher, part, own, torch.zeros(LENGTHS[i], dtype=torch.long), 3, "heun"
        )
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


def test_a_bfloat16_teacher_teaches_in_float32():
    network = make_toy_network().bfloat16()
    seq_of_token = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))
    batch = student_batch(
        GuidedTeacher(network, GRIDS, LABELS, GUIDANCE),
        random_tokens(0),
        random_tokens(1),
        draw_edges(3, 2, torch.Generator().manual_seed(0)),
        seq_of_token,
        2,
    )
    assert batch.target.dtype == torch.float32
    assert batch.target.isfinite().all()

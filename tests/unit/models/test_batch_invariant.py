"""A sequence's bits do not depend on the batch, and everything else stays as it was.

Dimension key: T packed tokens, K token channels, S branches, M row values.
"""

from random import Random

import pytest
import torch
from torch import Tensor, nn

from fit_models.batch_invariant import (
    AloneNetwork,
    FixedTilesLinear,
    fixed_tiles_obstacle,
    use_fixed_tiles,
)
from fit_models.bundle import EMBEDDED, load_bundle
from fit_models.joined import join_projections
from fit_models.modulation import StackedModulation
from fit_models.networks.fitv2 import FiTv2, Modulation
from fit_models.packing import PackedLayout, layout_of_grids
from support.toy_bundle import make_toy_network

# Rows, columns, branches: lengths that fill vectors of the CPU, and lengths that do not.
PICTURES = [(1, 1, 1), (1, 1, 2), (3, 5, 2), (4, 4, 2), (7, 5, 1), (5, 7, 2), (9, 9, 2)]


# Outputs are of order one to four; bfloat16 keeps 8 bits of what every block adds.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-2}


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def network(request: pytest.FixtureRequest) -> FiTv2:
    return load_bundle(EMBEDDED, device="cpu", dtype=request.param).network


@pytest.fixture(scope="module")
def stacked(network: FiTv2) -> StackedModulation:
    return StackedModulation(network)


def pack(
    numbers: list[int], stacked: StackedModulation, network: FiTv2, padding: int = 0
) -> tuple[Tensor, PackedLayout, Modulation, list[int]]:
    """What a batch of some of the pictures is called with; a picture's tokens are its own."""
    config, null = network.config, network.config.null_label
    grids, tokens, keys = [], [], []
    for number in numbers:
        rows, columns, branches = PICTURES[number]
        generator = torch.Generator().manual_seed(number)
        own = torch.randn(rows * columns, config.token_channels, generator=generator)
        grids += [(rows, columns)] * branches
        tokens += [own] * branches
        keys += [(0.1 + number / 10, label) for label in (number, null)[:branches]]
    if padding:
        grids.append((1, padding))
        tokens.append(torch.full((padding, config.token_channels), torch.nan))
        keys.append(keys[0])
    timestep, label = (torch.tensor(values) for values in zip(*keys, strict=True))
    layout = layout_of_grids(grids, config.head_dim, config.rope)
    rows_SM = stacked.rows_one_by_one(timestep, label)
    modulation = stacked.split(rows_SM, layout.seq_of_token)
    tokens_TK = torch.cat(tokens).to(network.x_embedder.proj.weight.dtype)
    return tokens_TK, layout, modulation, [PICTURES[number][2] for number in numbers]


def parts(out_TK: Tensor, numbers: list[int]) -> list[Tensor]:
    """The output of each picture's branches."""
    sizes = [
        rows * columns * branches for rows, columns, branches in map(PICTURES.__getitem__, numbers)
    ]
    return list(out_TK[: sum(sizes)].split(sizes))


@torch.inference_mode()
def test_alone_a_sequence_has_the_same_bits_in_every_mix(
    network: FiTv2, stacked: StackedModulation
):
    alone = AloneNetwork(network)
    wanted = {
        number: alone.denoise(*pack([number], stacked, network)) for number in range(len(PICTURES))
    }
    random = Random(0)
    for _ in range(8):
        numbers = random.sample(range(len(PICTURES)), random.randint(2, len(PICTURES)))
        padding = random.choice((0, 3))
        out_TK = alone.denoise(*pack(numbers, stacked, network, padding))
        for number, part in zip(numbers, parts(out_TK, numbers), strict=True):
            assert torch.equal(part, wanted[number]), (number, numbers)


@torch.inference_mode()
def test_alone_every_shape_is_the_own_sequences(
    network: FiTv2, stacked: StackedModulation, monkeypatch: pytest.MonkeyPatch
):
    """On a machine where bits happen to agree anyway, this is what still holds."""
    calls, plain = [], network.denoise

    def denoise(tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        tensors = (tokens_TK, *modulation.blocks, modulation.final, modulation.row_of_token)
        assert all(t.is_contiguous() and t.data_ptr() % 64 == 0 for t in tensors)
        shapes = tuple(t.shape for t in tensors)
        calls.append((layout.lengths, layout.runs, shapes, tuple(modulation.row_of_token.tolist())))
        return plain(tokens_TK, layout, modulation)

    monkeypatch.setattr(network, "denoise", denoise)
    alone = AloneNetwork(network)
    numbers = [5, 0, 3, 1]
    for number in numbers:
        alone.denoise(*pack([number], stacked, network))
    alone.denoise(*pack(numbers, stacked, network, padding=2))
    assert len(calls) == 8
    assert calls[:4] == calls[4:]


@torch.inference_mode()
def test_alone_computes_what_the_network_computes(network: FiTv2, stacked: StackedModulation):
    numbers = [4, 2, 6, 0]
    batch = pack(numbers, stacked, network)
    wanted = network.denoise(*batch[:3])
    found = AloneNetwork(network).denoise(*batch)
    torch.testing.assert_close(found, wanted, atol=TOLERANCE[wanted.dtype], rtol=0.0)


@torch.inference_mode()
def test_padding_is_not_computed_and_gets_zeros(network: FiTv2, stacked: StackedModulation):
    out_TK = AloneNetwork(network).denoise(*pack([2, 3], stacked, network, padding=5))
    assert torch.isfinite(out_TK).all()
    assert torch.equal(out_TK[-5:], torch.zeros_like(out_TK[-5:]))


@torch.inference_mode()
def test_layouts_are_made_once_for_a_layout(
    network: FiTv2, stacked: StackedModulation, monkeypatch: pytest.MonkeyPatch
):
    made = []
    plain = layout_of_grids.__globals__["pack_layout"]
    monkeypatch.setattr(
        "fit_models.batch_invariant.pack_layout", lambda *a: made.append(a[0]) or plain(*a)
    )
    alone = AloneNetwork(network)
    batch = pack([1, 3], stacked, network)
    first, again = (alone.denoise(*batch) for _ in range(2))
    assert torch.equal(first, again)
    assert made == [(1, 1), (16, 16)]
    alone.denoise(*batch[:3], [1, 1, 2])  # the same layout, other groups
    assert made[2:] == [(1,), (1,), (16, 16)]
    alone.denoise(*pack([1, 3], stacked, network))  # an equal layout, another object
    assert len(made) == 7


@pytest.mark.parametrize("groups", [[], [0, 2], [2, 2, 1]])
def test_groups_that_are_none_of_the_layout_are_refused(
    groups: list[int], network: FiTv2, stacked: StackedModulation
):
    tokens_TK, layout, modulation, _ = pack([2, 3], stacked, network)
    with pytest.raises(ValueError, match="the layout has 4"):
        AloneNetwork(network).denoise(tokens_TK, layout, modulation, groups)


def test_rows_one_by_one_are_those_of_a_step_of_their_own(stacked: StackedModulation):
    timestep, label = torch.linspace(0, 1, 7), torch.arange(7)
    rows_RM = stacked.rows_one_by_one(timestep, label)
    atol = TOLERANCE[rows_RM.dtype]
    torch.testing.assert_close(rows_RM, stacked.rows(timestep, label), atol=atol, rtol=0.0)
    for i in (6, 2, 5):
        own = stacked.rows_one_by_one(timestep[i].reshape(1), label[i].reshape(1))
        assert torch.equal(own[0], rows_RM[i])


def test_fixed_tiles_share_the_weights_and_keep_their_names():
    network = make_toy_network()
    join_projections(network)
    before = network.state_dict()
    places = {key: tensor.data_ptr() for key, tensor in network.named_parameters()}
    use_fixed_tiles(network)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert layers
    assert all(isinstance(m, FixedTilesLinear) and not m.training for m in layers)
    assert {key: tensor.data_ptr() for key, tensor in network.named_parameters()} == places
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    use_fixed_tiles(network)  # once more changes nothing
    assert [m for m in network.modules() if isinstance(m, nn.Linear)] == layers


def test_fixed_tiles_join_what_would_multiply_past_them():
    network, plain = make_toy_network(), make_toy_network()
    use_fixed_tiles(network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    layout = layout_of_grids([(2, 3)], plain.config.head_dim, plain.config.rope)
    tokens = torch.randn(6, plain.config.token_channels)
    step = (tokens, layout, torch.tensor([0.3]), torch.tensor([1]))
    torch.testing.assert_close(network(*step), plain(*step), atol=3e-5, rtol=0.0)


def test_fixed_tiles_want_no_gradient():
    layer = FixedTilesLinear(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="linear_fixed_tiles has no gradient"):
        layer(torch.zeros(2, 3))
    with torch.inference_mode():
        assert layer(torch.zeros(2, 3)).shape == (2, 4)


def test_reference_operators_are_an_obstacle_to_fixed_tiles(network: FiTv2):
    assert fixed_tiles_obstacle(network) == "operators are reference; they must be fused"

"""What a sequence becomes does not depend on its neighbours, to the last bit, in the interpreter.

Kernels run tile by tile and block after block, so a tile that is chosen by the number of tokens, or
that begins elsewhere than its sequence, shows here.

Dimension key: T packed tokens, D width, F features, K token channels, S branches, M row values.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fit_kernels
from fit_kernels import use_attention, use_backend
from fit_kernels.attention import current_attention
from fit_kernels.backend import current_backend
from fit_kernels.fused import guided_step, linear_fixed_tiles
from fit_models.batch_invariant import fixed_tiles_obstacle, use_fixed_tiles
from fit_models.modulation import StackedModulation, rows_one_by_one
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from support.even_products import treat_rows_alike
from support.toy_bundle import make_toy_network

TOKENS = 300  # crosses tiles of 64 and of 128 tokens
# Whole blocks; a width and features that fill none; the width of FiTv2-Ti/2's MLP; tokens in, out.
LAYERS = [(64, 192), (37, 21), (682, 24), (16, 72), (130, 16)]


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    treat_rows_alike(monkeypatch)
    backend, attention = current_backend(), current_attention()
    use_backend("fused")
    use_attention("fused")
    yield
    use_backend(backend)
    use_attention(attention)


def layer(width: int, features: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, weight and bias."""
    generator = torch.Generator().manual_seed(width)
    x_TD = torch.randn(TOKENS, width, generator=generator)
    weight_FD = torch.randn(features, width, generator=generator) * width**-0.5
    bias_F = torch.randn(features, generator=generator)
    return x_TD.to(dtype), weight_FD.to(dtype), bias_F.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("width", "features"), LAYERS)
@pytest.mark.parametrize("poison", [False, True], ids=["", "nan"])
def test_a_row_of_a_linear_layer_does_not_notice_the_others(
    width: int, features: int, dtype: torch.dtype, poison: bool
):
    x_TD, weight_FD, bias_F = layer(width, features, dtype)
    together_TF = fit_kernels.linear_fixed_tiles(x_TD, weight_FD, bias_F)
    assert torch.isfinite(together_TF).all()
    own = x_TD[40:53]
    for before, after in ((0, 0), (1, 0), (3, 60), (115, 0), (127, 128), (200, 87)):
        others = x_TD[torch.arange(before + after) % TOKENS]
        if poison:
            others = torch.full_like(others, torch.nan)
        pack = torch.cat((others[:before], own, others[before:]))
        out_TF = fit_kernels.linear_fixed_tiles(pack, weight_FD, bias_F)
        assert torch.equal(out_TF[before : before + len(own)], together_TF[40:53])
    for token in (0, 63, 64, 128, TOKENS - 1):
        alone = fit_kernels.linear_fixed_tiles(x_TD[token : token + 1], weight_FD, bias_F)
        assert torch.equal(alone, together_TF[token : token + 1])


def test_tiles_that_know_the_number_of_tokens_would_show(monkeypatch: pytest.MonkeyPatch):
    """The check above can fail: a sum cut elsewhere for a long pack has other bits."""
    x_TD, weight_FD, bias_F = layer(682, 24, torch.float32)
    together_TF = linear_fixed_tiles.linear_fixed_tiles(x_TD, weight_FD, bias_F)
    tile = linear_fixed_tiles._tile(682, 24, torch.float32) | {"BLOCK_K": 128}
    monkeypatch.setattr(linear_fixed_tiles, "_tile", lambda *_: tile)
    out_TF = linear_fixed_tiles.linear_fixed_tiles(x_TD[:40], weight_FD, bias_F)
    torch.testing.assert_close(out_TF, together_TF[:40], atol=1e-5, rtol=0.0)
    assert not torch.equal(out_TF, together_TF[:40])


def test_a_step_without_noise_of_its_own_does_not_notice_that_others_have_some():
    generator = torch.Generator().manual_seed(0)
    x, memory, noise = torch.randn(3, 40, 16, generator=generator)
    velocity = torch.randn(80, 16, generator=generator)
    rows = torch.randn(2, 8, generator=generator)
    rows[0, 3] = 0.0  # the first sequence adds none
    index, sequence = torch.arange(40), torch.arange(40) // 20
    tail = (index, index + 40, rows, sequence, 12)
    without = guided_step.guided_step(x, velocity, memory, None, *tail)
    among = guided_step.guided_step(x, velocity, memory, noise, *tail)
    assert all(torch.equal(a[:20], b[:20]) for a, b in zip(without, among, strict=True))
    assert not torch.equal(without[0][20:], among[0][20:])


NETWORK = make_toy_network()
Picture = tuple[int, int, float, int]  # rows, columns, timestep, label
OWN: list[Picture] = [(3, 7, 0.37, 1), (3, 7, 0.37, NETWORK.config.null_label)]
MIXES: dict[str, tuple[list[Picture], list[Picture]]] = {
    "one before": ([(1, 5, 0.1, 0)], []),
    "equal ones": ([(3, 7, 0.37, 0)], [(7, 3, 0.37, 1)]),
    "many": ([(1, 1, 0.0, 0), (2, 3, 0.5, 1), (5, 5, 0.6, 3)], [(1, 2, 1.0, 2)] * 4),
}


def velocity_of(
    network: FiTv2, before: list[Picture], after: list[Picture], poison: bool = False
) -> Tensor:
    """The network's prediction for the picture in the midst of others, its two branches."""
    pictures = [*before, *OWN, *after]
    config = network.config
    layout = layout_of_grids([p[:2] for p in pictures], config.head_dim, config.rope)
    first = sum(p[0] * p[1] for p in before)
    own = slice(first, first + sum(p[0] * p[1] for p in OWN))
    tokens_TK = torch.randn(
        layout.num_tokens, config.token_channels, generator=torch.Generator().manual_seed(first)
    )
    if poison:
        tokens_TK.fill_(torch.nan)
    tokens_TK[own] = torch.randn(
        own.stop - own.start, config.token_channels, generator=torch.Generator().manual_seed(7)
    )
    stacked = StackedModulation(network)
    timestep_S = torch.tensor([p[2] for p in pictures])
    label_S = torch.tensor([p[3] for p in pictures])
    rows_SM = rows_one_by_one(stacked, timestep_S, label_S)
    modulation = stacked.split(rows_SM, layout.seq_of_token)
    with torch.inference_mode():
        return network.denoise(tokens_TK, layout, modulation)[own]


@pytest.fixture
def fixed() -> FiTv2:
    network = make_toy_network()
    use_fixed_tiles(network)
    return network


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the poison
def test_a_sequence_has_the_same_bits_alone_and_among_others(fixed: FiTv2):
    assert fixed_tiles_obstacle(fixed) is None
    alone = velocity_of(fixed, [], [])
    assert torch.isfinite(alone).all()
    for before, after in MIXES.values():
        assert torch.equal(velocity_of(fixed, before, after), alone)
    assert torch.equal(velocity_of(fixed, *MIXES["one before"], poison=True), alone)


def test_fixed_tiles_compute_what_the_network_computes(fixed: FiTv2):
    ours = velocity_of(fixed, *MIXES["equal ones"])
    use_backend("reference")
    use_attention("grouped")
    assert fixed_tiles_obstacle(NETWORK) == "operators are reference; they must be fused"
    wanted = velocity_of(NETWORK, *MIXES["equal ones"])
    torch.testing.assert_close(ours, wanted, atol=3e-5, rtol=0.0)


def test_attention_that_promises_nothing_is_an_obstacle():
    use_attention("grouped")
    assert fixed_tiles_obstacle(NETWORK) == "attention is grouped; it must be fused"

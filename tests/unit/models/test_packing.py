"""A pack is the padded batch without the padding: same values, in any mix, in any order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fit_models.config import RopeConfig
from fit_models.layers import Block, linear_at
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids, pack_layout
from fit_models.rope import rope_table
from support.toy_bundle import make_toy_network

NETWORK = make_toy_network()
GRIDS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5)


def random_inputs(grids: list[tuple[int, int]]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Tokens of each sequence, timesteps [S] and labels [S]."""
    generator = torch.Generator().manual_seed(len(grids))
    tokens = [torch.randn(h * w, 16, generator=generator) for h, w in grids]
    timestep_S = torch.rand(len(grids), generator=generator)
    label_S = torch.randint(NETWORK.config.num_classes + 1, (len(grids),), generator=generator)
    return tokens, timestep_S, label_S


def run_packed(grids: list[tuple[int, int]], tokens: list[Tensor], t: Tensor, y: Tensor) -> Tensor:
    layout = layout_of_grids(grids, NETWORK.config.head_dim, NETWORK.config.rope)
    return NETWORK(torch.cat(tokens), layout, t, y)


def run_padded(grids: list[tuple[int, int]], tokens: list[Tensor], t: Tensor, y: Tensor) -> Tensor:
    """FiT's own way: every sequence as long as the longest, the rest hidden by a mask."""
    network, longest = NETWORK, max(len(x) for x in tokens)
    x_BND = torch.stack([F.pad(x, (0, 0, 0, longest - len(x)), value=9.0) for x in tokens])
    real_BN = torch.stack([torch.arange(longest) < len(x) for x in tokens])
    tables = [rope_table(h, w, network.config.head_dim, network.config.rope) for h, w in grids]
    angle_BNP = torch.stack(
        [F.pad(torch.atan2(s, c), (0, 0, 0, longest - len(s))) for c, s in tables]
    )
    condition_BD = network.condition(t, y)
    shared_BD = network.global_adaLN_modulation[1](condition_BD)
    x_BND = network.x_embedder(x_BND)
    for block, (down, up) in zip(network.blocks, network.low_rank_modulations(), strict=True):
        assert isinstance(block, Block)
        rows = (shared_BD + up(down(condition_BD)))[:, None].chunk(6, dim=-1)
        y_BND = padded_attention(block, modulated(x_BND, rows[0], rows[1]), real_BN, angle_BNP)
        x_BND = x_BND + rows[2] * y_BND
        x_BND = x_BND + rows[5] * block.mlp(modulated(x_BND, rows[3], rows[4]))
    last = linear_at(network.final_layer.adaLN_modulation, 1)(condition_BD)[:, None]
    out_BNK = network.final_layer.linear(modulated(x_BND, *last.chunk(2, dim=-1)))
    return out_BNK[real_BN]


def modulated(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    return F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6) * (1 + scale_B1D) + shift_B1D


def padded_attention(block: Block, x_BND: Tensor, real_BN: Tensor, angle_BNP: Tensor) -> Tensor:
    qkv = block.attn.qkv(x_BND).unflatten(-1, (3, block.attn.num_heads, -1))
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    turn = torch.polar(torch.ones_like(angle_BNP), angle_BNP)[:, None]
    q, k = (F.layer_norm(x, x.shape[-1:], eps=1e-6).unflatten(-1, (-1, 2)) for x in (q, k))
    q, k = (torch.view_as_real(torch.view_as_complex(x) * turn).flatten(-2) for x in (q, k))
    visible = real_BN[:, None, :, None] == real_BN[:, None, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    return block.attn.proj(out.transpose(1, 2).flatten(2))


@settings(max_examples=25, deadline=None)
@given(GRIDS)
def test_packed_equals_padded_and_masked(grids: list[tuple[int, int]]):
    inputs = random_inputs(grids)
    packed, padded = run_packed(grids, *inputs), run_padded(grids, *inputs)
    # outputs are of order one; a few hundred fp32 sums in another order
    torch.testing.assert_close(packed, padded, atol=3e-5, rtol=0.0)


@settings(max_examples=25, deadline=None)
@given(GRIDS, st.randoms(use_true_random=False))
def test_order_in_the_pack_does_not_matter(grids: list[tuple[int, int]], random):
    tokens, t, y = random_inputs(grids)
    order = list(range(len(grids)))
    random.shuffle(order)
    lengths = [h * w for h, w in grids]
    before = run_packed(grids, tokens, t, y).split(lengths)
    mixed = [grids[i] for i in order]
    after = run_packed(mixed, [tokens[i] for i in order], t[order], y[order])
    parts = after.split([lengths[i] for i in order])
    for part, i in zip(parts, order, strict=True):
        torch.testing.assert_close(part, before[i], atol=3e-5, rtol=0.0)


@given(GRIDS)
def test_the_layout_says_where_every_token_belongs(grids: list[tuple[int, int]]):
    rope = RopeConfig("ntk-aware", True, 2)
    layout = layout_of_grids(grids, 8, rope)
    lengths = [h * w for h, w in grids]
    assert (layout.num_tokens, layout.num_sequences) == (sum(lengths), len(grids))
    assert layout.lengths == tuple(lengths)
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.cu_seqlens.tolist() == [sum(lengths[:i]) for i in range(len(grids) + 1)]
    owners = [i for i, length in enumerate(lengths) for _ in range(length)]
    assert layout.seq_of_token.tolist() == owners
    cos, sin = (
        torch.cat(x) for x in zip(*(rope_table(h, w, 8, rope) for h, w in grids), strict=True)
    )
    assert torch.equal(layout.rope_cos[layout.rope_row], cos)
    assert torch.equal(layout.rope_sin[layout.rope_row], sin)


def test_equal_grids_share_their_rotary_rows():
    layout = layout_of_grids([(2, 3), (3, 2), (2, 3)], 8, RopeConfig())
    assert layout.rope_cos.shape == (12, 4)
    assert torch.equal(layout.rope_row[:6], layout.rope_row[12:])


@pytest.mark.parametrize("lengths", [[], [3, 0], [-1]])
def test_a_sequence_without_tokens_is_refused(lengths: list[int]):
    slab = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="every one must be at least 1"):
        pack_layout(lengths, slab, slab, torch.zeros(max(sum(lengths), 0), dtype=torch.int64))


def test_rotary_rows_for_other_tokens_are_refused():
    slab = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="4 rotary rows for 5 tokens"):
        pack_layout([2, 3], slab, slab, torch.zeros(4, dtype=torch.int64))


def test_the_network_can_be_told_apart_by_each_of_its_inputs():
    """Guards the tests above: with shut gates or dead inputs they would pass on anything."""
    grids = [(3, 4)]
    (tokens, t, _), y = random_inputs(grids), torch.tensor([0])
    out = run_packed(grids, tokens, t, y)
    assert isinstance(NETWORK, FiTv2)
    for other in (
        run_packed(grids, tokens, t + 0.1, y),
        run_packed(grids, tokens, t, y + 1),
        run_packed([(4, 3)], tokens, t, y),
        run_packed(grids, [tokens[0].roll(1, 0)], t, y),
    ):
        assert (other - out).abs().max() > 1e-2

"""Attention over a pack is attention in each sequence: no neighbour is seen, nothing is padded.

Dimension key: T packed tokens, H heads, E head dim.
"""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fit_kernels import attention_varlen
from fit_kernels.attention import equal_runs, grouped, registered

LENGTHS = [[1], [1, 1, 1], [7, 7, 3], [5, 1, 5, 5], [2, 3, 5, 7], [16, 16, 16, 16]]
# Of values of order one: fp32 rounds at 6e-8; bf16 keeps 8 bits, of the scores and weights too.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2}


def random_qkv(lengths: list[int], heads: int = 2, head_dim: int = 12) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(sum(lengths))
    shape = (3, sum(lengths), heads, head_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64).unbind()


def attend(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, lengths: list[int], scale: float | None = None
) -> Tensor:
    """What the network calls, for sequences of these lengths."""
    return attention_varlen(
        q_THE, k_TGE, v_TGE, cu_seqlens(lengths), equal_runs(lengths), max(lengths), scale
    )


def cu_seqlens(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def block_diagonal(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, lengths: list[int]) -> Tensor:
    """The definition: softmax over one score matrix in which other sequences are masked out."""
    seq_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    scores_HTT = torch.einsum("the,she->hts", q_THE, k_THE) * q_THE.shape[-1] ** -0.5
    hidden_TT = seq_T[:, None] != seq_T[None, :]
    weights_HTT = scores_HTT.masked_fill(hidden_TT, -torch.inf).softmax(-1)
    return torch.einsum("hts,she->the", weights_HTT, v_THE)


@given(st.lists(st.integers(1, 6), max_size=12))
def test_runs_cover_every_token_exactly_once(lengths: list[int]):
    covered = [
        (start + i * tokens, tokens)
        for start, count, tokens in equal_runs(lengths)
        for i in range(count)
    ]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    assert covered == list(zip(starts, lengths, strict=True))


@given(st.lists(st.integers(1, 3), min_size=1, max_size=12))
def test_neighbouring_runs_differ_in_length(lengths: list[int]):
    tokens = [run[2] for run in equal_runs(lengths)]
    assert all(left != right for left, right in pairwise(tokens))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_block_diagonal_definition(lengths: list[int], dtype: torch.dtype):
    q, k, v = random_qkv(lengths)
    wanted = block_diagonal(q, k, v, lengths)
    out = attend(q.to(dtype), k.to(dtype), v.to(dtype), lengths)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), wanted, atol=TOLERANCE[dtype], rtol=0.0)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_sdpa_of_each_sequence_alone(lengths: list[int], dtype: torch.dtype):
    q, k, v = (x.to(dtype) for x in random_qkv(lengths))
    parts = [x.split(lengths) for x in (q, k, v)]
    alone = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in qkv))[0].transpose(0, 1)
        for qkv in zip(*parts, strict=True)
    ]
    out = attend(q, k, v, lengths)
    torch.testing.assert_close(out, torch.cat(alone), atol=TOLERANCE[dtype], rtol=0.0)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_equal_those_of_the_definition(lengths: list[int], dtype: torch.dtype):
    q, k, v = (x.to(dtype).requires_grad_() for x in random_qkv(lengths))
    grad_THE = v.detach().roll(1, 0)
    out = attend(q, k, v, lengths)
    ours = torch.autograd.grad(out, (q, k, v), grad_THE)
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    wanted = torch.autograd.grad(block_diagonal(q, k, v, lengths), (q, k, v), grad_THE.double())
    for our, want in zip(ours, wanted, strict=True):
        torch.testing.assert_close(our.double(), want, atol=2 * TOLERANCE[dtype], rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_agree_and_a_scale_is_heeded(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    lengths = [9, 9, 4]
    q, k, v = (x.to(dtype) for x in random_qkv(lengths))
    outs = []
    for prefers in (True, False):
        monkeypatch.setattr(grouped, "_prefers_bmm", lambda _, prefers=prefers: prefers)
        outs.append(attend(q, k, v, lengths, scale=0.7))
    torch.testing.assert_close(outs[0], outs[1], atol=TOLERANCE[dtype], rtol=0.0)
    q64, k64, v64 = (x.double() for x in (q, k, v))
    wanted = block_diagonal(q64 * 0.7 * 12**0.5, k64, v64, lengths)
    torch.testing.assert_close(outs[0].double(), wanted, atol=TOLERANCE[dtype], rtol=0.0)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.data())
def test_a_sequence_does_not_notice_its_neighbours(lengths: list[int], data: st.DataObject):
    """Whatever another sequence holds, infinities and all, ours is the same to the bit."""
    chosen = data.draw(st.integers(0, len(lengths) - 1))
    q, k, v = (x.float() for x in random_qkv(lengths))
    start = sum(lengths[:chosen])
    ours = slice(start, start + lengths[chosen])
    before = attend(q, k, v, lengths)[ours]
    for x in (q, k, v):
        kept = x[ours].clone()
        x.fill_(torch.nan)
        x[ours] = kept
    assert torch.equal(attend(q, k, v, lengths)[ours], before)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("groups", [1, 2])
def test_heads_of_queries_may_share_a_head_of_keys(lengths: list[int], groups: int):
    q, _, _ = random_qkv(lengths, heads=4)
    k, v = (x[:, :groups] for x in random_qkv(lengths, heads=4)[1:])
    wide_k, wide_v = (x.repeat_interleave(4 // groups, dim=1) for x in (k, v))
    wanted = block_diagonal(q, wide_k, wide_v, lengths)
    torch.testing.assert_close(attend(q, k, v, lengths), wanted, atol=1e-12, rtol=0.0)


REGISTERED_LENGTHS = [[1], [3, 0, 2], [2, 2, 5]]


@pytest.mark.parametrize("lengths", REGISTERED_LENGTHS)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_registered_form_and_its_gradient_equal_the_definition(lengths: list[int], groups: int):
    q, _, _ = random_qkv(lengths, heads=2)
    k, v = (x[:, :groups].contiguous() for x in random_qkv(lengths, heads=2)[1:])
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out, lse = registered.attention_varlen(*inputs, cu_seqlens(lengths), 0.3)
    assert (lse.shape, lse.dtype) == ((2, sum(lengths)), torch.float64)
    wide_k, wide_v = (x.repeat_interleave(2 // groups, dim=1) for x in inputs[1:])
    wanted = block_diagonal(q * 0.3 * 12**0.5, wide_k, wide_v, lengths)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=0.0)
    grad = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(o, inputs, grad) for o in (out, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0.0)


def test_torch_finds_nothing_wrong_with_the_registered_form():
    q, k, v = (x.float().requires_grad_() for x in random_qkv([3, 2]))
    offsets = cu_seqlens([3, 2])
    torch.library.opcheck(torch.ops.fit_kernels.attention_varlen.default, (q, k, v, offsets, 0.3))
    plain = [x.detach() for x in (q, k, v)]
    out, lse = registered.attention_varlen(*plain, offsets, 0.3)
    torch.library.opcheck(
        torch.ops.fit_kernels.attention_varlen_backward.default,
        (torch.randn_like(out), *plain, out, lse, offsets, 0.3),
    )

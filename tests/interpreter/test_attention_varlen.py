"""Our attention kernels, in Triton's interpreter, against the block-diagonal definition in float64.

Dimension key: T packed tokens, H query heads, G key heads, E head dim.
"""

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from fit_kernels.attention import registered
from support.poison import poison_new_memory

# Outputs are of order one; gradients sums of up to 150 such values. fp16 keeps 11 bits, of the
# softmax's weights and of their gradients too.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 6e-3}
MIXES = [
    [1],
    [150],  # crosses tiles of queries and of keys
    [3, 0, 5, 1],  # an empty sequence
    [17, 31, 13],
    [1 + (7 * i) % 5 for i in range(64)],
]


def packed(
    lengths: list[int], heads: int, groups: int, head_dim: int, dtype: torch.dtype, tail: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys as views of one tensor, values as a view of another: as a network gives."""
    generator = torch.Generator().manual_seed(sum(lengths) + head_dim)
    tokens = sum(lengths) + tail
    qk = torch.randn(tokens, heads + groups, head_dim, generator=generator).to(dtype)
    projection = torch.randn(tokens, heads + 2 * groups, head_dim, generator=generator).to(dtype)
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return qk[:, :heads], qk[:, heads:], projection[:, heads + groups :], offsets


def definition(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float) -> Tensor:
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
    seq_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    scores_HTT = torch.einsum("the,she->hts", q, k) * scale
    scores_HTT = scores_HTT.masked_fill(seq_T[:, None] != seq_T, -torch.inf)
    return torch.einsum("hts,she->the", scores_HTT.softmax(-1), v)


def check(lengths: list[int], heads: int, groups: int, head_dim: int, dtype: torch.dtype) -> None:
    q, k, v, offsets = packed(lengths, heads, groups, head_dim, dtype)
    scale = head_dim**-0.5
    ours = [x.detach().requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, _ = registered.attention_varlen(*ours, offsets, scale)
    q, k, v = exact
    wanted = definition(q, k, v, lengths, scale)
    torch.testing.assert_close(out.double(), wanted, atol=TOLERANCE[dtype], rtol=0.0)
    grad = torch.sin(torch.arange(out.numel()) * 0.7).view(out.shape)
    gradients = torch.autograd.grad(out, ours, grad.to(dtype))
    expected = torch.autograd.grad(wanted, exact, grad.to(dtype).double())
    for ours_, want in zip(gradients, expected, strict=True):
        atol = TOLERANCE[dtype] * max(1.0, float(want.abs().max()))
        torch.testing.assert_close(ours_.double(), want, atol=atol, rtol=0.0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", MIXES, ids=lambda lengths: f"{len(lengths)}x{max(lengths)}")
def test_any_mix_of_lengths_equals_the_definition(
    lengths: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    poison_new_memory(monkeypatch)
    check(lengths, heads=2, groups=1, head_dim=16, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_dim", [8, 12, 64, 72, 96, 128])
def test_any_head_dim_equals_the_definition(
    head_dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    poison_new_memory(monkeypatch)
    check([5, 21], heads=2, groups=2, head_dim=head_dim, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_dim", [72, 128])
def test_a_head_in_two_pieces_crosses_tiles_of_queries_and_keys(
    head_dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """72 is 64 + 16 in every kernel, 128 is 64 + 64 in some; heads of queries share keys."""
    poison_new_memory(monkeypatch)
    check([3, 131], heads=2, groups=1, head_dim=head_dim, dtype=dtype)


def test_tokens_past_the_last_offset_get_zeros_and_repeated_offsets_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    poison_new_memory(monkeypatch)
    lengths = [5, 3]
    q, k, v, offsets = packed(lengths, 2, 2, 16, torch.float32, tail=70)
    offsets = torch.cat((offsets, offsets[-1:].expand(4))).contiguous()
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out, _ = registered.attention_varlen(*inputs, offsets, 0.25)
    q, k, v = (x[:8].double() for x in (q, k, v))
    wanted = definition(q, k, v, lengths, 0.25)
    torch.testing.assert_close(out[:8].double(), wanted, atol=5e-6, rtol=0.0)
    assert torch.equal(out[8:], torch.zeros_like(out[8:]))
    for gradient in torch.autograd.grad(out.square().sum(), inputs):
        assert torch.equal(gradient[8:], torch.zeros_like(gradient[8:]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the neighbours' own NaNs
def test_a_sequence_does_not_notice_its_neighbours():
    """Whatever another sequence holds, NaN and all, ours is the same to the bit."""
    lengths = [9, 20, 33]
    q, k, v, offsets = packed(lengths, 2, 2, 24, torch.float32)
    ours = slice(9, 29)
    results = []
    for poisoned in (False, True):
        inputs = [x.clone() for x in (q, k, v)]
        if poisoned:
            for x in inputs:
                kept = x[ours].clone()
                x.fill_(torch.nan)
                x[ours] = kept
        inputs = [x.requires_grad_() for x in inputs]
        out, _ = registered.attention_varlen(*inputs, offsets, 0.2)
        gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
        results.append([out[ours].detach(), *(gradient[ours] for gradient in gradients)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

"""Every attention implementation that is installed, where it really runs, against float64.

Under `TRITON_INTERPRET=1` the same checks run on the CPU, smaller, so that this file is proved too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from fit_kernels import attention_varlen
from fit_kernels.attention import equal_runs, use_attention
from support.on_gpu import (
    CAN_RUN,
    DEVICE,
    DTYPES,
    INTERPRETED,
    TOLERANCE,
    WHY_NOT,
    Replay,
    draw,
    error,
    gradients,
    in_float64,
    poisoned,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CAN_RUN, reason=WHY_NOT)]

LIBRARIES = ("torch-varlen", "flash-attn-2", "flash-attn-3", "flash-attn-4", "xformers")
# Those that read the lengths on the device, so that a graph may be replayed with others.
DEVICE_LENGTHS = ("fused", "torch-varlen")
LENGTHS = (1, 7, 7, 33) if INTERPRETED else (1, 7, 256, 256, 65, 130, 1, 580)
HEADS = [(2, 2, 24)] if INTERPRETED else [(16, 16, 72), (24, 24, 96), (4, 2, 64)]
# Weights of the softmax are rounded once more than the elementwise operators' values.
EXTRA = 2

Qkv = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def auto_afterwards() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    use_attention("auto")


def choose(name: str, dtype: torch.dtype) -> None:
    """Choose an implementation, or skip with its own reason."""
    if name in LIBRARIES and (DEVICE == "cpu" or dtype == torch.float32):
        pytest.skip(f"{name} takes half precision on CUDA only")
    try:
        use_attention(name)
    except (ValueError, ImportError) as reason:
        if name not in LIBRARIES:
            raise
        pytest.skip(f"{name}: {reason}")


def draw_qkv(tokens: int, heads: tuple[int, int, int], dtype: torch.dtype) -> Qkv:
    """Queries and keys of their own, values a view of a projection: as the network has them."""
    queries, keys, head_dim = heads
    q, k = draw(tokens, queries + keys, head_dim, dtype=dtype).split((queries, keys), dim=1)
    v = draw(tokens, queries + 2 * keys, head_dim, dtype=dtype)[:, queries + keys :]
    return q, k, v


def offsets(lengths: tuple[int, ...], capacity: int = 0) -> Tensor:
    """`cu_seqlens`, its unused tail repeating the total."""
    starts = [0, *accumulate(lengths)]
    starts += [starts[-1]] * (capacity + 1 - len(starts))
    return torch.tensor(starts, dtype=torch.int32, device=DEVICE)


def exactly(qkv: Qkv, lengths: tuple[int, ...]) -> Tensor:
    """Softmax attention of every sequence by itself; of float64 queries, keys and values."""
    q, k, v = qkv
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
    out = []
    for q_, k_, v_ in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("qhe,khe->hqk", q_, k_) * q.shape[-1] ** -0.5
        out.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), v_))
    return torch.cat(out)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["fused", "grouped", *LIBRARIES])
def test_attention_and_its_gradients_are_those_of_float64(
    name: str, dtype: torch.dtype, heads: tuple[int, int, int]
):
    choose(name, dtype)
    tolerance = EXTRA * TOLERANCE[dtype]
    qkv = draw_qkv(sum(LENGTHS), heads, dtype)
    exact: Qkv = tuple(in_float64(x).requires_grad_() for x in qkv)
    leaves = [x.requires_grad_() for x in qkv]
    wanted = exactly(exact, LENGTHS)
    with poisoned():
        out = attention_varlen(*qkv, offsets(LENGTHS), equal_runs(LENGTHS), max(LENGTHS))
    assert error(out, wanted) <= tolerance
    incoming = draw(*out.shape, dtype=dtype)
    with poisoned():
        found = gradients([out], leaves, [incoming])
    right = gradients([wanted], exact, [in_float64(incoming)])
    for gradient, exact_gradient in zip(found, right, strict=True):
        assert error(gradient, exact_gradient) <= 3 * tolerance


@pytest.mark.parametrize("name", DEVICE_LENGTHS)
def test_padding_and_an_unused_tail_of_offsets_change_nothing(name: str):
    """Padding is a sequence of its own; behind it the offsets repeat the total."""
    dtype = DTYPES[-1]
    choose(name, dtype)
    padding = 5 if INTERPRETED else 77
    qkv = draw_qkv(sum(LENGTHS) + padding, HEADS[0], dtype)
    lengths = (*LENGTHS, padding)
    cu_seqlens = offsets(lengths, len(lengths) + 6)
    with torch.no_grad(), poisoned():
        out = attention_varlen(*qkv, cu_seqlens, equal_runs(lengths), max(lengths))
    assert out.isfinite().all()
    real: Qkv = tuple(in_float64(x[: sum(LENGTHS)]) for x in qkv)
    tolerance = EXTRA * TOLERANCE[dtype]
    assert error(out[: sum(LENGTHS)], exactly(real, LENGTHS)) <= tolerance


@pytest.mark.parametrize("name", DEVICE_LENGTHS)
def test_a_replayed_graph_follows_its_offsets(name: str):
    """Other sequences in the captured buffers: fewer, longer and shorter, the same total."""
    dtype = DTYPES[-1]
    choose(name, dtype)
    total = sum(LENGTHS)
    first, second = LENGTHS, (total // 2, total // 3, total - total // 2 - total // 3)
    capacity = len(LENGTHS) + 2
    qkv, other = (draw_qkv(total, HEADS[0], dtype) for _ in range(2))
    cu_seqlens = offsets(first, capacity)
    with torch.no_grad():
        replay = Replay(
            lambda: (attention_varlen(*qkv, cu_seqlens, equal_runs(first), max_length=total),)
        )
        for mine, new in zip(qkv, other, strict=True):
            mine.copy_(new)
        cu_seqlens.copy_(offsets(second, capacity))
        (out,) = replay.again()
    exact: Qkv = tuple(in_float64(x) for x in other)
    assert error(out, exactly(exact, second)) <= EXTRA * TOLERANCE[dtype]


def test_a_sequence_does_not_notice_its_neighbours():
    """Bit for bit in our own kernel, so that a picture is the same in every pack."""
    dtype = DTYPES[-1]
    choose("fused", dtype)
    qkv = draw_qkv(sum(LENGTHS), HEADS[0], dtype)
    runs = equal_runs(LENGTHS)
    with torch.no_grad():
        together = attention_varlen(*qkv, offsets(LENGTHS), runs, max(LENGTHS))
        start, only = sum(LENGTHS[:-1]), (LENGTHS[-1],)
        q, k, v = (x[start:] for x in qkv)
        alone = attention_varlen(q, k, v, offsets(only), equal_runs(only), max(only))
    assert torch.equal(together[start:], alone)

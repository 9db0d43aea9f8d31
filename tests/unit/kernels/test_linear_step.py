"""One linear sampler update for a pack: each sequence by its own seven numbers, alone or not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fit_kernels import linear_step

CHANNELS = 3


def random_pack(lengths: list[int], seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """State, velocity, memory and noise [T, C]; coefficients [S, 7]; sequence of each token."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(4, sum(lengths), CHANNELS, generator=generator)
    coefficients = torch.randn(len(lengths), 7, generator=generator)
    seq = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return list(parts), coefficients, seq


@pytest.mark.parametrize("lengths", [[1], [4, 1, 2], [3, 3]])
def test_equals_the_rule_written_out(lengths: list[int]):
    (x, v, m, n), coefficients, seq = random_pack(lengths)
    x_next, m_next = linear_step(x, v, m, n, coefficients, seq)
    x, v, m, n = (part.double() for part in (x, v, m, n))
    for t in range(sum(lengths)):
        a, b, c, d, e, f, g = coefficients[seq[t]].double()
        want_x, want_m = a * x[t] + b * v[t] + c * m[t] + d * n[t], e * x[t] + f * v[t] + g * m[t]
        torch.testing.assert_close(x_next[t].double(), want_x, atol=2e-6, rtol=0.0)
        torch.testing.assert_close(m_next[t].double(), want_m, atol=2e-6, rtol=0.0)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 5))
def test_a_sequence_does_not_notice_its_neighbours(lengths: list[int], chosen: int):
    chosen %= len(lengths)
    (x, v, m, n), coefficients, seq = random_pack(lengths, seed=chosen)
    part = seq == chosen
    together = [out[part] for out in linear_step(x, v, m, n, coefficients, seq)]
    row = coefficients[chosen : chosen + 1]
    alone = linear_step(x[part], v[part], m[part], n[part], row, torch.zeros_like(seq[part]))
    assert all(torch.equal(ours, lonely) for ours, lonely in zip(together, alone, strict=True))


def test_a_sequence_without_noise_is_the_same_beside_a_noisy_one():
    (x, v, m, n), coefficients, seq = random_pack([3, 4])
    coefficients[0, 3] = 0.0
    noisy, _ = linear_step(x, v, m, n, coefficients, seq)
    quiet, _ = linear_step(x, v, m, None, coefficients, seq)
    assert torch.equal(noisy[seq == 0], quiet[seq == 0])
    assert not torch.equal(noisy[seq == 1], quiet[seq == 1])


def test_a_coarse_prediction_is_added_in_fp32():
    (x, v, m, n), coefficients, seq = random_pack([5])
    x_next, m_next = linear_step(x, v.bfloat16(), m, n, coefficients, seq)
    assert (x_next.dtype, m_next.dtype) == (torch.float32, torch.float32)
    exact = linear_step(x, v.bfloat16().float(), m, n, coefficients, seq)
    assert torch.equal(x_next, exact[0])
    assert torch.equal(m_next, exact[1])

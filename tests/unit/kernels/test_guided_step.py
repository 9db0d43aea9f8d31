"""Guidance and update for a pack: each sequence by its own eight numbers, alone or not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fit_kernels import guided_step

CHANNELS, GUIDED = 4, 3


class Pack:
    """Random sequences, (tokens, branches) each, as a batch lays them out."""

    def __init__(self, sequences: list[tuple[int, int]], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = [tokens for tokens, _ in sequences]
        conditional, unconditional, at = [], [], 0
        for tokens, branches in sequences:
            conditional.append(torch.arange(at, at + tokens))
            at += tokens * branches
            unconditional.append(torch.arange(at - tokens, at))
        self.x, self.memory, self.noise = torch.randn(
            3, sum(lengths), CHANNELS, generator=generator
        )
        self.velocity = torch.randn(at, CHANNELS, generator=generator)
        self.conditional, self.unconditional = torch.cat(conditional), torch.cat(unconditional)
        self.rows = torch.randn(len(sequences), 8, generator=generator)
        self.sequence = torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor(lengths))

    def step(self, noise: bool = True) -> tuple[Tensor, Tensor]:
        return guided_step(
            self.x,
            self.velocity,
            self.memory,
            self.noise if noise else None,
            self.conditional,
            self.unconditional,
            self.rows,
            self.sequence,
            GUIDED,
        )

    def alone(self, number: int) -> tuple[Tensor, Tensor]:
        """The same step of one sequence, with nothing else in the tensors."""
        part = self.sequence == number
        own, null = self.conditional[part], self.unconditional[part]
        unguided = torch.equal(own, null)
        velocity = self.velocity[own] if unguided else self.velocity[torch.cat((own, null))]
        index = torch.arange(len(own))
        return guided_step(
            self.x[part],
            velocity,
            self.memory[part],
            self.noise[part],
            index,
            index if unguided else index + len(own),
            self.rows[number : number + 1],
            torch.zeros_like(index),
            GUIDED,
        )


@pytest.mark.parametrize("sequences", [[(1, 1)], [(1, 2)], [(4, 2), (1, 1), (2, 2)], [(3, 1)] * 2])
def test_equals_the_rule_written_out(sequences: list[tuple[int, int]]):
    pack = Pack(sequences)
    x_next, memory_next = pack.step()
    for t in range(len(pack.x)):
        a, b, c, d, e, f, g, s = pack.rows[pack.sequence[t]].double()
        x, m, n = (v[t].double() for v in (pack.x, pack.memory, pack.noise))
        own = pack.velocity[pack.conditional[t]].double()
        null = pack.velocity[pack.unconditional[t]].double()
        v = torch.where(torch.arange(CHANNELS) < GUIDED, null + s * (own - null), own)
        want_x, want_m = a * x + b * v + c * m + d * n, e * x + f * v + g * m
        # sums of four products of values up to about ten
        torch.testing.assert_close(x_next[t].double(), want_x, atol=1e-5, rtol=0.0)
        torch.testing.assert_close(memory_next[t].double(), want_m, atol=1e-5, rtol=0.0)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2)), min_size=1, max_size=6),
    st.integers(0, 5),
)
def test_a_sequence_does_not_notice_its_neighbours(sequences: list[tuple[int, int]], chosen: int):
    chosen %= len(sequences)
    pack = Pack(sequences, seed=chosen)
    together = [out[pack.sequence == chosen] for out in pack.step()]
    alone = pack.alone(chosen)
    assert all(torch.equal(ours, lonely) for ours, lonely in zip(together, alone, strict=True))


def test_one_tensor_for_both_branches_says_that_nobody_is_guided():
    pack = Pack([(3, 1), (2, 1)])
    apart = pack.step()
    pack.unconditional = pack.conditional
    assert all(torch.equal(x, y) for x, y in zip(pack.step(), apart, strict=True))


def test_a_sequence_without_noise_is_the_same_beside_a_noisy_one():
    pack = Pack([(3, 1), (4, 2)])
    pack.rows[0, 3] = 0.0
    noisy, quiet = pack.step()[0], pack.step(noise=False)[0]
    first = pack.sequence == 0
    assert torch.equal(noisy[first], quiet[first])
    assert not torch.equal(noisy[~first], quiet[~first])


def test_a_coarse_prediction_is_added_in_fp32():
    pack = Pack([(5, 2)])
    pack.velocity = pack.velocity.bfloat16()
    coarse = pack.step()
    assert [out.dtype for out in coarse] == [torch.float32, torch.float32]
    pack.velocity = pack.velocity.float()
    assert all(torch.equal(x, y) for x, y in zip(coarse, pack.step(), strict=True))


def test_gradients_pass_finite_differences():
    pack = Pack([(2, 2), (1, 1)])
    tensors = [
        t.double().requires_grad_() for t in (pack.x, pack.velocity, pack.memory, pack.noise)
    ]
    index = (pack.conditional, pack.unconditional, pack.rows.double(), pack.sequence, GUIDED)
    assert torch.autograd.gradcheck(lambda x, v, m, n: guided_step(x, v, m, n, *index), tensors)

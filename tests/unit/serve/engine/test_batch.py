"""The description of a packed batch says where everything is, and leaves nothing out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_models.config import RopeConfig
from fit_models.rope import rope_table
from fit_serve.engine.batch import Batch, build_batch, packed_order, pad_target
from fit_serve.engine.rope_cache import RopeCache
from fit_serve.engine.sequence import Sequence
from fit_serve.request import SequenceRequest
from support.sequences import planned, requests, sequence_of

HEAD_DIM = 8
ROPE = RopeConfig()


def slab(num_rows: int = 128) -> RopeCache:
    def make(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        return rope_table(rows, columns, HEAD_DIM, ROPE)

    return RopeCache(make, num_rows, (HEAD_DIM // 2, HEAD_DIM // 2), torch.device("cpu"))


@st.composite
def memberships(draw: st.DrawFn) -> list[Sequence]:
    """Sequences somewhere on their way, in packed order."""
    asked: list[SequenceRequest] = draw(st.lists(requests(), min_size=1, max_size=7))
    sequences = [planned(request) for request in asked]
    for sequence in sequences:
        sequence.position = draw(st.integers(0, len(sequence.evaluations) - 1))
    return packed_order(sequences)


bucket_sets = st.sampled_from([(), (64, 128, 256), (50,)])


@settings(max_examples=60, deadline=None)
@given(memberships(), bucket_sets)
def test_every_state_token_is_read_once_per_branch_and_written_once(
    sequences: list[Sequence], buckets: tuple[int, ...]
) -> None:
    batch = build_batch(sequences, slab(), buckets)
    num_states = sum(s.num_tokens for s in sequences)
    states = torch.arange(num_states)
    assert torch.equal(batch.token_source[batch.conditional], states)
    assert torch.equal(batch.token_source[batch.unconditional], states)
    read = torch.cat((batch.conditional, batch.unconditional)).unique()
    assert torch.equal(read, torch.arange(batch.num_real_tokens))
    slices = [states[where] for where in batch.state_slices]
    assert torch.equal(torch.cat(slices), states)
    for number, (sequence, own) in enumerate(zip(sequences, slices, strict=True)):
        assert len(own) == sequence.num_tokens
        assert set(batch.sequence_of_state[own].tolist()) == {number}
        is_one_branch = torch.equal(batch.conditional[own], batch.unconditional[own])
        assert is_one_branch == (sequence.num_branches == 1)


@settings(max_examples=60, deadline=None)
@given(memberships(), bucket_sets)
def test_branches_lie_end_to_end_with_the_rotary_rows_of_their_grid(
    sequences: list[Sequence], buckets: tuple[int, ...]
) -> None:
    batch = build_batch(sequences, slab(), buckets)
    layout = batch.layout
    branches = [s for s in sequences for _ in range(s.num_branches)]
    padding = [batch.num_padding] if batch.num_padding else []
    assert list(layout.lengths) == [s.num_tokens for s in branches] + padding
    assert layout.num_tokens == batch.num_real_tokens + batch.num_padding
    ends = layout.cu_seqlens.tolist()
    for branch, start, end in zip(branches, ends, ends[1:], strict=False):
        cos, sin = rope_table(*branch.grid, HEAD_DIM, ROPE)
        rows = layout.rope_row[start:end]
        assert torch.equal(layout.rope_cos[rows], cos)
        assert torch.equal(layout.rope_sin[rows], sin)


@settings(max_examples=60, deadline=None)
@given(memberships(), bucket_sets)
def test_padding_fills_the_bucket_and_belongs_to_nobody(
    sequences: list[Sequence], buckets: tuple[int, ...]
) -> None:
    batch = build_batch(sequences, slab(), buckets)
    real = sum(s.num_tokens * s.num_branches for s in sequences)
    assert batch.num_real_tokens == real
    assert batch.layout.num_tokens == pad_target(real, buckets)
    read = torch.cat((batch.conditional, batch.unconditional))
    assert int(read.max()) < real


@pytest.mark.parametrize(
    ("tokens", "padded"), [(1, 64), (64, 64), (65, 128), (256, 256), (257, 257)]
)
def test_the_smallest_bucket_that_holds_them(tokens: int, padded: int) -> None:
    assert pad_target(tokens, (64, 128, 256)) == padded
    assert pad_target(tokens, ()) == tokens


@settings(max_examples=30, deadline=None)
@given(memberships())
def test_equal_lengths_lie_side_by_side(sequences: list[Sequence]) -> None:
    batch = build_batch(sequences, slab())
    lengths = batch.layout.lengths
    assert len(batch.layout.runs) == len(set(lengths))


def test_a_description_holds_until_membership_order_or_branches_change() -> None:
    a, b = sequence_of("a", (2, 3), interval=(0.0, 0.5)), sequence_of("b", (2, 2))
    batch: Batch = build_batch([b, a], slab())
    assert batch.describes([b, a])
    a.position, b.position = 1, 2
    assert batch.describes([b, a])
    assert not batch.describes([a, b])
    assert not batch.describes([b])
    assert not batch.describes([b, sequence_of("a", (2, 3), interval=(0.0, 0.5))])
    a.position = 2  # guidance begins: two branches
    assert not batch.describes([b, a])

"""Attention to packed captions equals the formula, sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from fit_models.cross_attention import cross_attend, joint_runs


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_every_sequence_attends_to_its_own_caption(key_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, caption_lengths = [3, 3, 5, 1, 5], [2, 2, 2, 7, 1]
    q = torch.randn(sum(lengths), 4, 8, generator=generator)
    k, v = torch.randn(2, sum(caption_lengths), key_heads, 8, generator=generator)
    out = cross_attend(q, k, v, lengths, caption_lengths)
    assert out.shape == q.shape
    wide_k, wide_v = (x.repeat_interleave(4 // key_heads, dim=1) for x in (k, v))
    start = caption_start = 0
    for length, caption_length in zip(lengths, caption_lengths, strict=True):
        own_q = q[start : start + length].transpose(0, 1)
        own_k, own_v = (
            x[caption_start : caption_start + caption_length].transpose(0, 1)
            for x in (wide_k, wide_v)
        )
        weights = (own_q @ own_k.transpose(1, 2) * 8**-0.5).softmax(-1)
        expected = (weights @ own_v).transpose(0, 1)
        torch.testing.assert_close(out[start : start + length], expected, atol=1e-5, rtol=0.0)
        start += length
        caption_start += caption_length


def test_neighbours_equal_in_both_lengths_share_a_call() -> None:
    assert joint_runs((3, 3, 3, 4), (2, 2, 5, 5)) == (
        (0, 0, 2, 3, 2),
        (6, 4, 1, 3, 5),
        (9, 9, 1, 4, 5),
    )
    with pytest.raises(ValueError, match="1 captions for 2 sequences"):
        joint_runs((3, 3), (2,))

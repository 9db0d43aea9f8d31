"""Tokens and latents are the same values in another order, FiT's order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fit_models.patches import patchify, unpatchify
from support.golden import load_case

SIZES = st.integers(1, 6)


def test_unpatchify_equals_the_original():
    case = load_case("fitv2", "unpatchify")
    height, width = case.params["hw"]
    tokens = case.inputs["x"]
    case.check({"latent": unpatchify(tokens, height // 2, width // 2, 2)})
    assert torch.equal(patchify(case.expected["latent"], 2), tokens)


def test_a_token_is_channel_then_row_then_column():
    tokens = torch.arange(6 * 16).reshape(1, 6, 16)
    latent = unpatchify(tokens, 2, 3, 2)
    assert latent[0, 0].tolist() == [
        [0, 1, 16, 17, 32, 33],
        [2, 3, 18, 19, 34, 35],
        [48, 49, 64, 65, 80, 81],
        [50, 51, 66, 67, 82, 83],
    ]


@given(st.integers(1, 3), st.integers(1, 5), SIZES, SIZES, st.integers(1, 4))
def test_there_and_back_is_the_same(b: int, c: int, rows: int, columns: int, p: int):
    latents = torch.arange(b * c * rows * p * columns * p).reshape(b, c, rows * p, columns * p)
    tokens = patchify(latents, p)
    assert tokens.shape == (b, rows * columns, c * p * p)
    assert torch.equal(unpatchify(tokens, rows, columns, p), latents)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="latent 5x4 is not a multiple of the patch size 2"):
        patchify(torch.zeros(1, 4, 5, 4), 2)
    with pytest.raises(ValueError, match="6 tokens do not fill a grid of 2x2"):
        unpatchify(torch.zeros(1, 6, 16), 2, 2, 2)

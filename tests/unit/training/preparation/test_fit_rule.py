"""FiT's data rule against numbers worked by hand."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fit_training.preparation.fit_rule import FitRule, centre_crop, resized_sides
from support.photograph_archives import invented_photograph

SIDES = st.integers(16, 5000)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((256, 256), (256, 256)),  # at the limit: 256 sqrt(1)
        ((512, 512), (256, 256)),
        ((1024, 256), (512, 128)),  # 256 sqrt(4), 256 / sqrt(4)
        ((500, 375), (288, 208)),  # 295.60 x 221.70, floored to 18 x 13 tokens
        ((375, 500), (208, 288)),
        ((300, 300), (256, 256)),
        ((200, 100), (192, 96)),  # 20000 < 65536: kept, floored
        ((255, 255), (240, 240)),
        ((1000, 60), (992, 48)),  # 60000 < 65536: kept, however long
        ((16, 31), (16, 16)),
        ((5000, 16), (4096, 16)),  # 4525 x 14.5: one token, and no longer than the limit's area
    ],
)
def test_sides_are_those_of_the_rule(size: tuple[int, int], expected: tuple[int, int]):
    assert resized_sides(size, 256) == expected


def test_no_token_is_lost_to_a_rounding_error():
    # 240 sqrt(1 / 9) = 80 exactly, 79.99999999999999 where sqrt(1 / 9) is a float
    assert resized_sides((400, 3600), 240) == (80, 720)
    assert resized_sides((300, 2700), 240) == (80, 720)


@given(SIDES, SIDES)
def test_the_area_is_within_the_limit_and_nothing_is_enlarged(width: int, height: int):
    columns, rows = resized_sides((width, height), 256)
    assert columns % 16 == 0
    assert rows % 16 == 0
    assert min(columns, rows) >= 16
    assert columns * rows <= 256**2
    assert columns <= width
    assert rows <= height
    if min(columns, rows) > 16 and width * height >= 256**2:
        # each side is the exact one of equal aspect, less a token at the most
        exact = Fraction(256**2 * width, height)
        assert columns**2 <= exact < (columns + 16) ** 2


def test_a_crop_needs_both_sides_beyond_the_limit():
    rule = FitRule(256)
    assert rule.num_variants == 4
    for size, crops in (((257, 300), True), ((256, 900), False), ((900, 256), False)):
        assert [rule.applies(size, variant) for variant in range(4)] == [True, True, crops, crops]
    assert FitRule(256, mixed=False).num_variants == 1


def test_odd_variants_are_mirrors_of_even_ones():
    rule, image = FitRule(64), invented_photograph(130, 100, 1)
    made = [rule.pixels(image, 0, 0, variant) for variant in range(4)]
    assert [tuple(pixels.shape) for pixels in made] == [(3, 48, 64)] * 2 + [(3, 64, 64)] * 2
    assert torch.equal(made[1], made[0].flip(2))
    assert torch.equal(made[3], made[2].flip(2))


def test_an_image_that_fits_is_copied_bit_for_bit():
    image = invented_photograph(48, 32, 1)
    pixels = FitRule(64).pixels(image, 0, 0, 0)
    assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_the_crop_halves_by_boxes_then_cuts_the_middle():
    # 256 x 128 to 64: halved once by means of 2 x 2 pixels to 128 x 64, no resizing, columns 32..95
    pixels = np.random.default_rng(0).integers(0, 256, (128, 256, 3), dtype=np.uint8)
    cut = np.array(centre_crop(Image.fromarray(pixels), 64)).astype(float)
    means = pixels.reshape(64, 2, 128, 2, 3).mean(axis=(1, 3))
    assert cut.shape == (64, 64, 3)
    assert np.abs(cut - means[:, 32:96]).max() <= 1  # two roundings of Pillow's


def test_an_odd_margin_is_cut_as_adm_cuts_it():
    # 101 x 64 to 64: the margin is 37, of which 18 (37 // 2) go on the left
    pixels = np.zeros((64, 101, 3), dtype=np.uint8)
    pixels[:, 18] = 255
    cut = np.array(centre_crop(Image.fromarray(pixels), 64))
    assert (cut[:, 0] == 255).all()
    assert (cut[:, 1:] == 0).all()


@pytest.mark.parametrize("max_side", [0, 100])
def test_a_side_of_broken_tokens_is_refused(max_side: int):
    with pytest.raises(ValueError, match=f"max_side: {max_side} is not a positive multiple of 16"):
        FitRule(max_side)

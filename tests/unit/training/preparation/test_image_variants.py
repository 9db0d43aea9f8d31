import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_training.preparation.image_variants import (
    ImageVariant,
    VariantConfig,
    choose_variant,
    render,
    token_sides,
)
from support.photograph_archives import invented_photograph

CONFIG = VariantConfig()
SIDES = st.integers(24, 400)
photographs = st.tuples(SIDES, SIDES)


@given(photographs, st.integers(0, 10_000), st.integers(0, 7))
@settings(deadline=None)
def test_a_variant_is_a_large_crop_of_allowed_size(size: tuple[int, int], photo: int, variant: int):
    chosen = choose_variant(size, CONFIG, 0, photo, variant)
    left, top, right, bottom = chosen.box
    assert 0 <= left <= right <= size[0] + 1e-9
    assert 0 <= top <= bottom <= size[1] + 1e-9
    assert right - left >= 0.88 * size[0] - 1e-9
    assert bottom - top >= 0.88 * size[1] - 1e-9
    for side in (chosen.width, chosen.height):
        assert side % 16 == 0
        assert 48 <= side <= 256
    assert chosen.flip == (variant % 2 == 1)


@given(photographs, st.integers(0, 10_000))
@settings(deadline=None)
def test_a_variant_depends_on_seed_photo_and_number_alone(size: tuple[int, int], photo: int):
    chosen = choose_variant(size, CONFIG, 5, photo, 2)
    assert chosen == choose_variant(size, CONFIG, 5, photo, 2)
    others = [(6, photo, 2), (5, photo + 1, 2), (5, photo, 3)]
    assert all(chosen.box != choose_variant(size, CONFIG, *other).box for other in others)


@given(st.floats(40, 400), st.floats(40, 400), st.floats(88**2, 184**2))
def test_sides_keep_area_and_aspect_within_rounding(width: float, height: float, area: float):
    # Only for shapes the limits leave alone: each side is then off by half a token at most.
    scale = (area / (width * height)) ** 0.5
    exact = (width * scale, height * scale)
    if min(exact) >= 48 and max(exact) <= 256:
        for side, wanted in zip(token_sides(width, height, area, CONFIG), exact, strict=True):
            assert abs(side - wanted) <= 8 + 1e-6


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(300, 100, (256, 80)), (20, 50, (48, 128)), (900, 10, (256, 48))],
)
def test_the_limits_move_both_sides_together(width: int, height: int, expected: tuple[int, int]):
    area = 184**2 if width > 100 else 60**2
    assert token_sides(width, height, area, CONFIG) == expected


def test_a_small_photo_is_enlarged_by_a_quarter_at_most():
    for photo in range(200):
        chosen = choose_variant((70, 70), CONFIG, 0, photo, 0)
        assert max(chosen.width, chosen.height) <= 80  # 70 * sqrt(1.25) = 78.3, then rounding


def test_sizes_spread_over_the_whole_range():
    chosen = [choose_variant((400, 400), CONFIG, 0, photo, 0) for photo in range(400)]
    sides = np.array([variant.width for variant in chosen])
    assert {96, 112, 128, 144, 160, 176} <= set(sides.tolist())
    # Log-uniform from 88 to 184: half of them below sqrt(88 * 184) = 127.
    assert 0.4 < (sides <= 127).mean() + (sides == 128).mean() / 2 < 0.6


def test_without_augmentation_the_photo_keeps_all_it_has():
    plain = VariantConfig(num_variants=1, augment=False)
    assert choose_variant((160, 96), plain, 0, 3, 0) == ImageVariant(
        (0, 0, 160, 96), 160, 96, False
    )
    large = choose_variant((1600, 1600), plain, 0, 3, 0)
    assert (large.width, large.height) == (192, 192)  # 184 is 11.5 tokens, rounded to the even 12


def test_a_flip_is_the_mirror_of_the_same_crop():
    image = invented_photograph(80, 60, seed=1)
    box = (3.5, 2.0, 77.0, 58.25)
    straight = render(image, ImageVariant(box, 64, 48, False))
    mirrored = render(image, ImageVariant(box, 64, 48, True))
    assert straight.shape == (3, 48, 64)
    assert straight.dtype == torch.uint8
    assert torch.equal(mirrored, straight.flip(2))
    assert not torch.equal(mirrored, straight)


def test_a_photo_of_the_right_size_is_copied():
    image = invented_photograph(64, 48, seed=2)
    pixels = render(image, ImageVariant((0, 0, 64, 48), 64, 48, False))
    assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_variants": 0}, "num_variants: 0"),
        ({"num_variants": 2, "augment": False}, "num_variants: 2 without augment"),
        ({"min_crop": 0.0}, "min_crop: 0.0"),
        ({"min_crop": 1.5}, "min_crop: 1.5"),
        ({"min_area": 40_000}, "min_area: 40000"),
        ({"max_enlargement": 0.0}, "max_enlargement: 0.0"),
        ({"min_side": 40}, "min_side: 40 is not a positive multiple of 16"),
        ({"max_side": 0}, "max_side: 0"),
        ({"min_side": 272}, "min_side: 272 is above max_side 256"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        VariantConfig(**options)  # pyright: ignore[reportArgumentType] - wrong on purpose

"""A request for several images is several requests for one."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fit_serve.request import NUM_SEEDS, GenerationRequest

ONE = GenerationRequest("gen-1", class_label=3, height=64, width=96, seed=5)


@given(seed=st.integers(0, NUM_SEEDS - 1), num_images=st.integers(1, 16))
def test_every_image_of_a_request_can_be_made_again_alone(seed: int, num_images: int) -> None:
    together = replace(ONE, seed=seed, num_images=num_images).sequences()
    assert len(together) == num_images
    for sequence in together:
        assert 0 <= sequence.seed < NUM_SEEDS
        (alone,) = replace(ONE, seed=sequence.seed).sequences()
        assert replace(alone, sequence_id=sequence.sequence_id) == sequence


def test_the_first_image_has_the_seed_asked_for_and_the_last_seed_wraps() -> None:
    assert replace(ONE, seed=NUM_SEEDS - 1, num_images=3).seeds == (NUM_SEEDS - 1, 0, 1)


def test_sequences_have_different_ids() -> None:
    sequences = replace(ONE, num_images=16).sequences()
    assert len({sequence.sequence_id for sequence in sequences}) == 16

"""The learning rate rises linearly, stays, falls linearly, and never leaves (0, 1]."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fit_training.loop.lr import learning_rate_factor


@given(st.integers(1, 60), st.integers(0, 80), st.integers(0, 80))
def test_every_step_of_a_run_has_a_factor_above_0_and_up_to_1(num_steps, warmup, decay):
    curve = [learning_rate_factor(step, num_steps, warmup, decay) for step in range(num_steps)]
    assert all(0.0 < factor <= 1.0 for factor in curve)
    # One rise and one fall at most: once it falls it does not rise again.
    falls = [right < left for left, right in pairwise(curve)]
    assert falls == sorted(falls)


def test_the_curve_at_its_corners():
    curve = [learning_rate_factor(step, 100, 10, 20) for step in range(100)]
    assert curve[0] == pytest.approx(0.1)
    assert curve[4] == pytest.approx(0.5)
    assert curve[9:81] == [1.0] * 72
    assert curve[90] == pytest.approx(0.5)
    assert curve[99] == pytest.approx(0.05)


def test_without_warm_up_and_fall_it_is_constant():
    assert {learning_rate_factor(step, 5, 0, 0) for step in range(5)} == {1.0}


def test_where_rise_and_fall_meet_the_lower_holds():
    curve = [learning_rate_factor(step, 4, 4, 4) for step in range(4)]
    assert curve == pytest.approx([0.25, 0.5, 0.5, 0.25])

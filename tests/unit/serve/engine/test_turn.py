"""A turn is an evaluation and those that follow it without the network."""

from fit_serve.engine.turn import Reuse, Turn


def test_a_turn_ends_behind_what_it_reuses() -> None:
    assert Turn(3, 2).end == 4
    assert Turn(3, 1, (Reuse(4, 1.0, 0.0), Reuse(5, 1.5, -0.5))).end == 6


def test_a_turn_is_a_value() -> None:
    assert Turn(3, 2, (Reuse(4, 1.0, 0.0),)) == Turn(3, 2, (Reuse(4, 1.0, 0.0),))
    assert Turn(3, 2) != Turn(3, 2, shifts=False)

"""Bounds of graphs: small where that is possible, and never too small for the tokens."""

import pytest

from fit_serve.engine.graph_shape import GraphShape, graph_shapes


def test_bounds_that_cannot_make_the_tokens_are_refused():
    with pytest.raises(ValueError, match="do not make the tokens"):
        GraphShape(64, 3, 16)
    with pytest.raises(ValueError, match="at least 1"):
        GraphShape(64, 0, 64)


def test_shapes_of_buckets_are_bounded_by_what_is_served():
    assert graph_shapes([512, 256], max_sequences=129, longest=300, shortest=64) == [
        GraphShape(256, 6, 256),
        GraphShape(512, 10, 300),
    ]
    assert graph_shapes([4096], max_sequences=9) == [GraphShape(4096, 9, 4096)]
    assert graph_shapes([4096], max_sequences=2, longest=100) == [GraphShape(4096, 41, 100)]

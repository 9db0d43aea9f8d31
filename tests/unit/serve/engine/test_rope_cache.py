"""The rotary slab: rows are always the table's, whatever came and went before."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fit_models.config import RopeConfig
from fit_models.families import TableKey
from fit_models.rope import rope_table
from fit_serve.engine.rope_cache import RopeCache

HALF = 4
CPU = torch.device("cpu")


def table(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Values that say which grid and which token they are of; never zero."""
    token = torch.arange(rows * columns, dtype=torch.float32)[:, None].expand(-1, HALF)
    return 1000.0 * rows + 100.0 * columns + token, -(1000.0 * rows + 100.0 * columns + token)


def cache_of(num_rows: int) -> RopeCache:
    return RopeCache(table, num_rows, (HALF, HALF), CPU)


def check(cache: RopeCache, first_row: dict[TableKey, int]) -> None:
    for grid, first in first_row.items():
        cos, sin = table(grid[0], grid[1])
        assert torch.equal(cache.cos[first : first + len(cos)], cos)
        assert torch.equal(cache.sin[first : first + len(sin)], sin)


sides = st.integers(1, 5)
steps = st.lists(st.sets(st.tuples(sides, sides), min_size=1, max_size=5), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(steps, st.integers(1, 60))
def test_rows_are_the_tables_of_the_step_and_none_overlap(
    asked: list[set[tuple[int, int]]], num_rows: int
) -> None:
    cache = cache_of(num_rows)
    for grids in asked:
        first_row = cache.rows_of(grids)
        assert first_row.keys() == grids
        check(cache, first_row)
    assert cache.hits + cache.misses == sum(map(len, asked))
    assert cache.num_bytes == 2 * len(cache.cos) * HALF * 4


@settings(max_examples=40, deadline=None)
@given(steps)
def test_a_slab_that_holds_all_tables_makes_each_once_and_never_grows(
    asked: list[set[tuple[int, int]]],
) -> None:
    grids: set[tuple[int, int]] = set().union(*asked)
    cache = cache_of(sum(rows * columns for rows, columns in grids))
    for some in asked:
        cache.rows_of(some)
    assert cache.misses == len(grids)
    assert len(cache.cos) == sum(rows * columns for rows, columns in grids)


def test_the_longest_unused_table_goes_first() -> None:
    cache = cache_of(12)
    cache.rows_of([(2, 2)])
    cache.rows_of([(2, 3)])
    cache.rows_of([(2, 2)])
    cache.rows_of([(1, 4)])  # (2, 3) leaves, (2, 2) stays
    assert (cache.hits, cache.misses) == (1, 3)
    cache.rows_of([(2, 2), (1, 4)])
    assert (cache.hits, cache.misses) == (3, 3)
    cache.rows_of([(2, 3)])
    assert cache.misses == 4


def test_one_step_may_need_more_than_the_slab_holds() -> None:
    cache = cache_of(6)
    before = cache.num_bytes
    first_row = cache.rows_of([(2, 3), (2, 2), (5, 5)])
    check(cache, first_row)
    assert cache.num_bytes > before


def test_a_table_that_cannot_be_made_leaves_no_trace() -> None:
    fails = True

    def make(rows: int, columns: int) -> tuple[Tensor, Tensor]:
        if fails and rows == 3:
            raise MemoryError
        return table(rows, columns)

    cache = RopeCache(make, 20, (HALF, HALF), CPU)
    with pytest.raises(MemoryError):
        cache.rows_of([(2, 2), (3, 3)])
    fails = False
    check(cache, cache.rows_of([(3, 3), (2, 2), (1, 5)]))


def test_tables_are_those_of_the_model() -> None:
    config = RopeConfig(mode="ntk-aware", decouple=True, ori_max_pe_len=4)
    cache = RopeCache(lambda r, c: rope_table(r, c, 2 * HALF, config), 100, (HALF, HALF), CPU)
    for grid, first in cache.rows_of([(3, 6), (6, 3), (2, 2)]).items():
        cos, sin = rope_table(grid[0], grid[1], 2 * HALF, config)
        assert torch.equal(cache.cos[first : first + len(cos)], cos)
        assert torch.equal(cache.sin[first : first + len(sin)], sin)

"""Cached AdaLN rows are the network's own, whatever came and went before."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fit_models.modulation import StackedModulation
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from fit_serve.engine.modulation_cache import Key, ModulationCache
from support.toy_bundle import make_toy_network

CPU = torch.device("cpu")


class StackedFake:
    """Rows that say which key they are of; never zero."""

    row_values = 3

    def __init__(self) -> None:
        self.fails = False

    def rows(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
        if self.fails:
            raise MemoryError
        return expected(list(zip(timestep_R.tolist(), label_R.tolist(), strict=True)))


def expected(keys: list[Key]) -> Tensor:
    return torch.tensor([[1 + 10 * t + 1000 * label] * 3 for t, label in keys])


def cache_of(num_rows: int) -> ModulationCache:
    stacked: Any = StackedFake()
    return ModulationCache(stacked, num_rows, CPU, torch.float32)


@pytest.fixture(scope="module")
def network() -> FiTv2:
    return make_toy_network()


keys = st.tuples(st.integers(0, 5).map(float), st.integers(0, 3))
steps = st.lists(st.lists(keys, min_size=1, max_size=8, unique=True), min_size=1, max_size=15)


@settings(max_examples=80, deadline=None)
@given(steps, st.integers(1, 12))
def test_rows_are_those_of_the_keys_in_their_order(asked: list[list[Key]], num_rows: int) -> None:
    cache = cache_of(num_rows)
    for step in asked:
        assert torch.equal(cache.rows(step), expected(step))
    assert cache.hits + cache.misses == sum(map(len, asked))
    assert cache.num_bytes == num_rows * 3 * 4


@settings(max_examples=40, deadline=None)
@given(steps)
def test_a_key_is_computed_once_while_there_is_room(asked: list[list[Key]]) -> None:
    cache = cache_of(24)
    for step in asked:
        cache.rows(step)
    assert cache.misses == len({key for step in asked for key in step})


@settings(max_examples=30, deadline=None)
@given(steps, st.integers(1, 12))
def test_one_by_one_no_row_is_computed_beside_another(
    asked: list[list[Key]], num_rows: int
) -> None:
    """So that its bits tell nothing of others."""
    sizes: list[int] = []

    class Watched(StackedFake):
        def rows(self, timestep_R: Tensor, label_R: Tensor) -> Tensor:
            sizes.append(len(timestep_R))
            return super().rows(timestep_R, label_R)

    stacked: Any = Watched()
    cache = ModulationCache(stacked, num_rows, CPU, torch.float32, one_by_one=True)
    for step in asked:
        assert torch.equal(cache.rows(step), expected(step))
    assert sizes == [1] * cache.misses


def test_the_longest_unused_row_goes_first() -> None:
    cache = cache_of(2)
    a, b, c = (0.0, 1), (0.25, 1), (0.5, 1)
    for step in ([a], [b], [a], [c]):  # b leaves, a stays
        cache.rows(step)
    assert (cache.hits, cache.misses) == (1, 3)
    cache.rows([a, c])
    assert (cache.hits, cache.misses) == (3, 3)


def test_a_step_with_more_keys_than_slots_is_computed_and_what_was_kept_stays() -> None:
    cache = cache_of(2)
    kept: list[Key] = [(0.0, 0), (0.5, 0)]
    many: list[Key] = [(float(i), 0) for i in range(5)]
    cache.rows(kept)
    assert torch.equal(cache.rows(many), expected(many))
    assert torch.equal(cache.rows(kept), expected(kept))
    assert (cache.hits, cache.misses) == (2, 7)


def test_rows_that_could_not_be_computed_are_not_known_afterwards() -> None:
    """A step that fails for want of memory must not leave rows of zeros behind."""
    stacked: Any = StackedFake()
    cache = ModulationCache(stacked, 2, CPU, torch.float32)
    cache.rows([(0.0, 0), (1.0, 0)])
    stacked.fails = True
    for _ in range(3):
        with pytest.raises(MemoryError):
            cache.rows([(0.0, 0), (2.0, 0)])
    stacked.fails = False
    for step in ([(0.0, 0), (2.0, 0)], [(1.0, 0), (3.0, 0)], [(3.0, 0), (2.0, 0)]):
        assert torch.equal(cache.rows(step), expected(step))


def test_rows_equal_those_the_network_makes_block_by_block(network: FiTv2) -> None:
    keys: list[Key] = [(0.0, 0), (0.37, 2), (0.37, network.config.null_label), (1.0, 1)]
    stacked = StackedModulation(network)
    cache = ModulationCache(stacked, 8, CPU, torch.float32)
    cache.rows(keys[2:])
    layout = layout_of_grids([(1, 1)] * len(keys), network.config.head_dim, network.config.rope)
    timesteps, labels = (torch.tensor(column) for column in zip(*keys, strict=True))
    plain = network.modulate(timesteps, labels, layout)
    for rows in (cache.rows(keys), stacked.rows(timesteps, labels)):
        split = stacked.split(rows, layout.seq_of_token)
        torch.testing.assert_close(split.blocks, plain.blocks, rtol=0, atol=1e-5)
        torch.testing.assert_close(split.final, plain.final, rtol=0, atol=1e-5)
        assert split.row_of_token is layout.seq_of_token
        assert sum(block.shape[1] for block in split.blocks) + split.final.shape[1] == (
            stacked.row_values
        )

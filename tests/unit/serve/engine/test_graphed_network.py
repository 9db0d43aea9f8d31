"""A graph gives what the network gives, whatever ran in its buffers before; else it is not used."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fit_kernels.attention import use_attention
from fit_models.modulation import StackedModulation
from fit_models.modulation_rows import Modulation
from fit_models.packing import PackedLayout
from fit_models.rope import rope_table
from fit_serve.engine.batch import build_batch
from fit_serve.engine.capturer import Capturer
from fit_serve.engine.graph_shape import GraphShape
from fit_serve.engine.graphed_network import GraphedNetwork
from fit_serve.engine.rope_cache import RopeCache
from support.recorded_graphs import RecordingCapturer, device_lengths_attention
from support.sequences import sequence_of
from support.toy_bundle import make_toy_network

NETWORK = make_toy_network()
STACKED = StackedModulation(NETWORK)
BUCKETS = (32, 64, 128)
SHAPES = [GraphShape(tokens, 8, tokens) for tokens in BUCKETS]
Grids = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with device_lengths_attention(monkeypatch):
        yield


@dataclass
class Step:
    """Arguments of one evaluation; the last sequence may be padding."""

    tokens: Tensor
    layout: PackedLayout
    modulation: Modulation

    def through(self, network: object) -> Tensor:
        assert isinstance(network, (GraphedNetwork, type(NETWORK)))
        with torch.inference_mode():
            return network.denoise(self.tokens, self.layout, self.modulation)


def rope_cache(num_rows: int = 512) -> RopeCache:
    config = NETWORK.config
    return RopeCache(
        lambda rows, columns: rope_table(rows, columns, config.head_dim, config.rope),
        num_rows,
        (config.head_dim // 2, config.head_dim // 2),
        torch.device("cpu"),
    )


def step_of(
    grids: Grids, rope: RopeCache, buckets: tuple[int, ...] = BUCKETS, seed: int = 0
) -> Step:
    """As the runner makes it: every picture is two branches."""
    generator = torch.Generator().manual_seed(seed)
    batch = build_batch([sequence_of(str(i), grid) for i, grid in enumerate(grids)], rope, buckets)
    layout, config = batch.layout, NETWORK.config
    timestep = torch.rand(layout.num_sequences, generator=generator)
    label = torch.randint(config.num_classes + 1, (layout.num_sequences,), generator=generator)
    modulation = STACKED.split(STACKED.rows(timestep, label), layout.seq_of_token)
    tokens = torch.randn(layout.num_tokens, config.token_channels, generator=generator)
    return Step(tokens, layout, modulation)


def graphed(
    rope: RopeCache, shapes: list[GraphShape] = SHAPES, max_graph_tokens: int = 128
) -> GraphedNetwork:
    network = GraphedNetwork(NETWORK, STACKED, max_graph_tokens, RecordingCapturer)
    network.capture(shapes, rope.cos, rope.sin)
    return network


@torch.inference_mode()
def poison(network: GraphedNetwork) -> None:
    """No number of any step before is left."""
    for graphs in network._graphs.values():
        for step in (graph.step for graph in graphs):
            for values in (step.tokens_TK, step.rows_RM, step.output_TP):
                values.fill_(torch.nan)
            layout = step.layout
            for numbers in (layout.rope_row, layout.seq_of_token, layout.cu_seqlens):
                numbers.fill_(2**30)
            step.modulation.row_of_token.fill_(2**30)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0.0)


sides = st.integers(1, 4)
mixes = st.lists(st.lists(st.tuples(sides, sides), min_size=1, max_size=3), min_size=1, max_size=4)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mixes)
def test_graphs_and_the_network_agree_for_any_mix_after_any_other(mixes: list[Grids]):
    rope = rope_cache()
    network = graphed(rope)
    for seed, grids in enumerate(mixes):
        step = step_of(grids, rope, seed=seed)
        poison(network)
        assert_same(step.through(network), step.through(NETWORK))
    assert (network.hits, network.misses) == (len(mixes), 0)


def test_graphs_agree_with_the_attention_of_a_cpu():
    rope = rope_cache()
    network, step = graphed(rope), step_of([(2, 3), (4, 4), (1, 2)], rope)
    found = step.through(network).clone()
    use_attention("grouped")
    assert_same(found, step.through(NETWORK))


@torch.inference_mode()
def test_what_a_longer_batch_left_behind_does_not_leak():
    rope = rope_cache()
    network = graphed(rope)
    many, few = step_of([(2, 3), (3, 3), (4, 4)], rope), step_of([(4, 7)], rope)
    assert many.layout.num_tokens == few.layout.num_tokens == 64
    assert many.layout.num_sequences > few.layout.num_sequences
    many.tokens.fill_(torch.nan)
    for values in (*many.modulation.blocks, many.modulation.final):
        values.fill_(torch.nan)
    assert many.through(network).isnan().all()
    assert_same(few.through(network), few.through(NETWORK))


def test_a_replay_after_the_membership_changed_and_changed_back():
    rope = rope_cache()
    network = graphed(rope)
    one, other = step_of([(3, 4), (2, 2)], rope), step_of([(2, 2), (2, 2), (2, 3)], rope, seed=1)
    before = one.through(network).clone()
    assert_same(other.through(network), other.through(NETWORK))
    assert torch.equal(one.through(network), before)
    assert network.hits == 3


def test_the_unused_tail_of_offsets_is_sequences_of_no_tokens():
    rope = rope_cache()
    network, step = graphed(rope), step_of([(3, 4)], rope)
    step.through(network)
    static = network._graphs[32][0].step.layout
    assert static.cu_seqlens.tolist() == [0, 12, 24, 32, 32, 32, 32, 32, 32]
    assert torch.equal(static.seq_of_token, step.layout.seq_of_token)


def test_a_step_over_the_bounds_goes_to_the_network_and_is_counted():
    rope = rope_cache()
    network = graphed(rope, [GraphShape(64, 5, 16)])
    steps = {
        "sequences": step_of([(2, 4), (2, 5), (2, 5)], rope),  # 7, the padding counted
        "length": step_of([(4, 5)], rope),
        "tokens": step_of([(4, 4)], rope),
    }
    for number, (reason, step) in enumerate(steps.items(), start=1):
        assert_same(step.through(network), step.through(NETWORK))
        assert (network.missed[reason], network.misses, network.hits) == (1, number, 0)
    fits = step_of([(4, 4), (2, 6)], rope)
    assert_same(fits.through(network), fits.through(NETWORK))
    assert network.hits == 1


def test_more_modulation_rows_than_a_graph_holds_go_to_the_network():
    rope = rope_cache()
    network, step = graphed(rope, [GraphShape(32, 3, 32)]), step_of([(4, 4)], rope)
    label = torch.arange(5) % 3
    rows = STACKED.rows(torch.linspace(0, 1, 5), label)
    step.modulation = STACKED.split(rows, torch.arange(32) % 5)
    assert_same(step.through(network), step.through(NETWORK))
    assert network.missed == {"sequences": 1}


def test_the_smallest_bounds_that_hold_a_step_are_taken():
    rope = rope_cache()
    shapes = [GraphShape(64, 9, 64), GraphShape(64, 4, 32), GraphShape(64, 9, 16)]
    network = graphed(rope, shapes)
    assert [graph.shape.grid for graph in network._graphs[64]] == [128, 144, 576]
    for grids, grid in (([(4, 8)], 128), ([(4, 4), (4, 4)], 128), ([(2, 4)] * 4, 144)):
        step = step_of(grids, rope)
        found = network._smallest(step.layout, step.modulation)
        assert not isinstance(found, str)
        assert found.shape.grid == grid
    long = step_of([(5, 6)] + [(1, 1)] * 2, rope)
    assert_same(long.through(network), long.through(NETWORK))


def test_large_steps_are_left_to_the_network_and_are_no_misses():
    rope = rope_cache()
    network = graphed(rope, max_graph_tokens=64)
    assert sorted(network._graphs) == [32, 64]
    step = step_of([(4, 6), (5, 5)], rope)
    assert step.layout.num_tokens == 128
    assert_same(step.through(network), step.through(NETWORK))
    assert (network.larger, network.hits, network.misses) == (1, 0, 0)


def test_a_slab_that_moved_is_noticed_until_it_is_captured():
    rope = rope_cache(num_rows=16)
    network = graphed(rope)
    step_of([(2, 2)], rope).through(network)
    moved = step_of([(4, 4), (3, 4)], rope)
    assert moved.layout.rope_cos.shape[0] > 16
    assert not network.reads_slab_of(moved.layout)
    assert_same(moved.through(network), moved.through(NETWORK))
    assert (network.hits, network.missed) == (1, {"slab": 1})
    network.capture(SHAPES, rope.cos, rope.sin)
    assert_same(moved.through(network), moved.through(NETWORK))
    assert (network.hits, network.misses) == (2, 1)


def test_tables_written_into_the_slab_after_the_capture_are_read():
    rope = rope_cache(num_rows=16)
    network = graphed(rope)
    for grid in ((4, 4), (2, 8), (3, 5)):  # each drives out the one before
        step = step_of([grid], rope)
        assert_same(step.through(network), step.through(NETWORK))
    assert (network.hits, network.misses) == (3, 0)


def test_the_log_says_what_was_captured(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "fit_serve"):
        network = graphed(rope_cache())
    assert (network.num_graphs, network.num_bytes, network.obstacle) == (3, 3000, None)
    assert "CUDA graphs: 3, of 32 to 128 tokens" in caplog.text


def test_attention_that_needs_lengths_of_the_host_is_not_captured(
    caplog: pytest.LogCaptureFixture,
):
    use_attention("grouped")
    rope = rope_cache()
    network, step = graphed(rope), step_of([(2, 3)], rope)
    assert network.obstacle == "attention 'grouped' knows the lengths of sequences on the host only"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert network.obstacle in caplog.text
    assert_same(step.through(network), step.through(NETWORK))
    assert network.missed == {"off": 1}


def test_such_attention_fails_in_a_capture_too(monkeypatch: pytest.MonkeyPatch):
    """Nothing it could take for lengths is there."""
    use_attention("grouped")
    where = "fit_serve.engine.graphed_network.capture_obstacle"
    monkeypatch.setattr(where, lambda *_: None)
    network = graphed(rope_cache())
    assert network.obstacle
    assert network.num_graphs == 0


class Broken(RecordingCapturer):
    """Fails at the second capture."""

    def capture(self, run):
        if self.captures:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return super().capture(run)


def test_a_capture_that_fails_leaves_the_network_without_graphs_for_good():
    rope = rope_cache()
    made: list[Capturer] = []

    def make(device: torch.device) -> Capturer:
        made.append(Broken(device))
        return made[-1]

    network, step = GraphedNetwork(NETWORK, STACKED, 128, make), step_of([(4, 6), (5, 5)], rope)
    for _ in range(2):
        network.capture(SHAPES, rope.cos, rope.sin)
        assert network.obstacle == (
            "RuntimeError: operation not permitted when stream is capturing"
        )
        assert network.num_graphs == 0
        assert_same(step.through(network), step.through(NETWORK))
    assert network.missed == {"off": 2}
    assert len(made) == 1

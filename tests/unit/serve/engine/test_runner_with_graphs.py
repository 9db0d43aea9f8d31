"""The runner's pictures are the same when graphs stand in the place of its network."""

import pytest
import torch
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.modulation import StackedModulation
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.graph_shape import graph_shapes
from fit_serve.engine.graphed_network import GraphedNetwork
from fit_serve.engine.runner import Runner
from support.recorded_graphs import RecordingCapturer, device_lengths_attention
from support.sequences import planned, request_of

BUCKETS = (32, 64)
REQUESTS = [
    request_of("a", (2, 3), steps=3),
    request_of("b", (4, 4), steps=5, sampler="heun"),
    request_of("c", (1, 5), steps=4, scale=1.0, sampler="sde"),
    request_of("d", (3, 3), steps=4, interval=(0.0, 0.5)),
]


def latents(runner: Runner) -> list[Tensor]:
    """All of them at once, each until its end: membership and branches change on the way."""
    running = [planned(request) for request in REQUESTS]
    everybody, done = list(running), {}
    while running:
        result = runner.execute(runner.prepare(running))
        for sequence in running:
            sequence.advance(sequence.next_turn())
        done |= result.finished
        running = [sequence for sequence in running if not sequence.is_finished]
    return [done[sequence] for sequence in everybody]


def test_graphs_in_the_place_of_the_network_make_the_same_latents(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(token_buckets=BUCKETS)
    with device_lengths_attention(monkeypatch):
        wanted = latents(Runner(bundle, config))
        runner = Runner(bundle, config)
        stacked = StackedModulation(bundle.fitv2("these tests"))
        network = bundle.fitv2("these tests")
        graphs = GraphedNetwork(network, stacked, BUCKETS[-1], RecordingCapturer)
        graphs.capture(
            graph_shapes(BUCKETS, max_sequences=9, shortest=4), runner.rope.cos, runner.rope.sin
        )
        runner.execution.graphs = graphs
        found = latents(runner)
    for ours, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, want, atol=1e-5, rtol=0.0)
    assert graphs.hits > 3
    assert (graphs.misses, graphs.larger) == (0, 1)  # all four at once are over the largest graph

"""A calibration finds the knee of a device, in time, and survives JSON."""

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_models.bundle import Bundle, load_bundle
from fit_models.config import named_config
from fit_models.packing import PackedLayout
from fit_serve.engine.calibration import Calibration, calibrate, device_name, fastest, shapes_for
from fit_serve.engine.cost_model import CostModel, Sample
from support.fake_runner import FakeClock

CALIBRATION = Calibration(
    cost_model=CostModel(((64, 0.01), (128, 0.01), (256, 0.02)), 64, 1e-9),
    max_num_batched_tokens=128,
    token_buckets=(64, 128),
    max_graph_tokens=64,
    seconds=2.5,
    measured_at="2026-01-02T03:04:05+00:00",
    model="toy",
    device="a device",
    dtype="float32",
    num_threads=1,
)


def slow_network(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, clock: FakeClock) -> list[int]:
    """Steps take 10 ms up to 512 tokens, then 20 us a token, and 10 ns a query-key pair over 64."""
    seen: list[int] = []

    def denoise(tokens: Tensor, layout: PackedLayout, modulation: Any) -> Tensor:
        assert tokens.dtype == bundle.dtype
        assert modulation.row_of_token.shape == (layout.num_tokens,) == tokens.shape[:1]
        seen.append(layout.num_tokens)
        pairs = sum(n * (n - 64) for n in layout.lengths)
        clock.now_s += max(0.01, 2e-5 * layout.num_tokens) + 1e-8 * pairs
        return tokens

    monkeypatch.setattr(bundle.network, "denoise", denoise)
    return seen


def test_knee_and_pairs_of_a_device_are_found(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    clock = FakeClock()
    slow_network(monkeypatch, bundle, clock)
    found = calibrate(bundle, seconds=30.0, clock=clock)
    assert found.max_num_batched_tokens == 512
    assert found.tokens_per_s == pytest.approx(50_000)
    assert found.cost_model.seconds_per_pair == pytest.approx(1e-8)
    assert found.cost_model.points[-1] == (4096, pytest.approx(4096 * 2e-5))
    assert found.token_buckets == ()
    assert found.seconds == pytest.approx(clock() - 100.0)
    assert (found.model, found.dtype, found.num_threads) == (
        "toy",
        "float32",
        torch.get_num_threads(),
    )


def test_graphs_are_meant_for_the_steps_they_make_faster() -> None:
    eager = [Sample(n, (n,), seconds) for n, seconds in ((64, 0.02), (128, 0.02), (256, 0.03))]
    graphs = [Sample(n, (n,), seconds) for n, seconds in ((64, 0.01), (128, 0.015), (256, 0.031))]
    best, max_graph_tokens = fastest([*eager, Sample(256, (128, 128), 0.05)], graphs)
    assert [sample.seconds for sample in best] == [0.01, 0.015, 0.03, 0.05]
    assert max_graph_tokens == 128
    assert fastest(eager, eager)[1] == 0


def test_a_limit_leaves_large_steps_out(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    clock = FakeClock()
    seen = slow_network(monkeypatch, bundle, clock)
    found = calibrate(bundle, seconds=0.2, clock=clock)
    assert found.seconds <= 0.2
    assert max(seen) == found.cost_model.points[-1][0] < 4096


def test_threads_are_set_for_the_steps_only(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    clock, before, during = FakeClock(), torch.get_num_threads(), set[int]()

    def denoise(tokens: Tensor, *_: object) -> Tensor:
        during.add(torch.get_num_threads())
        clock.now_s += 1.0
        return tokens

    monkeypatch.setattr(bundle.network, "denoise", denoise)
    assert calibrate(bundle, before + 1, 1.0, clock).num_threads == before + 1
    assert during == {before + 1}
    assert torch.get_num_threads() == before


def test_random_numbers_of_others_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    clock = FakeClock()
    slow_network(monkeypatch, bundle, clock)
    before = torch.get_rng_state()
    calibrate(bundle, seconds=1.0, clock=clock)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("device", "largest", "reference", "long"),
    [("cpu", 4096, 8 * 8, {16 * 16, 32 * 32}), ("cuda", 32_768, 16 * 16, {32 * 32})],
)
def test_shapes_span_what_a_device_is_asked_for(
    device: str, largest: int, reference: int, long: set[int]
) -> None:
    shapes = shapes_for(named_config("FiTv2-XL/2"), torch.device(device))
    lengths = {shape.lengths[0] for shape in shapes}
    assert lengths == {reference, *long}
    curve = [shape.tokens for shape in shapes if shape.lengths[0] == reference]
    assert (curve[0], curve[-1]) == (reference, largest)
    assert all(b / a <= 2 for a, b in pairwise(curve))


def test_the_embedded_model_is_calibrated_within_its_limit() -> None:
    found = calibrate(load_bundle("embedded"), num_threads=1, seconds=0.5)
    tokens = [tokens for tokens, _ in found.cost_model.points]
    assert found.max_num_batched_tokens in tokens
    assert found.tokens_per_s > 0
    assert found.device == device_name(torch.device("cpu"))
    assert found.seconds < 10  # the limit is 0.5; a machine may be busy


def test_a_calibration_survives_json() -> None:
    assert Calibration.from_dict(json.loads(json.dumps(CALIBRATION.to_dict()))) == CALIBRATION


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cost_model": 7}, "cost_model is 7"),
        ({"cost_model": {}}, "cost model has the fields"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is 0"),
        ({"max_num_batched_tokens": 1.5}, "max_num_batched_tokens is 1.5"),
        ({"num_threads": True}, "num_threads is True"),
        ({"token_buckets": None}, "token_buckets is None"),
        ({"token_buckets": [0]}, "token_buckets is"),
        ({"token_buckets": [2, 1]}, "buckets must rise"),
        ({"seconds": math.nan}, "seconds is nan"),
        ({"device": 3}, "device is 3"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Calibration.from_dict({**CALIBRATION.to_dict(), **changed})


def test_what_cannot_be_asked_is_refused(bundle: Bundle) -> None:
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="seconds is"):
            calibrate(bundle, seconds=seconds)
    with pytest.raises(ValueError, match="num_threads is -1"):
        calibrate(bundle, num_threads=-1)

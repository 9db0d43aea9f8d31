"""Every rung answers the same requests, and what it costs in quality is measured against packed."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from fit_models.bundle import Bundle, load_bundle
from fit_serve.bench.ladder import BASE, RUNGS, LadderConfig, run_ladder
from fit_serve.bench.ladder_report import ladder_json, ladder_table
from fit_serve.bench.picture_distance import EQUAL_DB, mean_psnr_db, psnr_db
from support.toy_bundle import make_toy_bundle

NAMES = (
    "serial",
    "equal-shape-dynamic",
    "equal-shape-step",
    "padded-mixed",
    "packed",
    "packed+graphs",
    "packed+interval",
    "packed+cache",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_toy_bundle(tmp_path_factory.mktemp("toy"))))


def test_the_rungs_that_are_compared_by_name_are_there() -> None:
    assert set(NAMES) <= {rung.policy for rung in RUNGS}


def test_every_rung_answers_all_and_policies_change_no_picture(bundle: Bundle) -> None:
    policies = tuple(n for n in NAMES if n != "packed+graphs")  # compiling takes too long here
    said: list[str] = []
    rows, rate = run_ladder(bundle, LadderConfig(num_requests=4, policies=policies), said.append)
    assert [row.policy for row in rows] == list(policies)
    assert rate > 0
    for row in rows:
        assert row.failed == 0
        assert row.requests_per_s > 0
        assert 0 <= row.in_time <= 1
        assert 0 < row.p50_s <= row.p95_s <= row.p99_s
        assert row.efficiency <= 1.0
    psnr = {row.policy: row.psnr_db for row in rows}
    assert psnr[BASE] == EQUAL_DB
    assert min(psnr[name] for name in NAMES[:4]) > 45  # rounding
    assert max(psnr["packed+interval"], psnr["packed+cache"]) < EQUAL_DB  # they do change something
    efficiency = {row.policy: row.efficiency for row in rows}
    assert efficiency["padded-mixed"] < efficiency[BASE] == 1.0
    assert ladder_table(rows).row_count == len(rows)
    assert '"policy": "packed+cache"' in ladder_json(rows, {"device": "cpu"})


def test_features_are_measured_where_a_network_is_given(bundle: Bundle) -> None:
    rows, _ = run_ladder(
        bundle,
        LadderConfig(num_requests=2, policies=("packed+deadline",), slo_scale=50.0),
        lambda doing: None,
        lambda own, others: float(len(own) + len(others)),
    )
    assert {row.policy: row.feature_distance for row in rows} == {
        "packed": 4.0,
        "packed+deadline": 4.0,
    }


def test_an_unknown_rung_is_named(bundle: Bundle) -> None:
    config = replace(LadderConfig(), policies=("packet",))
    with pytest.raises(ValueError, match="policy 'packet' is unknown; known: serial, "):
        run_ladder(bundle, config, lambda doing: None)


def test_psnr_is_what_it_says() -> None:
    black = numpy.zeros((4, 4, 3), numpy.uint8)
    assert psnr_db(black, black) == EQUAL_DB
    assert psnr_db(black, black + 255) == 0.0
    assert psnr_db(black, black + 1) == pytest.approx(48.13, abs=0.01)
    assert mean_psnr_db([black, black], [black, black + 255]) == EQUAL_DB / 2
    with pytest.raises(ValueError, match="no pictures"):
        mean_psnr_db([], [])


def test_random_models_are_the_same_every_time(tmp_path: Path) -> None:
    from fit_models.random_bundle import is_random, random_bundle

    first, again = (random_bundle("random:FiTv2-toy/2") for _ in range(2))
    assert is_random(first.name)
    assert not is_random("embedded")
    weights = again.network.state_dict()
    for name, weight in first.network.state_dict().items():
        assert (weight == weights[name]).all(), name
    with pytest.raises(ValueError, match=r"'random:FiTv9': sizes are FiTv2-B/2"):
        random_bundle("random:FiTv9")

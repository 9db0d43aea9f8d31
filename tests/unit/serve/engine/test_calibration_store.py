"""What is stored comes back under its key only; nothing on a disk stops a server."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from fit_models.bundle import Bundle
from fit_serve.engine import calibration_store as store
from fit_serve.engine.calibration import Calibration
from fit_serve.engine.cost_model import CostModel
from support.toy_bundle import make_toy_network

KEY = {"model": "toy", "num_threads": 1}
CALIBRATION = Calibration(
    cost_model=CostModel(((64, 0.01),), 64, 0.0),
    max_num_batched_tokens=64,
    token_buckets=(),
    max_graph_tokens=0,
    seconds=1.0,
    measured_at="2026-01-02T03:04:05+00:00",
    model="toy",
    device="d",
    dtype="f",
    num_threads=1,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fit-serve" / "calibration"


def saved(key: store.Key = KEY) -> Path:
    path = store.save(key, CALIBRATION)
    assert path is not None
    return path


def test_what_is_saved_is_loaded_under_its_key_only(cache: Path) -> None:
    assert store.load(KEY) is None
    path = saved()
    assert path.parent == cache
    assert store.load(KEY) == CALIBRATION
    assert store.load({**KEY, "num_threads": 2}) is None
    assert [file.name for file in cache.iterdir()] == [path.name]


def test_a_later_one_takes_the_place_of_an_earlier_one() -> None:
    saved()
    later = replace(CALIBRATION, seconds=2.0)
    store.save(KEY, later)
    assert store.load(KEY) == later


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"7",
        b"[" * 100_000,
        b"{}",
        json.dumps({"key": KEY}).encode(),
        json.dumps({"key": KEY, "calibration": {}}).encode(),
        json.dumps({"key": {}, "calibration": CALIBRATION.to_dict()}).encode(),
        json.dumps({"key": KEY, "calibration": {**CALIBRATION.to_dict(), "seconds": -1}}).encode(),
    ],
)
def test_a_file_that_is_broken_or_anothers_is_none(
    content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved()
    path.write_bytes(content)
    with caplog.at_level(logging.INFO):
        assert store.load(KEY) is None
    assert "is left aside" in caplog.text
    saved()
    assert store.load(KEY) == CALIBRATION


def test_half_a_file_is_none() -> None:
    path = saved()
    path.write_text(path.read_text()[:-40])
    assert store.load(KEY) is None


def test_a_folder_in_place_of_the_file_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    path = saved()
    path.unlink()
    (path / "inner").mkdir(parents=True)
    assert store.load(KEY) is None
    assert store.save(KEY, CALIBRATION) is None
    assert len(caplog.records) == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file stays


def test_a_folder_that_cannot_be_made_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert store.load(KEY) is None
    assert store.save(KEY, CALIBRATION) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("relative", ["", "cache"])
def test_a_relative_cache_folder_is_the_home_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert saved().is_relative_to(tmp_path / "home" / ".cache" / "fit-serve")


def test_without_a_home_folder_nothing_is_stored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert store.path_of(KEY) is None
    assert store.load(KEY) is None
    assert store.save(KEY, CALIBRATION) is None
    assert len(caplog.records) == 1


def test_a_key_tells_threads_apart_and_is_json(bundle: Bundle) -> None:
    key = store.key_of(bundle, 1)
    assert json.loads(json.dumps(key)) == key
    assert {**key, "num_threads": 2} == store.key_of(bundle, 2)
    assert store.key_of(bundle) == store.key_of(bundle, 0)
    assert key["attention"] == "grouped"


def test_another_network_under_the_same_name_has_another_key(bundle: Bundle) -> None:
    other = replace(bundle, network=make_toy_network(num_classes=9))
    assert store.key_of(other)["fingerprint"] != store.key_of(bundle)["fingerprint"]


def test_it_is_measured_once(bundle: Bundle) -> None:
    asked: list[tuple[int | None, float]] = []

    def measure(of: Bundle, num_threads: int | None, seconds: float) -> Calibration:
        assert of is bundle
        asked.append((num_threads, seconds))
        return CALIBRATION

    for _ in range(2):
        assert store.load_or_calibrate(bundle, 1, 5.0, measure) == CALIBRATION
    assert asked == [(1, 5.0)]
    store.load_or_calibrate(bundle, 2, 5.0, measure)
    assert asked == [(1, 5.0), (2, 5.0)]

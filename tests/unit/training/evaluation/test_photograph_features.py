from pathlib import Path

import pytest
import torch

from fit_training.evaluation.feature_networks import EfficientNetFeatures
from fit_training.evaluation.photograph_features import (
    archive_classes,
    photograph_features,
    photograph_shapes,
)
from fit_training.feature_network import load_feature_network
from support.feature_weights import write_feature_weights
from support.photograph_archives import write_archive

PHOTOGRAPHS = [("Car_Side", 40, 30), ("ant", 32, 32), ("bee", 20, 60), ("ant", 36, 24)]
NAMES = ("ant", "car side")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> EfficientNetFeatures:
    path = tmp_path_factory.mktemp("weights") / "features.safetensors"
    return EfficientNetFeatures(load_feature_network(write_feature_weights(path)))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "photographs.zip", PHOTOGRAPHS)


def quiet(*_: int) -> None:
    pass


def test_a_models_names_find_the_archives_classes(archive: Path):
    assert archive_classes(archive, ("CAR SIDE", "Bee")) == ("Car_Side", "bee")
    with pytest.raises(ValueError, match=r"no photo of \['cat'\]"):
        archive_classes(archive, ("ant", "cat"))


def test_shapes_are_height_and_width_class_by_class(archive: Path):
    assert photograph_shapes(archive, NAMES) == [[(32, 32), (24, 36)], [(30, 40)]]


def test_labels_are_positions_among_the_models_classes(
    archive: Path, network: EfficientNetFeatures
):
    told: list[tuple[int, int]] = []
    found = photograph_features(
        archive, NAMES, network, None, lambda done, of: told.append((done, of))
    )
    assert found.labels.tolist() == [1, 0, 0]  # in the order of the archive
    assert found.features.shape == (3, 1280)
    assert told == [(3, 3)]


def test_kept_features_are_used_again(
    archive: Path, network: EfficientNetFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = photograph_features(archive, NAMES, network, tmp_path / "cache", quiet)
    monkeypatch.delattr("fit_training.evaluation.feature_networks.extract_features")
    told: list[tuple[int, int]] = []
    again = photograph_features(
        archive, NAMES, network, tmp_path / "cache", lambda done, of: told.append((done, of))
    )
    assert told == [(3, 3)]
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)


def test_kept_features_are_only_of_the_same_photographs_classes_and_weights(
    archive: Path, network: EfficientNetFeatures, tmp_path: Path
):
    cache = tmp_path / "cache"
    photograph_features(archive, NAMES, network, cache, quiet)
    photograph_features(archive, ("bee",), network, cache, quiet)
    write_archive(archive, PHOTOGRAPHS[:2])
    photograph_features(archive, NAMES, network, cache, quiet)
    other = load_feature_network(write_feature_weights(tmp_path / "other.safetensors"))
    with torch.no_grad():
        other.head.weight.mul_(2)
    photograph_features(archive, NAMES, EfficientNetFeatures(other), cache, quiet)
    assert len(list(cache.iterdir())) == 4

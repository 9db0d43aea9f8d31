"""Rows of the papers' tables: what a reference file gives, and what it cannot give."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fit_training.evaluation.evaluate import ClassQuality
from fit_training.evaluation.feature_source import FeatureSource, ImageFeatures
from fit_training.evaluation.picture_arrays import count_pictures, read_pictures, write_pictures
from fit_training.evaluation.quality_plots import plot_classes, plot_resolutions
from fit_training.evaluation.reference_statistics import (
    Reference,
    observe_all,
    read_reference,
)
from fit_training.evaluation.resolution_table import (
    ResolutionFigures,
    measure_resolution,
    table_lines,
)


class Colours(FeatureSource):
    """Means of the three colours; spatial features of two channels, and scores, if wanted."""

    name = "colours"

    def __init__(self, everything: bool = False) -> None:
        self._everything = everything

    def observe(self, images: Sequence[Tensor]) -> ImageFeatures:
        pooled = torch.stack([image.float().mean(dim=(1, 2)) for image in images])
        if not self._everything:
            return ImageFeatures(pooled)
        return ImageFeatures(pooled, pooled[:, :2] / 2, pooled / 10)

    def fingerprint(self) -> bytes:
        return b"colours"


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3), dtype=np.uint8)


def quiet(*_: int) -> None:
    pass


def features(source: FeatureSource, made: np.ndarray) -> ImageFeatures:
    images = (torch.from_numpy(pixels).permute(2, 0, 1) for pixels in made)
    return observe_all(source, images, len(made), quiet)


def statistics(found: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return found.double().mean(dim=0).numpy(), torch.cov(found.double().T).numpy()


def test_a_reference_of_the_pictures_themselves_gives_a_perfect_row(tmp_path: Path):
    source, made = Colours(everything=True), pictures(100)
    write_pictures(tmp_path / "made.npz", made, 100, 4, 6)
    reference = read_reference(tmp_path / "made.npz", source, quiet)
    row = measure_resolution("4x6", features(source, made), reference)
    assert row.fid == pytest.approx(0, abs=1e-8)
    assert row.sfid == pytest.approx(0, abs=1e-8)
    assert (row.precision, row.recall) == (1, 1)
    assert row.inception_score is not None
    assert row.inception_score > 1
    assert any("taken from its 100 pictures" in note for note in row.notes)


def test_statistics_alone_give_distances_and_say_what_is_missing(tmp_path: Path):
    source = Colours(everything=True)
    seen = features(source, pictures(50))
    assert seen.spatial is not None
    mu, sigma = statistics(seen.pooled)
    mu_s, sigma_s = statistics(seen.spatial)
    path = tmp_path / "adm.npz"
    np.savez(path, mu=mu + 3, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    row = measure_resolution("4x6", seen, read_reference(path, source, quiet))
    assert row.fid == pytest.approx(27)  # three channels moved by three
    assert row.sfid == pytest.approx(0, abs=1e-8)
    assert (row.precision, row.recall) == (None, None)
    assert row.notes == ("precision, recall: adm.npz has no pictures (arr_0)",)


def test_a_network_without_scores_or_spatial_features_leaves_columns_empty(tmp_path: Path):
    source = Colours()
    seen = features(source, pictures(3))
    mu, sigma = statistics(seen.pooled)
    np.savez(tmp_path / "clean.npz", mu=mu, sigma=sigma)
    row = measure_resolution("4x6", seen, read_reference(tmp_path / "clean.npz", source, quiet))
    assert (row.sfid, row.inception_score) == (None, None)
    said = " ".join(row.notes)
    for part in ("no spatial features", "no class scores", "3 images for 3 channels"):
        assert part in said


def test_statistics_of_another_network_are_not_used(tmp_path: Path):
    path, source, made = tmp_path / "other.npz", Colours(), pictures(20)
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match=r"fits colours: .* 2048 channels, the feature network 3"):
        read_reference(path, source, quiet)
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048), arr_0=made)
    reference = read_reference(path, source, quiet)
    row = measure_resolution("4x6", features(source, made), reference)
    assert row.fid == pytest.approx(0, abs=1e-8)


def test_photographs_are_a_reference_too():
    seen = features(Colours(), pictures(30))
    row = measure_resolution("4x6", seen, Reference.of_features(seen.pooled))
    assert row.fid == pytest.approx(0, abs=1e-8)
    assert (row.precision, row.recall, row.sfid) == (1, 1, None)


def test_files_that_are_no_reference_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is no \.npz file"):
        read_reference(tmp_path / "absent.npz", Colours(), quiet)
    np.savez(tmp_path / "odd.npz", arr_0=np.zeros((3, 4, 5)))
    with pytest.raises(ValueError, match=r"arr_0 is float64 \[3, 4, 5\], not uint8"):
        read_reference(tmp_path / "odd.npz", Colours(), quiet)


def test_arrays_are_what_numpy_reads_and_come_back_one_by_one(tmp_path: Path):
    made, path = pictures(5), tmp_path / "made.npz"
    write_pictures(path, made, 5, 4, 6)
    with np.load(path) as file:
        assert np.array_equal(file["arr_0"], made)
    np.savez_compressed(tmp_path / "packed.npz", made)
    for file in (path, tmp_path / "packed.npz"):
        assert count_pictures(file) == 5
        assert np.array_equal(np.stack(list(read_pictures(file))), made)
    with pytest.raises(ValueError, match=r"a picture is uint8 \[4, 6, 3\], not uint8 \[4, 4, 3\]"):
        write_pictures(path, made, 5, 4, 4)
    assert count_pictures(path) == 5  # what failed did not replace it


def test_the_table_has_a_dash_for_what_is_unknown_and_each_note_once():
    rows = [
        ResolutionFigures("256x256", 50000, 2.26, 4.53, 260.95, 0.81, 0.59, ("a note",)),
        ResolutionFigures("160x320", 10, fid=5.5, notes=("a note",)),
    ]
    lines = list(table_lines(rows))
    assert lines[0].split() == ["resolution", "FID", "sFID", "IS", "Prec", "Rec", "n"]
    assert lines[1].split() == ["256x256", "2.26", "4.53", "260.95", "0.810", "0.590", "50000"]
    assert lines[2].split() == ["160x320", "5.50", "-", "-", "-", "-", "10"]
    assert lines[3:] == ["  a note"]


def test_bars_are_drawn_of_what_is_known(tmp_path: Path):
    pytest.importorskip("matplotlib")
    rows = [ResolutionFigures("256x256", 9, fid=2.0), ResolutionFigures("160x320", 9, recall=0.5)]
    plot_resolutions(tmp_path / "rows.png", rows)
    plot_classes(tmp_path / "classes.png", [ClassQuality("ant", 0.5, None, 0)])
    for name in ("rows.png", "classes.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no figure"):
        plot_resolutions(tmp_path / "none.png", [ResolutionFigures("256x256", 9)])


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fit_training.evaluation.quality_plots.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"pip install 'fit-serve\[plots\]'"):
        plot_classes(tmp_path / "classes.png", [])

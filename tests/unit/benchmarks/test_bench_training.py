"""The padded way trains what the packed way trains, and its images do not notice one another."""

import csv
import importlib
import io
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fit_models.config import named_config
from fit_models.networks.fitv2 import FiTv2
from support.repository import ROOT

_GRIDS = ((2, 3), (4, 4), (3, 2), (1, 5))
_PADDED = ("padded", "padded, products")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("bench_training")


@pytest.fixture
def network(bench: ModuleType) -> FiTv2:
    torch.manual_seed(0)
    network = FiTv2(named_config("FiTv2-toy/2", 5))
    network.initialize()
    bench.open_gates(network, torch.Generator().manual_seed(0))
    return network


def _problem(bench: ModuleType, network: FiTv2):
    return bench.make_problem(network, _GRIDS, torch.Generator().manual_seed(1))


def test_all_ways_predict_the_same(bench: ModuleType, network: FiTv2):
    problem = _problem(bench, network)
    assert bench.predict(network, problem, "packed").std() > 0.1
    assert bench.check_agreement(network, problem) < 1e-5


def test_all_ways_take_the_same_step(bench: ModuleType, network: FiTv2):
    problem = _problem(bench, network)
    gradients = []
    for way in bench.WAYS:
        network.zero_grad()
        bench.loss_of(bench.predict(network, problem, way), problem, way).backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for padded in gradients[1:]:
        torch.testing.assert_close(padded, gradients[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", _PADDED)
def test_a_padded_image_notices_neither_neighbours_nor_padding(
    bench: ModuleType, network: FiTv2, way: str
):
    problem = _problem(bench, network)
    real = problem.padded.real
    before = bench.predict(network, problem, way)
    problem.padded_x[~real] = 100.0
    problem.padded_x[1:][real[1:]] += 1.0
    after = bench.predict(network, problem, way)
    torch.testing.assert_close(after[0][real[0]], before[0][real[0]], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(after[1][real[1]], before[1][real[1]], atol=1e-3)


def test_without_the_mask_agreement_is_refused(bench: ModuleType, network: FiTv2):
    problem = _problem(bench, network)
    problem.padded.visible.fill_(True)
    with pytest.raises(AssertionError):
        bench.check_agreement(network, problem)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((192, 128), (8, 12)),  # kept
        ((191, 129), (8, 11)),  # cut, never enlarged
        ((512, 512), (16, 16)),  # made smaller to the area limit
        ((1024, 256), (8, 32)),
        ((40, 8), (1, 5)),  # a side below a token is enlarged to one
    ],
)
def test_the_resize_rule_is_fits(bench: ModuleType, size: tuple[int, int], grid: tuple[int, int]):
    assert bench.fit_grid(*size) == grid


def test_a_run_gives_a_row_per_precision(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    archive, result = tmp_path / "photographs.zip", tmp_path / "result.json"
    text = io.StringIO()
    rows = [["path", "width", "height"], *[[f"{i}.webp", 40 + 8 * i, 64] for i in range(6)]]
    csv.writer(text).writerows(rows)
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("manifest.csv", text.getvalue())
    arguments = ["--models", "FiTv2-toy/2", "--rules", "fit", "--batch-images", "3"]
    files = ["--photographs", str(archive), "--json", str(result)]
    monkeypatch.setattr("sys.argv", ["bench_training", *arguments, "--rounds", "1", *files])
    bench.main()
    made = bench.json.loads(result.read_text())
    assert [row["precision"] for row in made["rows"]] == ["float32", "bfloat16"]
    for row in made["rows"]:
        assert set(row["tokens_per_s"]) == set(bench.WAYS)
        assert 0.0 <= row["padding_share"] < 1.0

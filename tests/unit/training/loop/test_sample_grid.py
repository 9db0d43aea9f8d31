"""Pictures of a run: same noise at every step, of the weights given, as the model is served."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fit_models.autoencoder import Autoencoder
from fit_models.config import named_config
from fit_models.networks.fitv2 import FiTv2
from fit_training.loop.run import train
from fit_training.loop.sample_grid import MAX_CLASSES, SampleGrid
from fit_training.loop.sample_plan import SamplePlan
from support.small_autoencoders import write_small_autoencoder
from support.toy_latents import write_toy_latents
from support.toy_run import differences, saved, toy_run

CLASSES = ("ant", "bee", "cat")
GRIDS = ((2, 3), (4, 2))
NUM_STEPS = SamplePlan(()).num_steps
SHIFT, SCALE = 0.5, 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def autoencoder(folder: Path) -> Autoencoder:
    return Autoencoder.from_folder(folder)


@pytest.fixture
def grid(autoencoder: Autoencoder) -> SampleGrid:
    return SampleGrid(autoencoder, CLASSES, SHIFT, SCALE, SamplePlan((0, 1, 2), GRIDS))


@pytest.fixture
def network() -> FiTv2:
    torch.manual_seed(0)
    network = FiTv2(named_config("FiTv2-toy/2", len(CLASSES)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    return network


def averages(network: FiTv2, factor: float = 1.0) -> dict[str, Tensor]:
    return {name: factor * value for name, value in network.state_dict().items()}


def test_the_same_weights_draw_the_same_sheet_and_others_another(grid: SampleGrid, network: FiTv2):
    first, again = (np.asarray(grid.sheet(network, averages(network))) for _ in range(2))
    other = np.asarray(grid.sheet(network, averages(network, 1.5)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_networks_own_weights_stay_and_do_not_count(grid: SampleGrid, network: FiTv2):
    before = averages(network)
    drawn = grid.tokens(network, averages(network, 1.5), 1)
    assert not differences(before, dict(network.state_dict()))
    network.load_state_dict(averages(network, 1.5))
    assert torch.equal(drawn, grid.tokens(network, averages(network), 1))


def test_neither_a_row_nor_a_column_changes_the_noise_of_another(
    autoencoder: Autoencoder, grid: SampleGrid
):
    torch.manual_seed(9)
    noise = grid.noise(16)
    assert torch.equal(noise, grid.noise(16))
    fewer = SampleGrid(autoencoder, CLASSES[:1], SHIFT, SCALE, SamplePlan((0,), GRIDS[:1]))
    assert torch.equal(fewer.noise(16), noise[:6])


def test_a_picture_does_not_notice_its_neighbours(
    autoencoder: Autoencoder, grid: SampleGrid, network: FiTv2
):
    alone = SampleGrid(autoencoder, CLASSES, SHIFT, SCALE, SamplePlan((0, 1, 2), GRIDS[:1]))
    weights = averages(network)
    torch.testing.assert_close(
        alone.tokens(network, weights, 2), grid.tokens(network, weights, 2)[:6]
    )


def test_a_network_that_predicts_nothing_leaves_the_noise_to_decode(
    autoencoder: Autoencoder, grid: SampleGrid, network: FiTv2, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Tensor] = []
    decode = Autoencoder.decode

    def spy(self: Autoencoder, latents: Tensor) -> Tensor:
        seen.append(latents)
        return decode(self, latents)

    monkeypatch.setattr(Autoencoder, "decode", spy)
    grid.sheet(network, averages(network, 0.0))
    assert [tuple(latent.shape) for latent in seen] == [(1, 4, 4, 6), (1, 4, 8, 4)] * len(CLASSES)
    noise = grid.noise(16)[:6].view(2, 3, 4, 2, 2).permute(2, 0, 3, 1, 4).reshape(1, 4, 4, 6)
    torch.testing.assert_close(seen[0], noise / SCALE + SHIFT)


def test_steps_go_from_noise_to_image_and_are_guided(
    grid: SampleGrid, network: FiTv2, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[float, list[int]]] = []
    forward = FiTv2.forward

    def spy(self: FiTv2, tokens: Tensor, layout: object, timestep: Tensor, label: Tensor):
        seen.append((float(timestep[0]), label.tolist()))
        return forward(self, tokens, layout, timestep, label)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(FiTv2, "forward", spy)
    grid.tokens(network, averages(network), 1)
    null = len(CLASSES)
    assert [labels for _, labels in seen] == [[1, 1, null, null]] * NUM_STEPS
    times = [time for time, _ in seen]
    assert times == pytest.approx([i / NUM_STEPS for i in range(NUM_STEPS)], abs=1e-6)


@pytest.mark.parametrize("count", [1, 3, MAX_CLASSES, 30])
def test_classes_are_spread_over_all_and_no_more_than_fit(autoencoder: Autoencoder, count: int):
    names = [f"class {i}" for i in range(count)]
    labels = SampleGrid(autoencoder, names, SHIFT, SCALE, SamplePlan(tuple(range(count)))).labels
    assert len(set(labels)) == len(labels) == min(count, MAX_CLASSES)
    assert all(0 <= label < count for label in labels)


def test_a_run_draws_sheets_and_learns_what_it_would_have_learned(folder: Path, tmp_path: Path):
    latents = write_toy_latents(tmp_path / "latents")
    plain = toy_run(latents, tmp_path / "plain")
    drawing = replace(
        plain, output=str(tmp_path / "drawing"), sample_every=3, sample_autoencoder=str(folder)
    )
    train(plain)
    train(drawing)
    sheets = sorted((tmp_path / "drawing" / "samples").iterdir())
    assert [path.name for path in sheets] == ["step-000003.png", "step-000006.png"]
    pictures = [np.asarray(Image.open(path)) for path in sheets]
    assert pictures[0].shape == pictures[1].shape
    states = [saved(config) for config in (plain, drawing)]
    for state in states:
        del state["config"]
    assert not differences(states[0], states[1])

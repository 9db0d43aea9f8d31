"""FiTv2's relatives are trained by the objective of their own papers, and served."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fit_models.bundle import load_bundle
from fit_models.diffusion.discrete_loss import discrete_inputs, discrete_loss, uniform_timesteps
from fit_models.families import position_tables, samplers_of
from fit_models.positions import layout_of_tables
from fit_training.export import export_bundle
from fit_training.loop.run import train
from fit_training.loop.trainer import Trainer
from support.small_autoencoders import write_small_autoencoder
from support.toy_latents import write_toy_latents
from support.toy_run import logged, toy_run

MODELS = ("FiT-toy/2", "DiT-toy/2", "SiT-toy/2")


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_latents(tmp_path_factory.mktemp("latents"))


@pytest.mark.parametrize("model", MODELS)
def test_a_run_learns_draws_pictures_and_becomes_a_bundle(
    model: str, latents: Path, tmp_path: Path
):
    autoencoder = write_small_autoencoder(tmp_path / "autoencoder")
    config = replace(
        toy_run(latents, tmp_path / "run"),
        model=model,
        num_steps=60,
        tokens_per_batch=200,
        learning_rate=1e-2,
        checkpoint_every=60,
        sample_every=60,
        sample_autoencoder=str(autoencoder),
    )
    train(config)
    losses = [row["loss"] for row in logged(config)]
    assert sum(losses[-8:]) < 0.97 * sum(losses[:8])
    assert (tmp_path / "run" / "samples" / "step-000060.png").is_file()
    names = ("ant", "bee", "cat", "dog")
    export_bundle(tmp_path / "run", autoencoder, tmp_path / "bundle", "small", names)
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert bundle.defaults.sampler == samplers_of(bundle.model_config)[0]
    assert bundle.class_names == names


@pytest.mark.parametrize("model", ["FiT-toy/2", "DiT-toy/2"])
def test_the_loss_of_noise_predictors_is_that_of_each_image_alone(
    model: str, latents: Path, tmp_path: Path
):
    config = replace(
        toy_run(latents, tmp_path / "run"), model=model, precision="float32", alignment_weight=0.0
    )
    trainer = Trainer(config)
    for parameter in trainer.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = trainer.data.batch(trainer.data.epoch(50, 1.0, 0, 0)[0])
    found = trainer.losses(batch, torch.Generator().manual_seed(5), 0.0).flow.detach()
    generator = torch.Generator().manual_seed(5)
    torch.randn(len(batch.grids), generator=generator)  # the flow's noise levels, not used here
    noise_TK = torch.randn(batch.tokens.shape, generator=generator)
    torch.rand(len(batch.grids), generator=generator)
    timestep_S = uniform_timesteps(len(batch.grids), generator)
    network, alone, start = trainer.network, [], 0
    for i, grid in enumerate(batch.grids):
        own = slice(start, start + grid[0] * grid[1])
        layout = layout_of_tables([grid], lambda r, c: position_tables(r, c, network.config))
        t_S = timestep_S[i : i + 1]
        x = discrete_inputs(batch.tokens[own], noise_TK[own], t_S[layout.seq_of_token])
        out = network(x, layout, t_S.float(), batch.labels[i : i + 1]).detach()
        loss = discrete_loss(
            out, batch.tokens[own], noise_TK[own], x, t_S, layout.seq_of_token
        ).total
        alone.append(loss)
        start = own.stop
    torch.testing.assert_close(found, torch.cat(alone).mean(), atol=1e-4, rtol=1e-4)

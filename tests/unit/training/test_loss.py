"""What a training step minimises: every image alone, every random choice from one generator."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fit_models.diffusion.loss import logit_normal_sigma
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from fit_training.loop.config import TrainConfig
from fit_training.loop.data import LatentBatch
from fit_training.loop.trainer import StepLosses, Trainer
from support.toy_bundle import make_toy_network
from support.toy_latents import CLASS_NAMES, write_toy_latents


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A trainer whose network has open gates, in float32."""
    folder = write_toy_latents(tmp_path_factory.mktemp("latents"))
    config = TrainConfig(
        str(folder), "", model="FiTv2-toy/2", alignment_block=1, precision="float32", device="cpu"
    )
    trainer = Trainer(config)
    state = make_toy_network(num_classes=len(CLASS_NAMES)).state_dict()
    trainer.network.load_state_dict(state)
    return trainer


@pytest.fixture(scope="module")
def batch(trainer: Trainer) -> LatentBatch:
    return trainer.data.batch(np.array([0, 3, 3, 13, 20]))


def losses(trainer: Trainer, batch: LatentBatch, seed: int, dropout: float = 0.0) -> StepLosses:
    return trainer.losses(batch, torch.Generator().manual_seed(seed), dropout)


def test_the_flow_loss_is_the_mean_over_images_of_each_alone(trainer: Trainer, batch: LatentBatch):
    """Alone, each image with the noise level and the noise it had in the pack."""
    generator = torch.Generator().manual_seed(5)
    sigma_S = logit_normal_sigma(len(batch.grids), generator)
    noise_TK = torch.randn(batch.tokens.shape, generator=generator)
    network, alone, start = trainer.network, [], 0
    assert isinstance(network, FiTv2)
    for i, grid in enumerate(batch.grids):
        end = start + grid[0] * grid[1]
        data, noise, sigma = batch.tokens[start:end], noise_TK[start:end], sigma_S[i : i + 1]
        layout = layout_of_grids([grid], network.config.head_dim, network.config.rope)
        x = (1 - sigma) * data + sigma * noise
        velocity = network(x, layout, 1 - sigma, batch.labels[i : i + 1])
        alone.append((velocity - (data - noise)).square().mean())
        start = end
    found = losses(trainer, batch, seed=5).flow
    torch.testing.assert_close(found, torch.stack(alone).mean(), atol=2e-5, rtol=0.0)


def test_the_generator_makes_every_random_choice(trainer: Trainer, batch: LatentBatch):
    first = losses(trainer, batch, 3, dropout=0.5)
    torch.manual_seed(99)  # the global generator has no say
    again = losses(trainer, batch, 3, dropout=0.5)
    assert torch.equal(first.flow, again.flow)
    assert torch.equal(first.alignment, again.alignment)
    assert not torch.equal(first.flow, losses(trainer, batch, 4, dropout=0.5).flow)


def test_a_dropped_label_is_the_null_label(trainer: Trainer, batch: LatentBatch):
    null = replace(batch, labels=torch.full_like(batch.labels, trainer.network.config.null_label))
    wanted = losses(trainer, null, 3).flow
    assert torch.equal(losses(trainer, batch, 3, dropout=1.0).flow, wanted)
    assert not torch.equal(losses(trainer, batch, 3, dropout=0.0).flow, wanted)


def test_labels_are_dropped_as_often_as_asked(trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Tensor] = []
    forward = trainer.network.forward

    def spy(tokens, layout, timestep, label):
        seen.append(label)
        return forward(tokens, layout, timestep, label)

    monkeypatch.setattr(trainer.network, "forward", spy)
    batch = trainer.data.batch(np.zeros(400, dtype=np.int64))
    losses(trainer, batch, 0, dropout=0.25)
    share = (seen[0] == trainer.network.config.null_label).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.065)  # three standard errors of 400 draws


def test_alignment_teaches_the_blocks_up_to_its_own_and_none_after(
    trainer: Trainer, batch: LatentBatch
):
    losses(trainer, batch, 0).alignment.backward()
    touched = {
        key
        for key, parameter in trainer.network.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    trainer.network.zero_grad()
    assert "blocks.0.attn.qkv.weight" in touched
    assert "x_embedder.proj.weight" in touched
    assert not any(key.startswith(("blocks.1.", "final_layer.")) for key in touched)
    assert all(p.grad is not None and p.grad.any() for p in trainer.head.parameters())
    trainer.head.zero_grad()


def test_nothing_stays_hooked_to_the_network(trainer: Trainer, batch: LatentBatch):
    losses(trainer, batch, 0)
    assert not any(module._forward_hooks for module in trainer.network.modules())

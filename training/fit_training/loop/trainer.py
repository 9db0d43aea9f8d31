"""The training loop, readable top to bottom.

Packed flow matching: images of unlike sizes lie end to end in one batch, exactly as they are
served. Resumes from the newest checkpoint of its output folder by itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fit_kernels import use_backend
from fit_models.config import named_config
from fit_models.diffusion.loss import flow_inputs, logit_normal_sigma, sequence_mean_square
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from fit_training.loop.config import TrainConfig
from fit_training.loop.data import LatentBatch, LatentDataset
from fit_training.loop.ema import AveragedWeights
from fit_training.loop.lr import learning_rate_factor
from fit_training.loop.optimizer import make_optimizers
from fit_training.loop.repa import AlignmentHead, aligned_channels, alignment_loss
from fit_training.loop.run_folder import RunFolder

OnProgress = Callable[[dict[str, Any]], None]
_VALIDATION_SEED = 1234


@dataclass(frozen=True)
class StepLosses:
    """Scalars of one step: flow matching, alignment."""

    flow: Tensor
    alignment: Tensor


class Trainer:
    """A run: its data, network, optimizers and how far it has come."""

    def __init__(self, config: TrainConfig) -> None:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.device = _device(config.device)
        use_backend(config.operators, self.device)
        self.data = LatentDataset(Path(config.data), config.classes)
        self.validation = None
        if config.validation_data:
            self.validation = LatentDataset(Path(config.validation_data), config.classes)
            self.validation.use_normalisation_of(self.data)
        self.network = FiTv2(named_config(config.model, len(self.data.class_names)))
        self.network.initialize()
        feature_channels = self.data.batch(self.data.epoch(1, 1.0, 0, 0)[0]).features.shape[1]
        feature_channels = aligned_channels(feature_channels, config.alignment_weight, config.data)
        self.head = AlignmentHead(self.network.config.hidden_size, feature_channels)
        self.network.to(self.device)
        self.head.to(self.device)
        self.averaged = AveragedWeights(self.network, config.ema_decay)
        self.optimizers = make_optimizers(
            (self.network, self.head), config.optimizer, config.learning_rate, config.weight_decay
        )
        self.step, self.epoch, self.position, self.images_seen = 0, 0, 0, 0

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": self.config.to_dict(),
            "network": self.network.state_dict(),
            "head": self.head.state_dict(),
            "averaged": self.averaged.weights,
            "averaged_updates": self.averaged.num_updates,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": [self.step, self.epoch, self.position, self.images_seen],
            "num_images": len(self.data),
            "latents": [self.data.latent_shift, self.data.latent_scale],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; a data folder that grew since starts a new epoch."""
        self.network.load_state_dict(state["network"])
        self.head.load_state_dict(state["head"])
        self.averaged.restore(state["averaged"], state["averaged_updates"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.epoch, self.position, self.images_seen = state["progress"]
        if state["num_images"] != len(self.data):
            self.epoch, self.position = self.epoch + 1, 0
        self.data.latent_shift, self.data.latent_scale = state["latents"]
        if self.validation is not None:
            self.validation.use_normalisation_of(self.data)

    def batches(self) -> Iterator[LatentBatch]:
        """Batches from where the run stands, epoch after epoch."""
        config = self.config
        while True:
            plan = self.data.epoch(
                config.tokens_per_batch, config.class_balance, config.seed, self.epoch
            )
            while self.position < len(plan):
                images = plan[self.position]
                self.position += 1
                yield self.data.batch(images)
            self.epoch, self.position = self.epoch + 1, 0

    def losses(self, batch: LatentBatch, generator: torch.Generator, dropout: float) -> StepLosses:
        """Flow-matching and alignment loss of a batch; every random choice is the generator's."""
        network = self.network
        layout = layout_of_grids(
            batch.grids, network.config.head_dim, network.config.rope, self.device
        )
        sigma_S = logit_normal_sigma(len(batch.grids), generator).to(self.device)
        noise_TK = torch.randn(batch.tokens.shape, generator=generator).to(self.device)
        dropped_S = torch.rand(len(batch.grids), generator=generator) < dropout
        label_S = batch.labels.masked_fill(dropped_S, network.config.null_label).to(self.device)
        x_TK, t_S, target_TK = flow_inputs(
            batch.tokens.to(self.device), noise_TK, sigma_S, layout.seq_of_token
        )
        captured: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            captured.append(output[0])

        block = network.blocks[self.config.alignment_block - 1]
        hook = block.register_forward_hook(keep)
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            velocity_TK = network(x_TK, layout, t_S, label_S)
            projected = self.head(captured[0])
        hook.remove()
        flow_S = sequence_mean_square(
            velocity_TK.float() - target_TK, layout.seq_of_token, len(batch.grids)
        )
        return StepLosses(flow_S.mean(), alignment_loss(projected, batch.features.to(self.device)))

    def train_step(self, batch: LatentBatch) -> dict[str, float]:
        """One optimizer step; returns its scalars."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        losses = self.losses(batch, generator, config.class_dropout)
        (losses.flow + config.alignment_weight * losses.alignment).backward()
        parameters = [*self.network.parameters(), *self.head.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        factor = learning_rate_factor(
            self.step, config.num_steps, config.warmup_steps, config.decay_steps
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.averaged.update(self.network)
        self.step += 1
        self.images_seen += len(batch.grids)
        return {
            "loss": float(losses.flow.detach()),
            "alignment": float(losses.alignment.detach()),
            "gradient_norm": float(norm),
            "learning_rate": config.learning_rate * factor,
        }

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Flow loss of the averaged weights on the validation set; same noise every time."""
        assert self.validation is not None
        live = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.averaged.weights)
        plan = self.validation.epoch(self.config.tokens_per_batch, 1.0, _VALIDATION_SEED, 0)
        total = 0.0
        for position, images in enumerate(plan):
            generator = torch.Generator().manual_seed(_VALIDATION_SEED + position)
            losses = self.losses(self.validation.batch(images), generator, 0.0)
            total += float(losses.flow) * len(images)
        self.network.load_state_dict(live)
        return total / len(self.validation)


def train(config: TrainConfig, on_progress: OnProgress | None = None, resume: bool = True) -> Path:
    """Train (or go on training) until `num_steps`; SIGTERM saves and returns.

    Args:
        config: the run.
        on_progress: is given every row of the log.
        resume: go on from the newest good checkpoint in the output folder, if there is one.

    Returns:
        The newest checkpoint's path.

    Raises:
        ValueError: there are checkpoints but `resume` is False, or all of them are damaged; the
            loss is no longer finite.
        OSError: a checkpoint could not be written.
    """
    folder = RunFolder(Path(config.output), config.keep_checkpoints, resume)
    trainer = Trainer(config)
    if (state := folder.newest_state()) is not None:
        trainer.restore(state)
    stop: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    started, tokens, images = time.monotonic(), 0, 0
    try:
        batches = trainer.batches()
        while not stop and trainer.step < config.num_steps:  # first: a batch drawn is trained on
            batch = next(batches)
            scalars = trainer.train_step(batch)
            folder.check_finite(trainer.step, scalars)
            tokens += len(batch.tokens)
            images += len(batch.grids)
            if trainer.step % config.log_every == 0:
                seconds = time.monotonic() - started
                rates = {"tokens_per_s": tokens / seconds, "images_per_s": images / seconds}
                _report(folder, trainer, {**scalars, **rates}, on_progress)
                started, tokens, images = time.monotonic(), 0, 0
            if trainer.step % config.checkpoint_every == 0:
                score = None
                if trainer.validation is not None:
                    score = trainer.validation_loss()
                    _report(folder, trainer, {"validation_loss": score}, on_progress)
                folder.save(trainer.step, trainer.state(), score)
        if not folder.is_saved(trainer.step):
            folder.save(trainer.step, trainer.state())
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert folder.saved is not None
    return folder.saved


def _report(
    folder: RunFolder, trainer: Trainer, scalars: dict[str, float], on_progress: OnProgress | None
) -> None:
    row = {
        "step": trainer.step,
        "epoch": trainer.epoch,
        "images_seen": trainer.images_seen,
        "time": time.time(),
        **scalars,
    }
    folder.log.append(row)
    if on_progress is not None:
        on_progress(row)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)

"""What a training step is: data, network, optimizers and losses, readable top to bottom.

Packed flow matching: images of unlike sizes lie end to end in one batch, exactly as they are
served. What is learned does not depend on the number of processes: each takes its share of every
step's micro-batches. Knows no files; a whole run, with its checkpoints, is `run.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fit_kernels import use_backend
from fit_models.families import NOISE, family_of, position_tables, prediction_of
from fit_models.packing import PackedLayout
from fit_models.positions import layout_of_tables
from fit_training.loop.config import RunConfig, TrainConfig
from fit_training.loop.data import LatentBatch, LatentDataset
from fit_training.loop.ema import AveragedWeights
from fit_training.loop.lr import learning_rate_factor
from fit_training.loop.micro_batches import OptimizerStep, check_shares, optimizer_steps
from fit_training.loop.optimizer import make_optimizers
from fit_training.loop.processes import Processes, one_process
from fit_training.loop.question import Question, flow_question, noise_question
from fit_training.loop.random_choices import micro_batch_generator
from fit_training.loop.recomputation import recompute_in_backward
from fit_training.loop.repa import AlignmentHead, aligned_channels, alignment_loss
from fit_training.loop.sample_plan import SamplePlan
from fit_training.loop.sharding import (
    clip_gradients,
    load_optimizer,
    load_weights,
    shard,
    sliced_like,
)
from fit_training.loop.trained_networks import TRAINED_NETWORKS, TrainedNetwork, trained_config

_VALIDATION_SEED = 1234


@dataclass(frozen=True)
class StepLosses:
    """Scalars of one step: the objective's (flow matching, or noise and variance), alignment."""

    flow: Tensor
    alignment: Tensor


class Trainer:
    """A run: its data, network, optimizers and how far it has come.

    This one trains a new network of any family that can; those that go on from a model override
    what differs: `settle_latents`, `make_network`, `question` and what pictures are drawn.

    Raises:
        ValueError: the micro-batches of a step cannot be dealt out evenly to the processes, or
            there is no such block to align.
    """

    def __init__(self, config: RunConfig, processes: Processes | None = None) -> None:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.processes = processes or one_process(config.device)
        check_shares(config.micro_batches, self.processes.world_size)
        self.device = self.processes.device
        use_backend(config.operators, self.device)
        self.data = LatentDataset(Path(config.data), config.classes)
        self.validation = None
        if config.validation_data:
            self.validation = LatentDataset(Path(config.validation_data), config.classes)
        self.settle_latents()
        self.network = self.make_network()
        self._check_alignment_block()
        feature_channels = self.data.batch(self.data.epoch(1, 1.0, 0, 0)[0]).features.shape[1]
        feature_channels = aligned_channels(feature_channels, config.alignment_weight, config.data)
        self.head = AlignmentHead(self.network.config.hidden_size, feature_channels)
        self.network.to(self.device)
        self.head.to(self.device)
        if config.activation_checkpointing:
            recompute_in_backward(self.network.blocks)
        shard(self.network, self.head, self.processes)
        self.averaged = AveragedWeights(self.network, config.ema_decay)
        self.optimizers = make_optimizers(
            (self.network, self.head), config.optimizer, config.learning_rate, config.weight_decay
        )
        self.step, self.epoch, self.position, self.images_seen = 0, 0, 0, 0

    def settle_latents(self) -> None:
        """Choose the latents' shift and scale: here those of the training set."""
        if self.validation is not None:
            self.validation.use_normalisation_of(self.data)

    def make_network(self) -> TrainedNetwork:
        """A network to train, the same in every process; parameters without gradient stay."""
        network = self.blank_network()
        network.initialize()
        return network

    def blank_network(self) -> TrainedNetwork:
        """One of the same form, whose weights are yet to be filled in."""
        assert isinstance(self.config, TrainConfig)
        config = trained_config(self.config.model, len(self.data.class_names))
        network = family_of(config).network(config)
        assert isinstance(network, TRAINED_NETWORKS)
        return network

    def sample_plan(self) -> SamplePlan:
        """How pictures are drawn on the way: classes are labels in order."""
        return SamplePlan(tuple(range(len(self.data.class_names))))

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, whatever the number of processes then.

        Tensors are the run's own, neither copied nor gathered: of slices, this process's.
        """
        return {
            "config": self.config.to_dict(),
            "network": dict(self.network.state_dict()),
            "head": dict(self.head.state_dict()),
            "averaged": self.averaged.weights,
            "averaged_updates": self.averaged.num_updates,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": [self.step, self.epoch, self.position, self.images_seen],
            "num_images": len(self.data),
            "latents": [self.data.latent_shift, self.data.latent_scale],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; a data folder that grew since starts a new epoch.

        Its tensors are whole, or in slices along their first dimension; all must ask.
        """
        load_weights(self.network, state["network"])
        load_weights(self.head, state["head"])
        mine = {k: sliced_like(v, self.averaged.weights[k]) for k, v in state["averaged"].items()}
        self.averaged.restore(mine, state["averaged_updates"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        self.step, self.epoch, self.position, self.images_seen = state["progress"]
        if state["num_images"] != len(self.data):
            self.epoch, self.position = self.epoch + 1, 0
        self.data.latent_shift, self.data.latent_scale = state["latents"]
        if self.validation is not None:
            self.validation.use_normalisation_of(self.data)

    def steps(self) -> Iterator[OptimizerStep]:
        """Steps from where the run stands, epoch after epoch; an epoch's last one may be smaller.

        `position` counts the epoch's micro-batches.
        """
        config = self.config
        while True:
            plan = self.data.epoch(
                config.tokens_per_batch, config.class_balance, config.seed, self.epoch
            )
            for step in optimizer_steps(
                plan, self.data.lengths, config.micro_batches, self.position
            ):
                self.position += len(step.images)
                yield step
            self.epoch, self.position = self.epoch + 1, 0

    def losses(self, batch: LatentBatch, generator: torch.Generator, dropout: float) -> StepLosses:
        """The objective's and the alignment loss; every random choice is the generator's."""
        network = self.network
        layout = layout_of_tables(
            batch.grids, lambda r, c: position_tables(r, c, network.config), self.device
        )
        asked = self.question(batch, layout, generator, dropout)
        captured: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            captured.append(output[0])

        block = network.blocks[self.config.alignment_block - 1]
        hook = block.register_forward_hook(keep)
        with self.autocast():
            prediction_TP = network(asked.tokens, layout, asked.timestep, asked.label)
            projected = self.head(captured[0])
        hook.remove()
        loss_S = asked.loss(prediction_TP)
        return StepLosses(loss_S.mean(), alignment_loss(projected, batch.features.to(self.device)))

    def question(
        self,
        batch: LatentBatch,
        layout: PackedLayout,
        generator: torch.Generator,
        dropout: float,
    ) -> Question:
        """What the network is asked about a batch: what its family is trained by."""
        is_noise = prediction_of(self.network.config) == NOISE
        ask = noise_question if is_noise else flow_question
        return ask(batch, layout, generator, dropout, self.network.config.null_label)

    def autocast(self) -> torch.autocast:
        """The precision that networks run in."""
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def accumulate(self, step: OptimizerStep) -> Tensor:
        """Add up gradients over this process's micro-batches of a step.

        Every image weighs the same for flow matching, every token for alignment, however the step
        is cut. FSDP averages gradients over processes, hence the factor.

        Returns:
            [2]: flow-matching and alignment loss of the whole step.
        """
        processes, config = self.processes, self.config
        total = torch.zeros(2, device=self.device)
        for part in step.share(processes.rank, processes.world_size):
            generator = micro_batch_generator(config.seed, self.step, part.index)
            losses = self.losses(self.data.batch(part.images), generator, config.class_dropout)
            flow, alignment = part.image_weight * losses.flow, part.token_weight * losses.alignment
            (processes.world_size * (flow + config.alignment_weight * alignment)).backward()
            total += torch.stack((flow, alignment)).detach()
        return processes.sum(total)

    def train_step(self, step: OptimizerStep) -> dict[str, float]:
        """One optimizer step; returns its scalars."""
        config = self.config
        flow, alignment = self.accumulate(step).tolist()
        norm = clip_gradients(
            (*self.network.parameters(), *self.head.parameters()), config.gradient_clip
        )
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
        self.images_seen += step.num_images
        return {
            "loss": flow,
            "alignment": alignment,
            "gradient_norm": norm,
            "learning_rate": config.learning_rate * factor,
        }

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Flow loss of the averaged weights on the validation set; same noise every time."""
        assert self.validation is not None
        live = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.averaged.weights)
        plan = self.validation.epoch(self.config.tokens_per_batch, 1.0, _VALIDATION_SEED, 0)
        total = torch.zeros((), dtype=torch.float64)
        (everything,) = optimizer_steps(plan, self.validation.lengths, len(plan))
        for part in everything.share(self.processes.rank, self.processes.world_size):
            generator = torch.Generator().manual_seed(_VALIDATION_SEED + part.index)
            losses = self.losses(self.validation.batch(part.images), generator, 0.0)
            total += part.image_weight * float(losses.flow)
        self.network.load_state_dict(live)
        return float(self.processes.sum(total.to(self.device)))

    def _check_alignment_block(self) -> None:
        block, depth = self.config.alignment_block, self.network.config.depth
        if block > depth:
            raise ValueError(f"alignment_block is {block}; the network has {depth} blocks")

"""Trainers that go on from a model: as it is, for larger pictures, and with an adapter.

Knows what of the network is trained and on which labels; a step is `fit_training.loop.trainer`'s.
"""

from __future__ import annotations

from typing import Any

import torch

from fit_models.adapted_network import add_adapters
from fit_models.config import ModelConfig
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import PackedLayout
from fit_training.loop.config import RunConfig
from fit_training.loop.data import LatentBatch
from fit_training.loop.processes import Processes
from fit_training.loop.question import Question, flow_question
from fit_training.loop.sample_plan import SamplePlan
from fit_training.loop.trainer import Trainer
from fit_training.post_training.base_model import BaseModel
from fit_training.post_training.config import PostTrainConfig
from fit_training.post_training.trainable import (
    freeze_for_high_resolution,
    high_resolution_config,
    restart,
)


class PostTrainer(Trainer):
    """Goes on from a base, in its latents and with its labels.

    Raises:
        ValueError: the data has classes that the base does not know, or does not say how its
            latents were made; and what `Trainer` raises.
    """

    takes_new_classes = False

    def __init__(
        self, config: RunConfig, processes: Processes | None = None, *, base: BaseModel
    ) -> None:
        assert isinstance(config, PostTrainConfig)
        self.settings = config
        self.base = base
        super().__init__(config, processes)

    def settle_latents(self) -> None:
        """Those of the base, which its autoencoder decodes."""
        for data in (self.data, self.validation):
            if data is not None:
                data.use_latents_of(self.base.shift_factor, self.base.scaling_factor)
        self.labels = torch.tensor(self.base.labels_of(self.data.class_names))
        names = self.data.class_names
        self.new_classes = [name for name in names if name not in self.base.class_names]
        if self.new_classes and not self.takes_new_classes:
            raise ValueError(
                f"classes {self.new_classes} are not in {self.base.name}; {self.settings.method} "
                "takes no new ones: choose with `classes`, or use method=lora"
            )

    def sample_plan(self) -> SamplePlan:
        """The base's labels; steps and guidance as in every run."""
        return SamplePlan(tuple(self.labels.tolist()))

    def question(
        self,
        batch: LatentBatch,
        layout: PackedLayout,
        generator: torch.Generator,
        dropout: float,
    ) -> Question:
        """Flow matching, under the base's labels."""
        return flow_question(
            self.relabelled(batch), layout, generator, dropout, self.network.config.null_label
        )

    def relabelled(self, batch: LatentBatch) -> LatentBatch:
        """The batch with labels of the network instead of the data's."""
        return LatentBatch(batch.tokens, batch.features, self.labels[batch.labels], batch.grids)

    def state(self) -> dict[str, Any]:
        """That of any run, and which base and new classes it is for."""
        own = {"base": self.base.fingerprint, "new_classes": self.new_classes}
        return {**super().state(), **own}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: it was taken of another base, or with other new classes.
        """
        if state.get("base") != self.base.fingerprint:
            raise ValueError(
                f"output: {self.config.output} holds checkpoints of a run on another base than "
                f"{self.settings.base}"
            )
        if state["new_classes"] != self.new_classes:
            raise ValueError(
                f"output: {self.config.output} holds checkpoints of a run with the new classes "
                f"{state['new_classes']}, not {self.new_classes}"
            )
        super().restore(state)


class FullTrainer(PostTrainer):
    """Every weight, and nothing else is changed: more steps, or other data of the same classes."""

    def make_network(self) -> FiTv2:
        """The base."""
        return self.base.network()

    def blank_network(self) -> FiTv2:
        """The same without weights."""
        return FiTv2(self.base.config)


class HighResolutionTrainer(PostTrainer):
    """FiTv2 §3.4 (arXiv:2410.13925): about 14 % of the weights, stretched rotary frequencies."""

    def make_network(self) -> FiTv2:
        """The base with what is not trained frozen."""
        network = self.base.network(self.blank_config())
        if self.settings.restart:
            restart(network)
        if self.settings.freeze:
            freeze_for_high_resolution(network)
        return network

    def blank_network(self) -> FiTv2:
        """The same without weights."""
        return FiTv2(self.blank_config())

    def blank_config(self) -> ModelConfig:
        """The base's, with frequencies that stretch."""
        return high_resolution_config(self.base.config, self.settings.trained_length or None)

    def sample_plan(self) -> SamplePlan:
        """Pictures larger than the base was trained for, each axis in its own way."""
        length = self.blank_config().rope.ori_max_pe_len
        half = length + length // 2
        grids = ((length, 2 * length), (2 * length, length), (half, half), (2 * length, 2 * length))
        return SamplePlan(tuple(self.labels.tolist()), grids)


class AdapterTrainer(PostTrainer):
    """LoRA (arXiv:2106.09685): low-rank changes, and rows for classes the base does not know."""

    takes_new_classes = True

    def make_network(self) -> FiTv2:
        """The base, frozen, with adapters that change nothing yet."""
        return self._adapted(self.base.network())

    def blank_network(self) -> FiTv2:
        """The same without weights."""
        return self._adapted(FiTv2(self.base.config))

    def _adapted(self, network: FiTv2) -> FiTv2:
        generator = torch.Generator().manual_seed(self.config.seed)
        rank, alpha = self.settings.lora_rank, self.settings.lora_alpha
        add_adapters(network, rank, alpha, generator, len(self.new_classes))
        return network

"""A whole run of post-training, and what comes out of it: an adapter or a bundle.

Knows which trainer belongs to which method and what is written; a run's course is
`fit_training.loop.run`'s.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fit_models.adapted_network import adapter_state
from fit_models.adapter import AdapterConfig, save_adapter
from fit_models.autoencoder_copy import copy_autoencoder
from fit_models.bundle import MODEL_INDEX, save_bundle
from fit_training.export import remove_bundle
from fit_training.loop.checkpoints import read_checkpoint
from fit_training.loop.processes import is_main_of_environment
from fit_training.loop.run import OnProgress, train
from fit_training.post_training.base_model import BaseModel, read_base
from fit_training.post_training.config import (
    FEW_STEP,
    FULL,
    HIGH_RESOLUTION,
    LORA,
    PostTrainConfig,
)
from fit_training.post_training.few_step_trainer import FewStepTrainer
from fit_training.post_training.post_trainer import (
    AdapterTrainer,
    FullTrainer,
    HighResolutionTrainer,
)
from fit_training.post_training.trainable import high_resolution_config

_TRAINERS = {
    FULL: FullTrainer,
    HIGH_RESOLUTION: HighResolutionTrainer,
    LORA: AdapterTrainer,
    FEW_STEP: FewStepTrainer,
}


def post_train(
    config: PostTrainConfig, on_progress: OnProgress | None = None, resume: bool = True
) -> Path:
    """Post-train (or go on) until `num_steps`, then write what is served.

    Args:
        config: the run.
        on_progress: is given every row of the log.
        resume: go on from the newest good checkpoint in the output folder, if there is one.

    Returns:
        `OUTPUT/adapter` or `OUTPUT/bundle`; the newest checkpoint where a signal stopped the run
        before its end.

    Raises:
        ValueError: the base cannot be read, the data does not fit it, or as `train` says.
        OSError: a checkpoint or the result could not be written.
    """
    base = read_base(config.base)
    make_trainer = partial(_TRAINERS[config.method], base=base)
    checkpoint = train(config, on_progress, resume, make_trainer)
    if not is_main_of_environment():
        return checkpoint
    state = read_checkpoint(checkpoint)
    if state["progress"][0] < config.num_steps:
        return checkpoint
    return write_result(config, base, state)


def write_result(config: PostTrainConfig, base: BaseModel, state: dict[str, Any]) -> Path:
    """Write the averaged weights of a checkpoint in the place of what an earlier run wrote.

    Returns:
        the folder of the adapter or bundle.
    """
    weights: dict[str, Tensor] = state["averaged"]
    if config.method == LORA:
        folder = Path(config.output) / "adapter"
        save_adapter(folder, _adapter_config(config, base, state), adapter_state(weights))
        return folder
    folder = Path(config.output) / "bundle"
    if (folder / MODEL_INDEX).exists():
        remove_bundle(folder)
    model_config, defaults = base.config, base.defaults
    if config.method == HIGH_RESOLUTION:
        model_config = high_resolution_config(base.config, config.trained_length or None)
    if config.method == FEW_STEP:
        defaults = replace(
            defaults,
            num_inference_steps=config.student_steps,
            guidance_scale=1.0,
            sampler="euler",
        )
    copy_autoencoder(base.folder / "vae", folder / "vae")
    name = config.name or f"{base.name}-{config.method}"
    save_bundle(folder, name, model_config, weights, base.class_names, defaults)
    return folder


def _adapter_config(
    config: PostTrainConfig, base: BaseModel, state: dict[str, Any]
) -> AdapterConfig:
    return AdapterConfig(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        class_names=tuple(state["new_classes"]),
    )

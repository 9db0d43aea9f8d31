"""A run of post-training of a few steps on a toy bundle, and its data."""

from pathlib import Path
from typing import Any

from fit_training.post_training.config import PostTrainConfig
from support.toy_bundle import CLASS_NAMES
from support.toy_latents import write_toy_latents

NEW_CLASS = "newt"


def write_data(folder: Path, new_class: bool = False, **described: Any) -> Path:
    """Latents of the toy bundle's classes, last first, and of a class it does not know."""
    names = (*reversed(CLASS_NAMES), NEW_CLASS) if new_class else tuple(reversed(CLASS_NAMES))
    images = [(i % len(names), *((1, 2), (2, 3), (3, 3), (1, 4))[i % 4]) for i in range(16)]
    made = {"autoencoder": {"shift_factor": 0.5, "scaling_factor": 2.0}, **described}
    return write_toy_latents(folder, images, class_names=names, **made)


def toy_post_run(
    base: Path, data: Path, output: Path, method: str, **settings: Any
) -> PostTrainConfig:
    """Six steps, a checkpoint in the middle."""
    return PostTrainConfig(
        base=str(base),
        data=str(data),
        output=str(output),
        method=method,
        **{
            "num_steps": 6,
            "tokens_per_batch": 40,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "decay_steps": 2,
            "log_every": 1,
            "checkpoint_every": 3,
            "keep_checkpoints": 5,
            "precision": "float32",
            "device": "cpu",
            "tensorboard": False,
            "student_steps": 2,
            "teacher_steps": 2,
            "lora_rank": 2,
            **settings,
        },
    )

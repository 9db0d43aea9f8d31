"""A training run of a few steps, and what it left behind."""

import json
from pathlib import Path
from typing import Any

import torch

from fit_training.loop.checkpoints import load_newest_checkpoint
from fit_training.loop.config import RunConfig, TrainConfig

NUM_STEPS = 6


def toy_run(data: Path, output: Path) -> TrainConfig:
    """Six steps over two epochs and a bit of `toy_latents`, a checkpoint in the middle."""
    return TrainConfig(
        data=str(data),
        output=str(output),
        model="FiTv2-toy/2",
        num_steps=NUM_STEPS,
        tokens_per_batch=50,
        warmup_steps=2,
        decay_steps=2,
        alignment_block=1,
        log_every=1,
        checkpoint_every=3,
        keep_checkpoints=5,
        device="cpu",
        tensorboard=False,
    )


def saved(config: RunConfig) -> dict[str, Any]:
    state = load_newest_checkpoint(Path(config.output))
    assert state is not None
    return state


def logged(config: RunConfig) -> list[dict[str, Any]]:
    lines = (Path(config.output) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two states differ in any bit."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [d for k in left for d in differences(left[k], right[k], f"{path}/{k}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}/{i}")]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return [] if left.dtype == right.dtype and torch.equal(left, right) else [path]
    return [] if left == right else [path]
